"""What a request says of decoding reaches the engine, and nothing else does; the engine's tokens become steps."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.config import DiffusionConfig
from reasonrt.diffusion.decoding import Decoding
from reasonrt.engines.build import build_engine
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import CapabilityError, RequestError
from reasonrt.options import option_names
from reasonrt.policies.block_diffusion import BlockDiffusion
from reasonrt.policies.registry import build_policy
from reasonrt.policies.stopping.rules import LowerThreshold
from reasonrt.policies.stopping.signals import Recorded
from reasonrt.types import Sampling

STEPS = ["<think>\nOne.\n\n", "Two.\n\n", "</think>\n\n", r"\boxed{7}"]


class Recorder(ScriptedEngine):
    """Takes any schedule, and remembers which."""

    def __init__(self, name: str = "diffusion", **settings: Any) -> None:
        super().__init__(name, continuing("".join(STEPS)), **settings)
        self.samplings: list[Sampling] = []

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        self.samplings.append(sampling)
        return super().generate(prompt_token_ids, replace(sampling, decoding={}), cache_salt)


async def solve(options: Mapping[str, Any], **fields: Any) -> tuple[Completion, Recorder]:
    engine = Recorder(chunk_tokens=9)
    request = Request.ask("?", "block_diffusion", options=options, **fields)
    return await Runtime({"diffusion": engine}).complete(request), engine


async def test_the_engine_gets_the_options_that_were_set_and_no_others() -> None:
    options = {"strategy": "entropy", "entropy_bound": 1, "edit_threshold": None, "residual": False}

    _, engine = await solve(options)
    _, bare = await solve({})

    assert engine.samplings[0].decoding == options
    assert type(engine.samplings[0].decoding["entropy_bound"]) is float
    assert bare.samplings[0].decoding == {}


async def test_tokens_become_steps_of_the_engine() -> None:
    completion, engine = await solve({"threshold": 0.8})

    assert [step.text for step in completion.steps] == STEPS
    assert {step.author for step in completion.steps} == {"diffusion"}
    assert completion.content == r"\boxed{7}"
    assert completion.usage["diffusion"].generated == engine.generated_tokens
    assert completion.usage["diffusion"].discarded == 0


async def test_temperature_seed_and_limit_reach_the_engine() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "limits": Limits(max_tokens=20)}

    completion, engine = await solve({"block_length": 8}, **fields)

    expected = Sampling(20, temperature=0.5, top_p=0.9, seed=3, decoding={"block_length": 8})
    assert engine.samplings == [expected]
    assert completion.finish_reason is FinishReason.LENGTH
    assert "".join(STEPS).startswith(completion.text)


async def test_it_continues_after_what_is_committed() -> None:
    whole, _ = await solve({})

    completion, _ = await solve({}, committed=whole.steps[:2])

    assert completion.steps == whole.steps


async def test_another_role_may_write() -> None:
    engines = {role: Recorder(role) for role in ("draft", "diffusion")}
    request = Request.ask("?", "block_diffusion", options={"engine": "draft", "strategy": "sequential"})

    completion = await Runtime(engines).complete(request)

    assert {step.author for step in completion.steps} == {"draft"}
    assert not engines["diffusion"].samplings


async def test_an_engine_without_the_schedule_says_so() -> None:
    runtime = Runtime({"diffusion": ScriptedEngine("diffusion", "One.")})

    with pytest.raises(CapabilityError, match="writes token by token; leave decoding 'threshold' out"):
        await runtime.complete(Request.ask("?", "block_diffusion", options={"threshold": 0.5}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 3}, "unknown option 'blocks'; block_diffusion knows block_length, caching, "),
        ({"engine": ""}, "block_diffusion: engine"),
        ({"threshold": 1.5}, r"threshold must be a number in \[0, 1\], got 1.5"),
        ({"threshold": "0.5"}, r"threshold must be a number in \[0, 1\], got '0.5'"),
        ({"strategy": "best"}, "strategy must be one of sequential, static, "),
        ({"block_length": 0}, r"block_length must be a whole number in \[1, 512\] or null, got 0"),
        ({"residual": "yes"}, "residual must be true or false or null, got 'yes'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        BlockDiffusion.from_options(options)

    assert "\n" not in str(refused.value)


def test_every_option_of_decoding_is_one_of_the_policy() -> None:
    options = {name: getattr(Decoding(), name) for name in option_names(Decoding)}

    policy = build_policy("block_diffusion", options)

    assert policy.settings == {"engine": "diffusion", **options}


@pytest.fixture(scope="module")
async def runtime(diffusion_folder: Callable[..., Path]) -> AsyncIterator[Runtime]:
    """Of a tiny model with random weights."""
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder()), own_process=False, max_model_len=512)
    async with Runtime({"diffusion": build_engine("diffusion", config)}) as runtime:
        yield runtime


async def test_a_stopping_rule_ends_the_text_after_a_probe_of_the_engine(runtime: Runtime) -> None:
    rule = LowerThreshold(Recorded("confidence"), shift_tokens=0, slope_per_token=1, low=0.5, high=0.5)
    stopping = {"rule": asdict(rule), "schedule": {"first_tokens": 16, "block_tokens": 8}}
    request = Request.ask(
        "What is 3 + 4?", "block_diffusion", options={"stopping": stopping}, limits=Limits(max_tokens=400)
    )

    completion = await runtime.complete(request)

    stopped = completion.details["stopping"]
    assert stopped["action"] == "give_up"
    assert stopped["probe_tokens"] > 0
    assert sum(len(step.token_ids) for step in completion.steps) < 100
    assert completion.usage["diffusion"].discarded > stopped["probe_tokens"]  # and what was written meanwhile
    assert completion.usage["diffusion"].canvas > 0


async def test_usage_is_the_streams_own_count(runtime: Runtime) -> None:
    limits = Limits(max_tokens=50)

    sure = await runtime.complete(Request.ask("?", "block_diffusion", options={"threshold": 1.0}, limits=limits))
    unsure = await runtime.complete(Request.ask("?", "block_diffusion", options={"threshold": 0.3}, limits=limits))

    assert sure.usage["diffusion"].passes == 50
    assert unsure.usage["diffusion"].passes < 50
    for completion in (sure, unsure):
        usage = completion.usage["diffusion"]
        assert usage.canvas == 8 * usage.passes
        assert usage.generated - usage.discarded == sum(len(step.token_ids) for step in completion.steps)


async def test_a_deadline_keeps_what_was_committed_by_then(runtime: Runtime) -> None:
    limits = Limits(max_tokens=480, deadline_s=0.05)  # for 480 passes

    completion = await runtime.complete(Request.ask("?", "block_diffusion", options={"threshold": 1.0}, limits=limits))

    assert completion.finish_reason is FinishReason.DEADLINE
    assert completion.seconds < 20


async def test_a_budget_counts_tokens_that_have_settled(runtime: Runtime) -> None:
    limits = Limits(max_tokens=400, max_generated_tokens=64)

    completion = await runtime.complete(Request.ask("?", "block_diffusion", limits=limits))

    assert completion.finish_reason is FinishReason.BUDGET
    assert 64 <= completion.usage["diffusion"].generated < 64 + 8


@pytest.mark.parametrize("own_process", [True, False])
def test_what_the_model_cannot_do_is_refused_before_the_engine_runs(
    diffusion_folder: Callable[..., Path], own_process: bool
) -> None:
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder()), own_process=own_process)
    runtime = Runtime({"diffusion": build_engine("diffusion", config)})

    with pytest.raises(RequestError, match="strategy 'adaptive' needs a model that attends to what follows"):
        runtime.prepare(Request.ask("?", "block_diffusion", options={"strategy": "adaptive"}))
    runtime.prepare(Request.ask("?", "block_diffusion", options={"strategy": "factor"}))
