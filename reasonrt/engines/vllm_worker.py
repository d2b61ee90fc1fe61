"""What vLLM's workers do for us beside their own work; vLLM mixes it into its worker class and imports it there.

vLLM's V1 model runner gathers, for all of a batch, either the highest log-probabilities or those of the ids that a
read asks for. A generation that shares a step with a read would get minus infinity, and a read that shares one with
speculation nothing, or the engine's death. The V2 runner, which GPUs use, does it row by row and is left alone.

Of the tokens of a prompt, vLLM tells the most probable ones. A verification at a temperature wants one that is drawn:
it is drawn here, on the V1 runner alone, and put in the place of the last one of these.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from reasonrt.engines.vllm_settings import DRAFT_ARGUMENT
from reasonrt.kernels.noise import noise_keys
from reasonrt.kernels.speculative_verify import speculative_verify

_MOST = 20  # the most log-probabilities that a generation can ask for


def allow_amx() -> None:
    """Ask Linux for the tile registers of x86-64 CPUs, without which vLLM's own server died of an illegal instruction.

    Each process that computes must ask.
    """
    if sys.platform == "linux" and platform.machine() == "x86_64":
        # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); an error of a CPU that has none means nothing
        ctypes.CDLL(None).syscall(158, 0x1023, 18)


allow_amx()  # on import: it is vLLM that imports this module, in each of its workers


class WorkerExtension:
    """Method names here must not be those of vLLM's own worker."""

    model_runner: Any

    def give_way(self, niceness: int) -> None:
        """Lower the priority of every thread of this process; 0 leaves them as they are."""
        if niceness and sys.platform == "linux":  # elsewhere a thread has no priority of its own
            for thread in os.listdir("/proc/self/task"):
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.setpriority(os.PRIO_PROCESS, int(thread), niceness)

    def keep_reads_apart(self) -> None:
        """Give each row of a batch its own log-probabilities, once the model is loaded."""
        sampler = self.model_runner.sampler
        if not hasattr(sampler, "gather_specific_token_logprobs"):
            return
        sampler.gather_specific_token_logprobs = _gather_for_all(sampler.gather_specific_token_logprobs)
        rejection_sampler = getattr(self.model_runner, "rejection_sampler", None)
        if rejection_sampler is not None:
            rejection_sampler.forward = _verify_for_all(rejection_sampler.forward)

    def draw_in_place_of_drafts(self) -> bool:
        """Let verifications draw, once the model is loaded. Returns whether this runner can."""
        gather = getattr(self.model_runner, "_get_prompt_logprobs_dict", None)
        if gather is not None:
            self.model_runner._get_prompt_logprobs_dict = _draw_in_place_of_drafts(self.model_runner, gather)
        return gather is not None


@dataclass(frozen=True, slots=True)
class _Drafted:
    """What one pass reads of one verification's draft.

    Attributes:
        request_id: vLLM's.
        begin, end: places in the prompt.
        row: of the hidden states, that predicts the token at `begin`.
    """

    request_id: str
    begin: int
    end: int
    row: int


def _draw_in_place_of_drafts(runner: Any, gather: Callable[..., Any]) -> Callable[..., Any]:
    def draw_in_place_of_drafts(hidden_states: Any, num_scheduled: Mapping[str, int]) -> Any:
        drafts = _drafts_of(runner, num_scheduled)
        tables = gather(hidden_states, num_scheduled)  # for each request whose prompt ends in this pass
        if drafts:
            places = [row for draft in drafts for row in range(draft.row, draft.row + draft.end - draft.begin)]
            logits = runner.model.compute_logits(hidden_states[places])
            found, first = _verify(runner, drafts, logits), 0
            for draft, accepted, token in zip(drafts, found.accepted.tolist(), found.tokens.tolist(), strict=True):
                unfinished = runner.requests[draft.request_id].in_progress_prompt_logprobs_cpu
                logprob = float(logits[first + accepted].float().log_softmax(-1)[token]) if token >= 0 else 0.0
                _tell(tables.get(draft.request_id, unfinished), draft, accepted, token, logprob)
                first += draft.end - draft.begin
        return tables

    return draw_in_place_of_drafts


def _tell(table: Any, draft: _Drafted, accepted: int, token: int, logprob: float) -> None:
    """Put what was drawn into the last column of vLLM's table, of the prompt's own tokens and the most probable ones.

    It begins with the second place of the prompt. No other token has the rank of that column then.
    """
    begin = draft.begin - 1
    end = begin + accepted
    for columns in (table.logprob_token_ids, table.logprobs):
        columns[begin:end, -1] = columns[begin:end, 0]
    if token >= 0:
        table.logprob_token_ids[end, -1], table.logprobs[end, -1] = token, logprob
        table.selected_token_ranks[end] = table.logprobs.shape[1]


