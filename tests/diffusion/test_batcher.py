"""What a request gets does not depend on who shares its passes, its slot or its prefix."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from reasonrt.diffusion import batcher as module
from reasonrt.diffusion.ahead import PassesAhead
from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.decoding import read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.reference import Written
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.writers import Settled, Task
from reasonrt.types import FinishReason

Made = Callable[..., DiffusionModel]
Generate = Callable[..., list[Written]]

OPTIONS: tuple[dict[str, Any], ...] = (
    {"strategy": "threshold", "threshold": 0.5, "residual": True},
    {"strategy": "static", "passes": 3, "block_length": 5},
    {"strategy": "entropy", "entropy_bound": 2.0, "edit_threshold": 0.5},
    {"strategy": "factor", "factor": 2.0, "merge_commits": False, "residual": True, "residual_start": "self"},
    {"strategy": "sub_blocks", "sub_block_length": 3, "threshold": 0.6, "residual": True, "residual_top_k": 4},
    {"strategy": "sequential", "residual": True, "residual_start": "dirichlet"},
)


def make_job(
    model: DiffusionModel, seed: int, temperature: float = 0.0, prompt: tuple[int, ...] = (), **options: Any
) -> Job:
    """A request that depends on `seed` alone."""
    rng = random.Random(seed)
    chosen = options or dict(rng.choice(OPTIONS))
    if model.shape.context == "causal" and not options and rng.random() < 0.3:
        chosen = {"strategy": "self_speculation"}
    if model.shape.context == "full" and not options and rng.random() < 0.3:
        chosen = {"strategy": "adaptive", "threshold": 0.5, "caching": rng.choice(("dual", "prefix", "none"))}
    prompt = prompt or tuple(rng.randrange(4, 40) for _ in range(rng.randrange(1, 20)))
    task = Task(prompt, rng.randrange(1, 30), frozenset({1, 2}), frozenset(range(10, 15)))
    return Job(task, read_decoding(chosen, model.shape), Drawing(temperature, 0.9, seed), _ignore)


def _ignore(job: Job, settled: Settled) -> None:
    """For `Job.report`."""


def alone(generate: Generate, model: DiffusionModel, job: Job) -> Written:
    [written] = generate(Batcher(model, 1, 64), [job])
    return written


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("context", ["block", "causal", "full"])
def test_alone_and_in_a_crowd_that_joins_and_leaves_a_request_gets_the_same(
    tiny_model: Made, generate: Generate, context: str, dtype: torch.dtype, temperature: float
) -> None:
    model = tiny_model(seed=1, dtype=dtype, context=context)
    seeds = range(9)
    joins = [random.Random(seed).randrange(12) for seed in seeds]

    crowd = generate(Batcher(model, 6, 64), [make_job(model, seed, temperature) for seed in seeds], joins)

    for seed, written in zip(seeds, crowd, strict=True):
        single = alone(generate, model, make_job(model, seed, temperature))
        assert (written.tokens, written.finish, written.passes) == (single.tokens, single.finish, single.passes)


@pytest.mark.parametrize("context", ["block", "causal"])
@pytest.mark.parametrize("seed", range(4))
def test_merging_commits_changes_no_token_and_saves_a_pass_a_block(
    tiny_model: Made, generate: Generate, context: str, seed: int
) -> None:
    model = tiny_model(seed=seed, context=context)
    task = Task(tuple(range(5, 16)), 40, frozenset())
    jobs = [
        Job(task, read_decoding({"threshold": 0.5, "merge_commits": merge}, model.shape), Drawing(), _ignore)
        for merge in (True, False)
    ]

    merged, apart = (alone(generate, model, job) for job in jobs)

    assert merged.tokens == apart.tokens
    assert merged.logprobs == pytest.approx(apart.logprobs, abs=1e-12)
    num_blocks = 6 if context == "block" else 5  # the 11 tokens of the prompt end inside a block
    assert apart.passes - merged.passes == num_blocks - 1


@pytest.mark.parametrize("context", ["block", "causal"])
def test_merging_a_commit_writes_the_keys_and_values_of_two_passes(
    tiny_model: Made, generate: Generate, context: str
) -> None:
    """With residual context: the committed rows read plain embeddings in both."""
    model, task = tiny_model(context=context), Task(tuple(range(5, 16)), 29, frozenset())
    batchers = [Batcher(model, 1, 64) for _ in range(3)]
    options = {"threshold": 0.5, "residual": True}

    for batcher, merge in zip(batchers, (True, False), strict=False):
        decoding = read_decoding(options | {"merge_commits": merge}, model.shape)
        [written] = generate(batcher, [Job(task, decoding, Drawing(), _ignore)])
    plain = Task((*task.prompt, *written.tokens), 1, frozenset())
    generate(batchers[2], [Job(plain, read_decoding({"residual": False}, model.shape), Drawing(), _ignore)])

    merged, apart, read = (
        torch.stack([*batcher._cache.keys, *batcher._cache.values])[:, 0, :32] for batcher in batchers
    )
    assert torch.allclose(merged, apart, rtol=0, atol=1e-12)
    assert torch.allclose(merged, read, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("context", ["block", "causal"])
def test_a_prefix_is_reused_by_whole_blocks_and_changes_nothing(
    tiny_model: Made, generate: Generate, context: str, is_shifted: bool
) -> None:
    model = tiny_model(seed=2, context=context, is_shifted=is_shifted)
    first, second = tuple(range(4, 24)), (*range(4, 23), 30, 31, 32)  # 19 tokens in common, blocks of 8

    for prompt in (second, first, first[:16], first[:3]):
        batcher = Batcher(model, 1, 64)
        generate(batcher, [make_job(model, 0, prompt=first, threshold=0.5)])
        again = make_job(model, 0, prompt=prompt, threshold=0.5)
        [written] = generate(batcher, [again])

        fresh = alone(generate, model, make_job(model, 0, prompt=prompt, threshold=0.5))
        assert (written.tokens, written.passes) == (fresh.tokens, fresh.passes)
        common = 19 if prompt == second else len(prompt)
        assert again.cached == (common if context == "causal" else common // 8 * 8)


def test_a_prefix_is_copied_from_a_busy_slot(tiny_model: Made, generate: Generate) -> None:
    model = tiny_model(seed=2)
    prompt = tuple(range(4, 24))
    jobs = [make_job(model, seed, prompt=(*prompt, seed + 4), strategy="sequential") for seed in range(3)]

    crowd = generate(Batcher(model, 3, 64), jobs, joins=[0, 2, 3])

    assert [job.cached for job in jobs] == [0, 16, 16]
    for seed, written in enumerate(crowd):
        job = make_job(model, seed, prompt=(*prompt, seed + 4), strategy="sequential")
        assert written.tokens == alone(generate, model, job).tokens


def test_different_salts_and_different_blocks_share_nothing(tiny_model: Made, generate: Generate) -> None:
    model, prompt = tiny_model(seed=2), tuple(range(4, 24))
    batcher = Batcher(model, 3, 64)
    jobs = [make_job(model, 0, prompt=prompt, strategy="sequential") for _ in range(3)]
    jobs[1].salt = "another"
    jobs[2].decoding = read_decoding({"block_length": 4}, model.shape)

    generate(batcher, jobs, joins=[0, 3, 3])

    assert [job.cached for job in jobs] == [0, 0, 0]


def test_a_request_that_is_cancelled_within_a_block_leaves_no_trace(tiny_model: Made, generate: Generate) -> None:
    """Who comes after reads the blocks that it finished, not the one in flight."""
    model = tiny_model(seed=2)
    batcher = Batcher(model, 2, 64)
    decoding = read_decoding({"strategy": "sequential", "residual": True}, model.shape)
    settled: list[int] = []
    leaver = Job(
        Task(tuple(range(4, 24)), 20, frozenset()), decoding, Drawing(), lambda _, part: settled.extend(part.tokens)
    )
    other = make_job(model, 2, strategy="sequential")
    for job in (leaver, other):
        batcher.add(job)
    for _ in range(6):
        batcher.step()

    batcher.cancel(leaver)
    batcher.cancel(leaver)
    task = Task((*range(4, 24), *settled, *range(4, 14)), 8, frozenset())
    heir = Job(task, decoding, Drawing(), _ignore)
    [after] = generate(batcher, [heir])

    assert (len(settled), leaver.passes) == (6, 6)  # 4 of the first block, 2 of the next
    assert heir.cached == 24
    assert after.tokens == alone(generate, model, Job(task, decoding, Drawing(), _ignore)).tokens
    single = alone(generate, model, make_job(model, 2, strategy="sequential"))
    assert other.writer.ids[len(other.task.prompt) :] == single.tokens


def test_a_waiting_request_can_be_cancelled(tiny_model: Made, generate: Generate) -> None:
    model = tiny_model()
    batcher = Batcher(model, 1, 64)
    jobs = [make_job(model, seed, strategy="sequential") for seed in range(2)]
    batcher.add(jobs[0])
    batcher.step()
    batcher.add(jobs[1])

    batcher.cancel(jobs[1])
    batcher.cancel(jobs[0])

    assert batcher.is_idle
    assert (jobs[0].passes, jobs[1].passes) == (1, 0)


def test_a_report_may_cancel_another_request(tiny_model: Made) -> None:
    model = tiny_model()
    batcher = Batcher(model, 2, 64)
    first, second = (make_job(model, seed, strategy="sequential") for seed in range(2))
    reported = []

    def cancel_second(job: Job, settled: Settled) -> None:
        batcher.cancel(second)

    first.report = cancel_second
    second.report = lambda job, settled: reported.append(settled)
    for job in (first, second):
        batcher.add(job)
    while not batcher.is_idle:
        batcher.step()

    assert not reported


def test_chunks_of_logits_and_of_prompts_change_nothing(
    tiny_model: Made, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(seed=3)
    whole = generate(Batcher(model, 4, 64), [make_job(model, seed) for seed in range(4)])

    monkeypatch.setattr(module, "_LOGIT_BYTES", 1)
    monkeypatch.setattr(module, "MOST_CONTEXT", 8)
    parts = generate(Batcher(model, 4, 64), [make_job(model, seed) for seed in range(4)])

    assert [written.tokens for written in parts] == [written.tokens for written in whole]


@pytest.mark.parametrize("context", ["block", "causal", "full"])
def test_neither_the_mask_nor_padding_is_ever_written(tiny_model: Made, generate: Generate, context: str) -> None:
    """Though the model wants nothing else, and the prompt has them."""
    model = deepcopy(tiny_model(context=context, mask_token_id=3))
    model.head.weight[[3, *range(40, 48)]] *= 100
    task = Task((5, 3, 41, 3), 20, frozenset())

    [cold, hot] = generate(
        Batcher(model, 2, 64),
        [
            Job(task, read_decoding({"threshold": 0.0}, model.shape), drawing, _ignore)
            for drawing in (Drawing(), Drawing(2.0, seed=0))
        ],
    )

    for written in (cold, hot):
        assert len(written.tokens) == 20
        assert written.finish is FinishReason.LENGTH
        assert not {3, *range(40, 48)} & set(written.tokens)


@pytest.mark.parametrize("start", ["cold", "self", "dirichlet", "reference"])
def test_each_residual_start_is_another_first_pass(tiny_model: Made, generate: Generate, start: str) -> None:
    model, starter = tiny_model(seed=2), tiny_model(seed=3)
    task = Task(tuple(range(4, 15)), 12, frozenset())
    logits: list[torch.Tensor] = []

    def run(**options: Any) -> torch.Tensor:
        logits.clear()
        decoding = read_decoding({"strategy": "sequential"} | options, model.shape, has_reference=True)
        job = Job(
            task, decoding, Drawing(seed=0), _ignore, watch=lambda _, stats, values: logits.append(values.clone())
        )
        generate(Batcher(model, 1, 64, starter), [job])
        return logits[1 if options.get("residual_start") == "self" else 0]

    plain, begun = run(residual=False), run(residual=True, residual_start=start)

    assert torch.allclose(plain, begun) == (start == "cold")


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("context", ["block", "causal"])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.5, "residual": False},
        {"threshold": 1.0, "residual": True},
        {"threshold": 0.3, "residual": True, "residual_top_k": 4, "residual_start": "dirichlet"},
        {"threshold": 0.7, "residual": True, "residual_temperature": 2.0, "residual_scaled": True},
        {"threshold": 0.5, "residual": True, "residual_weight": 0.5, "merge_commits": False},
    ],
    ids=str,
)
def test_passes_that_follow_each_other_unseen_give_the_same(
    tiny_model: Made, generate: Generate, options: dict[str, Any], context: str, is_shifted: bool
) -> None:
    """In a crowd, over several blocks, and next to a text that ends first; passes in vain are counted."""
    model = tiny_model(seed=4, context=context, is_shifted=is_shifted)
    jobs = [[make_job(model, seed, **options) for seed in range(5)] for _ in range(3)]
    one, *others = (
        generate(Batcher(model, 4, 64, passes_together=together), crowd, joins=[0, 0, 3, 4, 5])
        for together, crowd in zip((1, 2, 5), jobs, strict=True)
    )

    for other in others:
        for single, written in zip(one, other, strict=True):
            assert (written.tokens, written.finish) == (single.tokens, single.finish)
            assert written.passes >= single.passes
            assert written.logprobs == pytest.approx(single.logprobs, abs=1e-9)


def test_passes_follow_each_other_unseen_only_where_the_device_knows_the_rule(
    tiny_model: Made, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = tiny_model(seed=4), list[int]()
    monkeypatch.setattr(module, "PassesAhead", _counting(steps))

    for options, temperature, runs in (
        ({"threshold": 0.5}, 0.0, True),
        ({"threshold": 0.5}, 0.7, False),
        ({"strategy": "entropy"}, 0.0, False),
        ({"threshold": 0.5, "edit_threshold": 0.5}, 0.0, False),
        ({"threshold": 0.5, "residual": True, "residual_start": "self"}, 0.0, False),
    ):
        steps.clear()
        generate(Batcher(model, 1, 64, passes_together=3), [make_job(model, 1, temperature, **options)])
        assert bool(steps) == runs
    full = tiny_model(seed=4, context="full")
    generate(Batcher(full, 1, 64, passes_together=3), [make_job(full, 1, threshold=0.5)])
    assert not steps


def _counting(steps: list[int]) -> Callable[..., PassesAhead]:
    def make(*arguments: Any) -> PassesAhead:
        steps.append(1)
        return PassesAhead(*arguments)

    return make
