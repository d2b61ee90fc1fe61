"""The batch over Ray Data, for more than one machine: each row of a dataset is solved in one of several replicas.

A replica is an actor with all engines of the policy. Which rows it is given, how many wait for it, and where they are
solved anew when it dies, is Ray's to decide.
"""

import asyncio
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrt.config import Config, load_config
from reasonrt.errors import CapabilityError, ConfigError, EngineError, EvalError, ReasonRTError, shown
from reasonrt.evals.batch import ASKS_NOTHING, BatchResult, key_of, request_of, result_of
from reasonrt.evals.lines import ID, first_of
from reasonrt.evals.run import PolicySpec
from reasonrt.policies.options import parse_policy
from reasonrt.runtime import Runtime, roles_of
from reasonrt.serve.config import load_serve_config
from reasonrt.sync import SyncRuntime
from reasonrt.tasks import gather
from reasonrt.types import Completion, Request

if TYPE_CHECKING:
    from pyarrow import StructType, Table
    from ray.data import Dataset

_CALLS = 2  # of a replica: while the last rows of one are solved, those of the next have the free places


def batch_dataset(
    dataset: "Dataset",
    policy: str = "target",
    *,
    config: str | Path | None = None,
    column: str = "result",
    replicas: int | tuple[int, int] | None = None,
    concurrency: int = 16,
    **ray_options: Any,
) -> "Dataset":
    """Solve each row of a dataset of Ray Data, on as many machines as its cluster has; lazy, as all of Ray Data is.

    One row comes out for each row that goes in, with its columns and one more. Rows that a machine was solving when it
    was lost are solved anew. The blocks come as they finish; they keep their order where the dataset's
    `context.execution_options.preserve_order` is set.

    Args:
        dataset: rows with `question` or `messages` and, if they have one, an `id`, as the lines of `batch`.
        policy: NAME or NAME@key=value,key=value.
        config: as in `Runtime.from_config`, read here. In each replica the engines that the policy asks are started
            once. One takes `num_cpus` and `num_gpus` of the key `serve.replicas`, as in serving; with `split` there,
            so much for each engine.
        column: of the results, in the place of one of that name. A result has the fields of `BatchResult`; `usage`,
            `details` and `warnings`, whose keys differ from row to row, are JSON texts.
        replicas: how many, or the fewest and the most; None is what `serve.replicas` says.
        concurrency: requests that are solved concurrently in a replica, and rows that it takes at a time.
        ray_options: of `Dataset.map_batches`, such as `num_gpus`, `resources`, `label_selector` or `runtime_env`.

    Returns:
        The dataset with the results. A row that cannot be solved as it stands has an `error` there; an engine that
        cannot be started, or dies twice on a row, ends the run of the dataset.

    Raises:
        ConfigError: Ray Data is not installed, `dataset` is none of its datasets, or as `Runtime.of`.
        RequestError: an option of the policy is not allowed.
    """
    try:
        from ray.data import ActorPoolStrategy, Dataset
    except ImportError as error:
        raise ConfigError(f"batch_dataset needs Ray Data: pip install 'reasonrt[data]' ({error})") from None
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"{shown(dataset)} is no ray.data.Dataset; ray.data.read_json(FILE) makes one of JSONL")
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    settings, (name, options) = load_config(config), parse_policy(policy)
    # what is wrong with a policy is told here, and not by each replica
    roles = roles_of(settings, [(name, options)]) & set(settings.engines)
    wanted = dict(settings.serve.get("replicas") or {})
    if replicas is not None:
        fewest, most = (replicas, replicas) if isinstance(replicas, int) else replicas
        wanted |= {"min_replicas": fewest, "max_replicas": most}
    each = load_serve_config({"replicas": wanted}, {}).replicas
    num_shares = len(roles) if each.split else 1  # those of serving are of an engine then
    compute = ActorPoolStrategy(
        min_size=each.min_replicas,
        max_size=each.max_replicas,
        max_concurrent_calls_per_actor=_CALLS,
        enable_true_multi_threading=True,
    )
    # a block goes to one replica whole, and a file may be one block
    return dataset.repartition(target_num_rows_per_block=concurrency).map_batches(
        _Replica,
        fn_constructor_args=(settings, os.getcwd(), PolicySpec(name, options), column, concurrency),
        batch_size=concurrency,
        batch_format="pyarrow",
        compute=compute,
        udf_modifying_row_count=False,
        **{"num_cpus": num_shares * each.num_cpus, "num_gpus": num_shares * each.num_gpus} | ray_options,
    )


class _Replica:
    """In an actor of Ray's, which calls it in several threads; see `batch_dataset`.

    Args:
        folder: the paths of the configuration are relative to it.
    """

    def __init__(self, config: Config, folder: str, policy: PolicySpec, column: str, concurrency: int) -> None:
        with suppress(OSError):  # on another machine it may be missing, and absolute paths all that there are
            os.chdir(folder)
        self._policy, self._column, self._places = policy, column, asyncio.Semaphore(concurrency)
        self._runtime = SyncRuntime(Runtime.of(config, policies=[(policy.name, policy.options)])).start()
        # when the work is done; engines of an actor that is killed end with it by themselves
        weakref.finalize(self, self._runtime.close)

    def __call__(self, rows: "Table") -> "Table":
        import pyarrow as pa

        results = self._runtime.run(self._solve_all(rows.to_pylist()))
        column = pa.array(map(_as_written, results), _type())
        kept = rows.select([name for name in rows.column_names if name != self._column])
        return kept.append_column(self._column, column)

    async def _solve_all(self, rows: Sequence[Mapping[str, Any]]) -> list[BatchResult]:
        return await gather(*map(self._solve, rows))

    async def _solve(self, row: Mapping[str, Any]) -> BatchResult:
        name, request = first_of(row, ID), request_of(row, self._policy.name, self._policy.options)
        if request is None:
            return BatchResult(name, "", self._policy.label, error=f"a row {ASKS_NOTHING}")
        async with self._places:
            return result_of(name, key_of(request), request, await self._complete(name, request))

    async def _complete(self, name: str, request: Request) -> Completion | ReasonRTError:
        """What an engine's death has ended is asked once more."""
        for attempt in (1, 2):
            try:
                return await self._runtime.runtime.complete(request)
            except EngineError as error:
                if isinstance(error, CapabilityError):
                    return error
                if attempt == 2:
                    raise EvalError(
                        f"an engine failed twice on row {shown(name)}: {error}; leave the row out, or allow for it by "
                        "max_errored_blocks of the dataset's context"
                    ) from error
            except ReasonRTError as error:
                return error
        raise AssertionError("the second attempt ends it")


def _as_written(result: BatchResult) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in asdict(result).items()}


def _type() -> "StructType":
    """Of a result: the same for each block, whatever its policies and engines tell."""
    import pyarrow as pa

    return pa.struct(
        [(each.name, pa.float64() if each.name == "seconds" else pa.string()) for each in fields(BatchResult)]
    )