def _drafts_of(runner: Any, num_scheduled: Mapping[str, int]) -> list[_Drafted]:
    """Of the verifications that draw and take part in this pass; `runner` forgets them as their prompt ends."""
    drafts = []
    for request_id in runner.num_prompt_logprobs:
        request, num_tokens = runner.requests[request_id], num_scheduled.get(request_id, 0)
        argument = (request.sampling_params.extra_args or {}).get(DRAFT_ARGUMENT)
        if argument is not None:
            computed, length = request.num_computed_tokens, len(request.prompt_token_ids)
            begin, end = max(computed + 1, length - argument[0]), min(computed + num_tokens + 1, length)
            first = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]]) if num_tokens else 0
            if begin < end:
                drafts.append(_Drafted(request_id, begin, end, first + begin - 1 - computed))
    return drafts


def _verify(runner: Any, drafts: Sequence[_Drafted], logits: torch.Tensor) -> Any:
    requests = [runner.requests[draft.request_id] for draft in drafts]
    drafted, keys = list[int](), list[int]()
    for request, draft in zip(requests, drafts, strict=True):
        seed = request.sampling_params.extra_args[DRAFT_ARGUMENT][1]
        drafted += request.prompt_token_ids[draft.begin : draft.end]
        keys += noise_keys(seed, range(draft.begin, draft.end))
    made = [request.sampling_params for request in requests]
    return speculative_verify(
        logits,
        logits.new_tensor(drafted, dtype=torch.int64),
        logits.new_tensor([draft.end - draft.begin for draft in drafts], dtype=torch.int64),
        logits.new_tensor(keys, dtype=torch.int64),
        logits.new_tensor([params.temperature for params in made], dtype=torch.float64),
        logits.new_tensor([params.top_p for params in made], dtype=torch.float64),
    )


def _gather_for_all(gather: Callable[..., Any]) -> Callable[..., Any]:
    def gather_for_all(logprobs: Any, ids_by_row: Mapping[int, Sequence[int]], sampled: Any) -> Any:
        chosen = gather(logprobs, ids_by_row, sampled)
        others = [row for row in range(len(logprobs)) if row not in ids_by_row]
        if not others:
            return chosen
        highest = logprobs[others].topk(min(_MOST, logprobs.shape[-1]))
        return _with_rows(chosen, others, highest.indices, highest.values)

    return gather_for_all


def _verify_for_all(verify: Callable[..., Any]) -> Callable[..., Any]:
    def verify_for_all(metadata: Any, draft_probs: Any, logits: Any, sampling: Any) -> Any:
        if not sampling.logprob_token_ids:
            return verify(metadata, draft_probs, logits, sampling)
        ids_by_row = sampling.logprob_token_ids
        # nothing is drafted for a read, it ends after one token: its only logits are the bonus ones
        read = {row: logits[metadata.bonus_logits_indices[row]].float().log_softmax(-1) for row in ids_by_row}
        without_reads = replace(sampling, logprob_token_ids=None, max_num_logprobs=sampling.max_num_logprobs or 0)
        output = verify(metadata, draft_probs, logits, without_reads)
        places, table = output.sampled_token_ids.shape[1], output.logprobs_tensors
        for row, ids in ids_by_row.items():
            chosen = table.logprob_token_ids.new_tensor([ids])
            table = _with_rows(table, [row * places], chosen, read[row][chosen.long()])
        return replace(output, logprobs_tensors=table)

    return verify_for_all


def _with_rows(table: Any, rows: Sequence[int], token_ids: Any, logprobs: Any) -> Any:
    """vLLM's `table` of log-probabilities, with those of `rows` replaced after the first column: [rows, columns]."""
    height, width = table.logprobs.shape
    columns = token_ids.shape[1]
    wide_ids = table.logprob_token_ids.new_zeros((height, max(width, 1 + columns)))
    wide = table.logprobs.new_full(wide_ids.shape, float("-inf"))
    wide_ids[:, :width], wide[:, :width] = table.logprob_token_ids, table.logprobs
    wide_ids[rows, 1 : 1 + columns], wide[rows, 1 : 1 + columns] = token_ids.to(wide_ids.dtype), logprobs
    return table._replace(logprob_token_ids=wide_ids, logprobs=wide)
