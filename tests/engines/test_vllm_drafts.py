"""What the worker extension puts into vLLM's tables of prompt log-probabilities: tokens that are drawn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reasonrt.engines.vllm_settings import DRAFT_ARGUMENT
from reasonrt.engines.vllm_worker import WorkerExtension
from reasonrt.kernels.noise import noise_keys
from reasonrt.kernels.speculative_verify import draw

TOKENS, SEED = 50, 7
PROMPT, DRAFT = 11, 6
RNG = torch.Generator().manual_seed(0)
LOGITS = torch.randn(PROMPT + DRAFT, TOKENS, generator=RNG)  # [places, tokens], each of the place after


def own_tokens() -> list[int]:
    """What the target draws at the places of the draft, if the draft is right before."""
    keys = torch.tensor(noise_keys(SEED, range(PROMPT, PROMPT + DRAFT)), dtype=torch.int64)
    temperature, top_p = torch.full((DRAFT,), 0.8), torch.full((DRAFT,), 0.9)
    return [int(token) for token in draw(LOGITS[PROMPT - 1 : -1], keys, temperature, top_p)]


class Runner:
    """As much of vLLM's V1 runner as a pass takes: a verification, behind a request that asks for the same without."""

    def __init__(self, drafted: list[int]) -> None:
        prompt = [*range(PROMPT), *drafted]
        params = {"temperature": 0.8, "top_p": 0.9}
        self.requests = {
            name: SimpleNamespace(
                prompt_token_ids=prompt,
                num_computed_tokens=0,
                in_progress_prompt_logprobs_cpu=None,
                sampling_params=SimpleNamespace(extra_args=arguments, **params),
            )
            for name, arguments in (("plain", None), ("draws", {DRAFT_ARGUMENT: [DRAFT, SEED]}))
        }
        self.num_prompt_logprobs = dict.fromkeys(self.requests, 1)
        self.input_batch = SimpleNamespace(req_id_to_index={"plain": 0, "draws": 1})
        self.model = SimpleNamespace(compute_logits=lambda hidden_states: hidden_states)
        self.query_start_loc = SimpleNamespace(np=np.zeros(3, dtype=np.int64))

    def _get_prompt_logprobs_dict(self, hidden_states: torch.Tensor, num_scheduled: dict[str, int]) -> dict[str, Any]:
        finished = {}
        for name, num in num_scheduled.items():
            request, at = self.requests[name], self.query_start_loc.np[self.input_batch.req_id_to_index[name]]
            length, begin = len(request.prompt_token_ids), request.num_computed_tokens
            table = request.in_progress_prompt_logprobs_cpu
            if table is None:
                table = request.in_progress_prompt_logprobs_cpu = SimpleNamespace(
                    logprob_token_ids=torch.zeros(length - 1, 2, dtype=torch.int32),
                    logprobs=torch.zeros(length - 1, 2),
                    selected_token_ranks=torch.zeros(length - 1, dtype=torch.int32),
                )
            for place in range(begin, min(begin + num, length - 1)):
                row, token = hidden_states[at + place - begin], request.prompt_token_ids[place + 1]
                table.logprob_token_ids[place] = torch.tensor([token, int(row.argmax())])
                table.selected_token_ranks[place] = int((row >= row[token]).sum())
            if begin + num >= length:
                finished[name] = table
                del self.num_prompt_logprobs[name]
                request.in_progress_prompt_logprobs_cpu = None
        return finished

    def read(self, num_cached: int, chunk: int) -> dict[str, list[int]]:
        """Both prompts, so many tokens per pass, and the most probable token of each place of the draft."""
        tables: dict[str, Any] = {}
        for name in self.requests:
            self.requests[name].num_computed_tokens = num_cached
        for begin in range(num_cached, PROMPT + DRAFT, chunk):
            num = min(chunk, PROMPT + DRAFT - begin)
            self.query_start_loc.np[1:] = num, 2 * num
            rows = LOGITS[begin : begin + num].repeat(2, 1)
            tables |= self._get_prompt_logprobs_dict(rows, dict.fromkeys(self.requests, num))
            for request in self.requests.values():
                request.num_computed_tokens += num
        return {name: [most_probable(table, place) for place in range(-DRAFT, 0)] for name, table in tables.items()}


def most_probable(table: Any, place: int) -> int:
    """As vLLM makes it of the table, and the engine of that."""
    ranks = dict(zip(table.logprob_token_ids[place].tolist(), (int(table.selected_token_ranks[place]), 1), strict=True))
    return int(min(ranks, key=lambda token: ranks[token]))


@pytest.mark.parametrize("slip", [*range(DRAFT), None])
@pytest.mark.parametrize(("num_cached", "chunk"), [(0, 99), (0, 1), (0, 5), (8, 4), (10, 2), (9, 99)])
def test_drawn_tokens_stand_for_the_most_probable_ones(slip: int | None, num_cached: int, chunk: int) -> None:
    """Up to the first that is not the draft's, in however many passes the prompt is read."""
    own = own_tokens()
    assert own != LOGITS[PROMPT - 1 : -1].argmax(-1).tolist()
    drafted = list(own)
    if slip is not None:  # the most probable token, where that is not drawn, ranks first by itself
        best = int(LOGITS[PROMPT - 1 + slip].argmax())
        drafted[slip] = best if best != own[slip] else own[slip] + 1
    runner, worker = Runner(drafted), WorkerExtension()
    worker.model_runner = runner
    assert worker.draw_in_place_of_drafts()

    found = runner.read(num_cached, chunk)

    end = DRAFT if slip is None else slip + 1
    assert found["draws"][:end] == own[:end]
    assert found["plain"] == LOGITS[PROMPT - 1 : -1].argmax(-1).tolist()


def test_runner_that_gathers_otherwise_cannot() -> None:
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace()

    assert not worker.draw_in_place_of_drafts()
