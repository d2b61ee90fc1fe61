"""A batch over Ray Data has one row for each row, whatever dies; one cluster of two nodes, about a minute."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from reasonrt import Runtime, batch_dataset
from reasonrt.config import Config
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EvalError, RequestError
from reasonrt.evals.batch import BatchResult
from reasonrt.evals.dataset import _Replica
from reasonrt.evals.run import PolicySpec
from reasonrt.serve.backends.ray_token import provide_token
from tests.waiting import wait_until

pa = pytest.importorskip("pyarrow")
ray_app: Any = pytest.importorskip("reasonrt.serve.backends.ray")  # Ray reads what this sets as it is imported
ray = pytest.importorskip("ray")
ray_data = pytest.importorskip("ray.data")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # of its own defaults
]

ROOT = Path(__file__).parents[2]


class Dying(ScriptedEngine):
    """Dies as often as it is told to, each time that it is asked; counts what runs."""

    deaths = 0
    most_running = 0

    async def work(self, num_tokens: int, life: int) -> None:
        self.most_running = max(self.most_running, self.running)
        if self.deaths:
            self.deaths -= 1
            self.kill()
        await super().work(num_tokens, life)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Dying:
    """What a replica in this process solves with."""
    engine = Dying("target", r"\boxed{7}", max_model_len=2000)
    monkeypatch.setattr(Runtime, "of", lambda config, policies: Runtime({"target": engine}))
    return engine


def replica(concurrency: int = 16) -> _Replica:
    return _Replica(Config(), ".", PolicySpec("target"), "result", concurrency)


def solve(rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    solved: list[dict[str, Any]] = replica(**settings)(pa.Table.from_pylist(rows)).to_pylist()
    return solved


@pytest.mark.usefixtures("engine")
def test_a_row_that_cannot_be_solved_has_an_error_in_its_place() -> None:
    said = [{"role": "user", "content": "How are you?"}]
    rows: list[dict[str, Any]] = [{"id": 1, "question": "a?", "messages": None, "body": None}]
    rows += [{"messages": said}, {"custom_id": "x", "body": {"messages": said}}, {"id": 4}, {"messages": []}]
    rows += [{"messages": [{"role": "user", "content": None}]}, {"question": "x" * 3000}, {"prompt": 7}]

    results = [row["result"] for row in solve([{**dict.fromkeys(set().union(*rows)), **row} for row in rows])]

    assert [result["id"] for result in results] == ["1", "", "x", "4", "", "", "", ""]
    assert [result["answer"] for result in results] == ["7", "7", "7", "", "", "", "", "7"]
    assert [bool(result["error"]) for result in results] == [not result["answer"] for result in results]
    assert {results[index]["error"] for index in (3, 4, 5)} == {
        "a row needs a question, or messages with role and content"
    }
    assert "the prompt has 30" in results[6]["error"]


@pytest.mark.usefixtures("engine")
def test_what_comes_out_has_the_fields_of_a_batch_and_the_types_that_went_in() -> None:
    rows = pa.table({"question": ["a", "b"], "result": [1, 2], "answer": [[1.5], []], "image": [b"\x00", None]})

    solved = replica()(rows)

    assert solved.drop_columns("result") == rows.drop_columns("result")
    first, _ = solved["result"].to_pylist()
    texts = {name: first.pop(name) for name in ("usage", "details", "warnings")}
    assert list(first) == [name for name in BatchResult.__slots__ if name not in texts]
    assert json.loads(texts["usage"])["target"]["generated"] == 10
    assert replica()(rows.slice(0, 0)).schema == solved.schema


def test_what_an_engines_death_has_ended_is_asked_once_more(engine: Dying) -> None:
    engine.deaths = 1
    assert [row["result"]["answer"] for row in solve([{"question": "a"}] * 3)] == ["7"] * 3

    engine.deaths = 2
    with pytest.raises(EvalError, match=r"an engine failed twice on row '5': .* died; .* max_errored_blocks"):
        solve([{"id": 5, "question": "a"}])


@pytest.mark.parametrize("concurrency", [1, 3])
def test_calls_in_several_threads_share_the_places_of_a_replica(concurrency: int, engine: Dying) -> None:
    engine.seconds_per_token = 0.001
    rows = pa.Table.from_pylist([{"question": str(number)} for number in range(8)])

    with ThreadPoolExecutor() as threads:
        solved = list(threads.map(replica(concurrency), [rows] * 2))

    assert [table.num_rows for table in solved] == [8, 8]
    assert engine.most_running == concurrency


def test_engines_are_closed_with_their_replica(engine: Dying, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    async def close() -> None:
        closed.set()

    monkeypatch.setattr(engine, "aclose", close)
    solving = replica()
    assert not closed.is_set()
    del solving

    assert closed.wait(60)


def test_without_ray_data_the_way_out_is_named() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import reasonrt; reasonrt.batch_dataset(None)"

    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "ConfigError: batch_dataset needs Ray Data: pip install 'reasonrt[data]'" in failed.stderr


@pytest.fixture(scope="module")
def cluster(abacus_folder: Path) -> Iterator[Any]:
    """Of two nodes; neither has room for more than one replica of two CPUs beside what Ray Data itself does."""
    from ray.cluster_utils import Cluster

    provide_token(os.environ)
    ray_app._stay_on_loopback()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(abacus_folder), str(ROOT)]))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        cluster.add_node(num_cpus=3)
        ray.init(cluster.address, log_to_driver=False, configure_logging=False, logging_level="WARNING")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def questions(num: int) -> Any:
    rows = [{"id": str(number), "question": f"What is {number} + 2?", "answer": [number]} for number in range(num)]
    dataset = ray_data.from_items(rows, override_num_blocks=1)
    dataset.context.enable_progress_bars = False
    return dataset


def write_config(folder: Path, **settings: Any) -> Path:
    engine = {"kind": "plugin", "name": "adder", **settings}
    (folder / "x.yaml").write_text(json.dumps({"engines": {"target": engine, "draft": engine}}))
    return folder / "x.yaml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policy": "magic"}, "unknown policy 'magic'"),
        ({"policy": "arbitrage@tokens=1"}, "tokens"),
        ({"policy": "block_diffusion"}, "no engine has the role 'diffusion'; there are target, draft"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"replicas": 0}, "serve.replicas.min_replicas: .* greater than or equal to 1"),
        ({"replicas": (3, 1)}, "serve.replicas: max_replicas must be at least min_replicas, 3"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_makes_no_sense_is_refused_before_anything_runs(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, RequestError), match=expected):
        batch_dataset(questions(1), config=write_config(tmp_path), **changes)


def test_what_is_no_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['a'\] is no ray\.data\.Dataset; ray\.data\.read_json\(FILE\) makes one"):
        batch_dataset(["a"])


@pytest.mark.parametrize(
    ("policy", "is_split", "options", "expected"),
    [
        ("target", False, {}, (2, 0.5)),
        ("arbitrage", False, {}, (2, 0.5)),
        ("target", True, {}, (2, 0.5)),
        ("arbitrage", True, {}, (4, 1.0)),
        ("arbitrage", True, {"num_gpus": 3, "resources": {"fast": 1}}, (4, 3)),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_a_replica_takes_what_one_of_serving_takes(
    policy: str,
    is_split: bool,
    options: dict[str, Any],
    expected: tuple[float, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_data.Dataset, "map_batches", lambda self, replica, **settings: settings)
    config = json.loads(write_config(tmp_path).read_text())
    config["serve"] = {"replicas": {"num_cpus": 2, "num_gpus": 0.5, "split": is_split, "max_replicas": 3}}
    (tmp_path / "x.yaml").write_text(json.dumps(config))

    given: Any = batch_dataset(questions(1), policy, config=tmp_path / "x.yaml", **options)

    assert (given["num_cpus"], given["num_gpus"]) == expected
    assert (given["compute"].min_size, given["compute"].max_size) == (1, 3)
    assert given.get("resources") == options.get("resources")


@pytest.mark.usefixtures("cluster")
def test_an_engine_that_cannot_start_ends_the_run_once_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("engines: {target: {model: /no/such/folder}}")
    answered = batch_dataset(questions(40), config=tmp_path / "x.yaml", replicas=1, num_cpus=1)
    before = set(ray_app.ray_state.actor_table(None))

    with pytest.raises(ray.exceptions.RayError, match="ConfigError: there is no model folder /no/such/folder; give"):
        answered.take_all()

    started = [actor for name, actor in ray_app.ray_state.actor_table(None).items() if name not in before]
    assert [actor["ActorClassName"] for actor in started].count("MapWorker(MapBatches(_Replica))") == 1


@pytest.mark.usefixtures("cluster")
def test_what_the_page_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (program,) = re.findall(r"```py\n([^`]*batch_dataset.*?)```", page, re.DOTALL)
    monkeypatch.chdir(write_config(tmp_path).rename(tmp_path / "reasonrt.yaml").parent)
    Path("questions.jsonl").write_text('{"question": "What is 40 + 2?"}\n{"id": "b", "question": null}\n')

    exec(program, {"__name__": "__main__"})  # noqa: S102

    assert sorted(capsys.readouterr().out.splitlines()) == [
        "None a row needs a question, or messages with role and content",
        "What is 40 + 2? 42",
    ]


def hosts(process: psutil.Process) -> list[psutil.Process]:
    """Processes of engines, below another one."""
    return [each for each in process.children(recursive=True) if "local_link" in "".join(command_of(each))]


def is_solving(raylet: psutil.Process) -> bool:
    return any("_Replica)).submit" in "".join(command_of(each)) for each in raylet.children(recursive=True))


def command_of(process: psutil.Process) -> list[str]:
    """None of one that has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def have_ended(processes: list[psutil.Process]) -> bool:
    return not any(map(command_of, processes))


