"""vLLM's own samplers, mended: in one step, a read and generations each get their own log-probabilities."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reasonrt.engines.vllm_worker import WorkerExtension

pytestmark = pytest.mark.vllm

VOCABULARY, HIGHEST = 60, 5
IDS_BY_ROW = {1: [7, 8, 9], 3: [1]}


@pytest.fixture(scope="module")
def runner() -> Any:
    from vllm.platforms import current_platform
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler

    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    sampler = Sampler()
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(sampler=sampler, rejection_sampler=RejectionSampler(sampler))
    worker.keep_reads_apart()
    return worker.model_runner


def greedy(rows: int, **fields: Any) -> Any:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    zeros = torch.zeros(rows)
    return SamplingMetadata(
        temperature=None,
        all_greedy=True,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=zeros,
        presence_penalties=zeros,
        repetition_penalties=zeros,
        output_token_ids=[[] for _ in range(rows)],
        spec_token_ids=[[] for _ in range(rows)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
        **fields,
    )


def wanted(logprobs: torch.Tensor, row: int, highest: int) -> torch.Tensor:
    return logprobs[IDS_BY_ROW[row]] if row in IDS_BY_ROW else logprobs.topk(highest).values


@pytest.mark.parametrize("highest", [None, HIGHEST])
def test_a_step_of_reads_and_generations(runner: Any, highest: int | None) -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.manual_seed(0))
    logprobs = logits.log_softmax(-1)

    output = runner.sampler(logits, greedy(5, max_num_logprobs=highest, logprob_token_ids=IDS_BY_ROW))

    given = output.logprobs_tensors.logprobs
    assert torch.allclose(given[:, 0], logprobs.amax(-1))
    for row in range(5):
        expected = wanted(logprobs[row], row, HIGHEST)
        assert torch.allclose(given[row, 1 : 1 + len(expected)], expected)


@pytest.mark.parametrize("highest", [None, 0, HIGHEST])
def test_a_step_of_reads_and_speculation(runner: Any, highest: int | None) -> None:
    """Rows 0 and 2 have two drafted tokens, of which row 0 keeps both and row 2 the first; the reads have none."""
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    num_drafts = [2, 0, 2, 0]
    logits = torch.randn(sum(num_drafts) + 4, VOCABULARY, generator=torch.manual_seed(0))
    logprobs, best = logits.log_softmax(-1), logits.argmax(-1).tolist()
    drafts = [[best[0], best[1]], [], [best[4], (best[5] + 1) % VOCABULARY], []]
    metadata = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
    metadata.target_logits_indices = torch.tensor([0, 1, 4, 5])
    metadata.bonus_logits_indices = torch.tensor([2, 3, 6, 7])

    output = runner.rejection_sampler(
        metadata, None, logits.clone(), greedy(4, max_num_logprobs=highest, logprob_token_ids=IDS_BY_ROW)
    )
    token_ids, lists = runner.rejection_sampler.parse_output(
        output.sampled_token_ids, VOCABULARY, logprobs_tensors=output.logprobs_tensors
    )

    assert token_ids == [best[0:3], [best[3]], best[4:6], [best[7]]]
    for row, first in ((0, 0), (1, 3), (2, 4), (3, 7)):
        place = lists.cu_num_generated_tokens[row]
        for index in range(len(token_ids[row])):
            expected = wanted(logprobs[first + index], row, highest or 0)
            given = torch.as_tensor(lists.logprobs[place + index])
            assert torch.allclose(given[0], logprobs[first + index].max())
            assert torch.allclose(given[1 : 1 + len(expected)], expected)
