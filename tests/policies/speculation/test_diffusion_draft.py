"""A diffusion model as the draft: what it writes is judged, verified and kept like any draft's.

The target is a diffusion model too, one that writes token by token: what it verifies and what it writes agree.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, Limits, Request, Runtime
from reasonrt.config import DiffusionConfig
from reasonrt.engines.build import build_engine
from reasonrt.ports import Engine

LIMITS = Limits(max_tokens=90)
QUESTION = "What is 3 + 4?"
KEEP_NONE = {"threshold": -1.0, "answer_threshold": -1.0}
KEEP_ALL = {"threshold": 1e6, "answer_threshold": 1e6}


@pytest.fixture(scope="module")
async def runtime(diffusion_folder: Callable[..., Path]) -> AsyncIterator[Runtime]:
    """Two models that agree on many tokens: the weights are the same, the positions are not."""

    def build(role: str, folder: Path, **decoding: Any) -> Engine:
        config = DiffusionConfig(kind="diffusion", model=str(folder), own_process=False, decoding=decoding)
        return build_engine(role, config)

    engines = {
        "draft": build("draft", diffusion_folder(), threshold=0.3),
        "target": build("target", diffusion_folder(rope_theta=9000.0), strategy="self_speculation"),
    }
    async with Runtime(engines) as runtime:
        yield runtime


async def solve(runtime: Runtime, policy: str, **options: Any) -> Completion:
    return await runtime.complete(Request.ask(QUESTION, policy, options=options, limits=LIMITS))


async def test_verified_everywhere_the_text_is_the_targets(runtime: Runtime) -> None:
    alone = await solve(runtime, "target")

    speculated = await solve(runtime, "entropy", verify=True, **KEEP_NONE)

    kept = sum(len(step.token_ids) for step in speculated.steps if step.author == "draft")
    assert not speculated.details["fallback"]
    assert speculated.details["verifications"] > 0
    assert kept > 0
    assert alone.text.startswith(speculated.text)
    assert len(speculated.text) > len(alone.text) / 2  # the last step is left out where it does not fit
    assert speculated.usage["draft"].canvas == 8 * speculated.usage["draft"].passes


async def test_kept_everywhere_the_text_is_the_drafts(runtime: Runtime) -> None:
    alone = await solve(runtime, "draft")

    speculated = await solve(runtime, "entropy", **KEEP_ALL)

    assert speculated.text == alone.text
    assert {step.author for step in speculated.steps} == {"draft"}
    assert all(len(step.top_logprobs) == len(step.token_ids) for step in speculated.steps)


async def test_in_lock_step_each_step_reads_the_cache(runtime: Runtime) -> None:
    """A draft that stops at each boundary is asked again for the next step, with a prompt that it has just written."""
    speculated = await solve(runtime, "random", look_ahead=0, threshold=0.5, reject_early=False)

    usage = speculated.usage["draft"]
    assert not speculated.details["fallback"]
    assert usage.calls > 2
    assert usage.cached > usage.prefilled
    assert runtime.engines["draft"].running == runtime.engines["target"].running == 0  # type: ignore[attr-defined]


async def test_a_draft_that_edits_leaves_the_text_to_the_target(
    runtime: Runtime, diffusion_folder: Callable[..., Path]
) -> None:
    """Its log-probabilities are not settled when they would be needed; the completion says so."""
    decoding = {"edit_threshold": 0.9}
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder()), own_process=False, decoding=decoding)
    async with Runtime({"draft": build_engine("draft", config)}) as editing:
        runtimes = Runtime({"draft": editing.engines["draft"], "target": runtime.engines["target"]})

        speculated = await solve(runtimes, "entropy", **KEEP_ALL)

    assert "edit_threshold" in speculated.details["fallback"]
    assert {step.author for step in speculated.steps} == {"target"}