def test_nothing_is_lost_and_nothing_comes_twice_when_a_machine_dies(cluster: Any, tmp_path: Path) -> None:
    """Its replica finds no room until the other one is done, and its engines end with it."""
    config = write_config(tmp_path, own_process=True, settings={"seconds_per_token": 0.05})
    asked = questions(160)
    asked.context.execution_options.preserve_order = True
    asked.context.wait_for_min_actors_s = 240
    (node,) = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    rows, engines, lost = [], list[psutil.Process](), list[psutil.Process]()
    for row in batch_dataset(asked, config=config, replicas=2, concurrency=8, num_cpus=2).iter_rows():
        rows.append(row)
        if not lost:
            wait_until(lambda: len(hosts(psutil.Process())) == 2)
            wait_until(partial(is_solving, raylet))
            engines, lost = hosts(psutil.Process()), hosts(raylet)
            cluster.remove_node(node, allow_graceful=False)
            wait_until(partial(have_ended, lost))

    assert [row["id"] for row in rows] == [str(number) for number in range(160)]
    assert [row["result"]["answer"] for row in rows] == [str(number + 2) for number in range(160)]
    assert [row["answer"] for row in rows] == [[number] for number in range(160)]
    assert (len(engines), len(lost)) == (2, 1)
    wait_until(partial(have_ended, [*engines, *hosts(psutil.Process())]))
