"""The runtime keeps every limit, accounts for each token and keeps requests apart."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, ReasonRTError, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.registry import policy_names, register_policy, unregister_policy
from reasonrt.ports import Allowance, Engine, Engines
from reasonrt.types import PolicyEvent, Sampling, Stop

STEPS = ["<think>\nOne.\n\n", "Two.\n\n", "Three.\n\n", "</think>\n\n", r"\boxed{7}"]
TEXT = "".join(STEPS)
POLICIES = policy_names()


def make_runtime(script: Any = TEXT, **settings: Any) -> Runtime:
    script = continuing(script) if isinstance(script, str) else script
    roles = ("target", "draft", "reward", "diffusion")
    return Runtime({role: ScriptedEngine(role, script, **settings) for role in roles})


def scripted(runtime: Runtime) -> list[ScriptedEngine]:
    return [engine for engine in runtime.engines.values() if isinstance(engine, ScriptedEngine)]


def assert_adds_up(completion: Completion, runtime: Runtime) -> None:
    """Each engine's own count is the usage's, and what was not committed was discarded."""
    for engine in scripted(runtime):
        usage = completion.usage.get(engine.name)
        generated = engine.generated_tokens
        committed = sum(len(step.token_ids) for step in completion.steps if step.author == engine.name)
        assert (usage.generated if usage else 0) == generated
        assert (usage.discarded + committed if usage else 0) == generated
        assert not usage or 0 <= usage.probe <= usage.discarded
        assert not usage or usage.generated <= usage.passes <= usage.generated + usage.calls
        assert engine.running == 0


class Reader(PolicyOptions):
    """Asks both engines for everything that they can do and commits the target's first step, twice."""

    engines = ("target", "draft")

    async def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]:
        target, draft = engines["target"], engines["draft"]
        prompt = target.tokenizer.chat(request.messages)
        await target.read(prompt, [2, 3])
        await draft.score(prompt)
        for _ in range(2):
            async with aclosing(target.generate(prompt, Sampling(6, stop_token_ids=frozenset({1})))) as stream:
                ids = [i async for delta in stream for i in delta.token_ids]
            yield Step(target.tokenizer.decode(ids), tuple(ids), target.name)
        await draft.read(prompt, [2])


@pytest.fixture
def reader() -> Iterator[str]:
    register_policy("reader", Reader)
    yield "reader"
    unregister_policy("reader")


@pytest.mark.parametrize("policy", POLICIES)
async def test_solve_yields_the_steps_and_then_the_completion(policy: str) -> None:
    async with make_runtime() as runtime:
        events = [event async for event in runtime.solve(Request.ask("?", policy))]

    *steps, completion = events
    assert isinstance(completion, Completion)
    assert tuple(steps) == completion.steps
    assert [step.text for step in completion.steps] == STEPS
    assert completion.finish_reason is FinishReason.STOP
    assert completion.content == r"\boxed{7}"
    assert_adds_up(completion, runtime)


@settings(deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    max_tokens=st.integers(1, 60),
    max_calls=st.integers(1, 8),
    chunk=st.integers(1, 50),
    steps=st.lists(st.text("ab.", min_size=1, max_size=6).map(lambda text: text + "\n\n"), max_size=8),
)
async def test_usage_adds_up_under_any_limits(
    policy: str, max_tokens: int, max_calls: int, chunk: int, steps: list[str]
) -> None:
    runtime = make_runtime("".join(steps) + "end", chunk_tokens=chunk)
    limits = Limits(max_tokens=max_tokens, max_engine_calls=max_calls)

    completion = await runtime.complete(Request.ask("?", policy, limits=limits))

    assert_adds_up(completion, runtime)
    assert sum(len(step.token_ids) for step in completion.steps) <= max_tokens
    assert sum(usage.calls for usage in completion.usage.values()) <= max_calls
    assert "".join([*steps, "end"]).startswith("".join(step.text for step in completion.steps))
    assert all(step.text.strip() for step in completion.steps)


async def test_usage_counts_reads_scores_and_cached_prompts(reader: str) -> None:
    runtime = make_runtime()

    completion = await runtime.complete(Request.ask("?", reader))

    prompt = len(runtime.engines["target"].tokenizer.chat(Request.ask("?").messages))
    target, draft = completion.usage["target"], completion.usage["draft"]
    assert (target.calls, target.probe, draft.calls, draft.probe) == (3, 1, 2, 1)
    assert (target.prefilled, target.cached) == (prompt + 2, 2 * (prompt - 1))  # the read was the first to see it
    assert (draft.prefilled, draft.cached) == (prompt + 1, prompt - 1)
    assert (target.passes, draft.passes) == (target.generated, 2)  # a score is a pass that generates nothing
    assert_adds_up(completion, runtime)


async def test_one_engine_in_two_roles_is_counted_once(reader: str) -> None:
    both = ScriptedEngine("both", TEXT)
    runtime = Runtime({"target": both, "draft": both})

    completion = await runtime.complete(Request.ask("?", reader))

    assert set(completion.usage) == {"both"}
    assert_adds_up(completion, Runtime({"target": both}))


def test_two_engines_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two engines are named 'x'"):
        Runtime({"target": ScriptedEngine("x", ""), "draft": ScriptedEngine("x", "")})


@pytest.mark.parametrize("policy", ["target", "draft"])
async def test_token_limit_cuts_the_last_step_and_says_so(policy: str) -> None:
    runtime = make_runtime(chunk_tokens=3)

    completion = await runtime.complete(Request.ask("?", policy, limits=Limits(max_tokens=17)))

    assert completion.finish_reason is FinishReason.LENGTH
    assert [step.is_complete for step in completion.steps] == [True, False]
    assert TEXT.startswith("".join(step.text for step in completion.steps))
    assert_adds_up(completion, runtime)


async def test_committed_text_never_exceeds_the_token_limit(reader: str) -> None:
    runtime = make_runtime("abcde\n\n")

    completion = await runtime.complete(Request.ask("?", reader, limits=Limits(max_tokens=11)))

    assert completion.finish_reason is FinishReason.LENGTH
    assert [step.text for step in completion.steps] == ["abcde\n\n"]  # a second step of 6 tokens would be 12
    assert_adds_up(completion, runtime)


@pytest.mark.parametrize(("max_calls", "steps"), [(1, 0), (2, 0), (3, 1), (4, 2), (5, 2)])
async def test_call_limit_ends_the_request_with_what_is_committed(reader: str, max_calls: int, steps: int) -> None:
    runtime = make_runtime()

    completion = await runtime.complete(Request.ask("?", reader, limits=Limits(max_engine_calls=max_calls)))

    assert completion.finish_reason is (FinishReason.STOP if max_calls == 5 else FinishReason.CALLS)
    assert len(completion.steps) == steps
    assert sum(usage.calls for usage in completion.usage.values()) == max_calls
    assert_adds_up(completion, runtime)


@settings(deadline=None)
@given(concurrency=st.integers(1, 12), num_requests=st.integers(0, 30))
async def test_solve_all_gives_every_result_once_and_keeps_its_bound(concurrency: int, num_requests: int) -> None:
    most = 0

    def script(prompt: str, sampling: Sampling) -> str:
        nonlocal most
        most = max(most, scripted(runtime)[0].running + 1)
        return prompt.split()[1]

    runtime = make_runtime(script)
    drawn = 0

    def requests() -> Iterator[Request]:
        nonlocal drawn
        for index in range(num_requests):
            drawn += 1
            yield Request.ask(f"{index}", "nonsense" if index % 7 == 3 else "target")

    results = {}
    async for index, result in runtime.solve_all(requests(), concurrency):
        assert index not in results
        results[index] = result
        assert drawn <= len(results) + concurrency

    assert sorted(results) == list(range(num_requests))
    for index, result in results.items():
        if index % 7 == 3:
            assert isinstance(result, RequestError)
        else:
            assert isinstance(result, Completion)
            assert result.text == f"{index}"
    assert most <= concurrency


async def test_solve_all_is_stopped_by_closing_it() -> None:
    runtime = make_runtime(seconds_per_token=0.005)
    results = runtime.solve_all([Request.ask("?"), *[Request.ask("?", "self_consistency")] * 5], concurrency=4)

    await anext(results)
    await results.aclose()

    assert all(engine.running == 0 for engine in scripted(runtime))


async def test_solve_all_refuses_no_concurrency() -> None:
    with pytest.raises(RequestError, match="concurrency must be at least 1, got 0"):
        await anext(make_runtime().solve_all([], concurrency=0))


async def test_solve_all_passes_on_what_its_iterable_raises_and_stops() -> None:
    runtime = make_runtime(seconds_per_token=0.005)

    def requests() -> Iterator[Request]:
        yield Request.ask("?")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        async for _ in runtime.solve_all(requests()):
            pass
    assert all(engine.running == 0 for engine in scripted(runtime))


class Fragile(ScriptedEngine):
    def __init__(self, name: str, log: list[str], fails_at: str = "") -> None:
        super().__init__(name, "")
        self.log, self.fails_at = log, fails_at

    async def start(self) -> Self:
        self.log.append(f"start {self.name}")
        if self.fails_at == "start":
            raise EngineError(f"engine {self.name!r} does not start")
        return self

    async def aclose(self) -> None:
        self.log.append(f"close {self.name}")
        if self.fails_at == "close":
            raise EngineError(f"engine {self.name!r} does not close")


async def test_engine_that_does_not_start_leaves_none_open() -> None:
    log: list[str] = []
    runtime = Runtime({"a": Fragile("a", log), "b": Fragile("b", log, "start"), "c": Fragile("c", log)})

    with pytest.raises(EngineError, match="'b' does not start"):
        async with runtime:
            pass

    assert log == ["start a", "start b", "close a", "close b"]


class Slow(Fragile):
    """Starts and ends while the event loop turns a few times."""

    starts_beside_others = False

    async def start(self) -> Self:
        await super().start()
        await asyncio.sleep(0.01)
        self.log.append(f"started {self.name}")
        return self

    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.sleep(0.01)
        self.log.append(f"closed {self.name}")


class Beside(Slow):
    starts_beside_others = True


async def test_engines_start_side_by_side_where_they_say_so_and_all_end_so() -> None:
    log: list[str] = []
    engines = {"a": Slow("a", log), "b": Slow("b", log), "c": Beside("c", log), "d": Beside("d", log)}
    async with Runtime(engines):
        assert log[:4] == ["start a", "started a", "start b", "started b"]
        assert set(log[4:6]) == {"start c", "start d"}
        log.clear()

    assert {f"close {name}" for name in engines} == set(log[:4])


async def test_an_engine_that_does_not_start_ends_the_start_of_others() -> None:
    log: list[str] = []
    with pytest.raises(EngineError, match="'b' does not start"):
        async with Runtime({name: Beside(name, log, "start" * (name == "b")) for name in "ab"}):
            pass

    assert "started a" not in log
    assert set(log[-2:]) == {"closed a", "closed b"}


async def test_engine_that_does_not_close_keeps_no_other_open() -> None:
    log: list[str] = []

    with pytest.raises(EngineError, match="'b' does not close"):
        async with Runtime({"a": Fragile("a", log), "b": Fragile("b", log, "close")}):
            pass

    assert log == ["start a", "start b", "close a", "close b"]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (Request.ask("?", "magic"), RequestError, r"unknown policy 'magic'; there are arbitrage, .*draft, .*target"),
        (Request.ask("?", options={"k": 3}), RequestError, r"unknown option 'k'; Target knows engine"),
        (
            Request.ask("?", "self_consistency", options={"n": 3}),
            RequestError,
            r"unknown option 'n'; SelfConsistency knows engine, k, temperature",
        ),
        (Request.ask("?", "self_consistency", options={"k": 0}), RequestError, r"k must be .* \[1, 64\], got 0"),
        (Request.ask("?", "self_consistency", options={"k": "5"}), RequestError, r"k must be .* got '5'"),
        (Request.ask("?", "self_consistency", options={"temperature": "hot"}), RequestError, r"temperature .* 'hot'"),
        (Request.ask("?", "self_consistency", options={"engine": "gpt"}), ConfigError, r"no engine has the role 'gpt'"),
        (Request.ask("?", "draft"), ConfigError, r"no engine has the role 'draft'; there are target: add it"),
        (Request.ask("long " * 30), RequestError, r"the prompt has \d+ tokens, engine 'target' takes at most 99"),
        (Request.ask("long " * 30, "self_consistency"), RequestError, r"the prompt has \d+ tokens"),
    ],
)
async def test_bad_request_gets_one_clear_line(request_: Request, error: type[ReasonRTError], message: str) -> None:
    runtime = Runtime({"target": ScriptedEngine("target", TEXT, max_model_len=100)})

    with pytest.raises(error, match=message) as raised:
        await runtime.complete(request_)

    assert "\n" not in str(raised.value)
    assert scripted(runtime)[0].generated_tokens == 0


async def test_limits_of_the_configuration_hold_for_whoever_brings_none(tmp_path: Path) -> None:
    file = tmp_path / "reasonrt.yaml"
    file.write_text("engines: {target: {model: zoo:nano-target}}\nlimits: {max_tokens: 40, max_engine_calls: 3}\n")
    runtime = Runtime.from_config(file)
    request = Request.ask("?")

    assert runtime.prepare(request).request.limits == Limits(max_tokens=40, max_engine_calls=3)
    assert runtime.prepare(replace(request, limits=Limits())).request.limits == Limits()


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"arbitrage": {"router_file": "/nowhere.json"}}, "cannot read /nowhere.json: .*calibrate router"),
        ({"arbitrage": {"threshold": 0.02}}, "the router was learned for another draft"),
        ({"rsd": {"layout": "magic"}}, "policies.rsd: rsd: layout must be one of"),
        ({"target": {"stopping": {"certificate": "/nowhere.json"}}}, "policy target: cannot read /nowhere.json"),
        ({"nonsense": {}}, "policies.nonsense: unknown policy 'nonsense'"),
    ],
)
async def test_what_the_configuration_names_is_checked_at_the_start(policies: dict[str, Any], message: str) -> None:
    runtime = Runtime({role: ScriptedEngine(role, TEXT) for role in ("draft", "target", "reward")}, policies)

    with pytest.raises(ConfigError, match=message):
        await runtime.__aenter__()


async def test_sub_request_draws_from_the_limits_of_the_one_that_asks(asker: str) -> None:
    runtime = make_runtime()

    free = await runtime.complete(Request.ask("?", asker))
    few_calls = await runtime.complete(Request.ask("?", asker, limits=Limits(max_engine_calls=1)))
    few_tokens = await runtime.complete(Request.ask("?", asker, limits=Limits(max_generated_tokens=20)))
    with pytest.raises(RequestError, match="nested too deep"):
        await runtime.complete(Request.ask("?", asker, limits=Limits(max_depth=0)))

    assert free.text == TEXT * 2
    assert free.usage["target"].calls == free.usage["draft"].calls == 1
    assert free.usage["target"].generated == free.usage["draft"].generated > 0
    assert few_calls.finish_reason is FinishReason.CALLS
    assert few_tokens.finish_reason is FinishReason.BUDGET
    assert sum(engine.generated for engine in few_tokens.usage.values()) < 20 + 8
    assert all(engine.running == 0 for engine in scripted(runtime))


async def test_policy_sees_what_it_may_still_use() -> None:
    seen: list[Allowance] = []

    class Frugal(PolicyOptions):
        """Reads as often as it may, and then asks itself once more."""

        engines = ("target",)

        async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
            seen.append(engines.allowance)
            while engines.allowance.engine_calls > 2:
                await engines["target"].read([3, 4], [2])
            seen.append(engines.allowance)
            if engines.allowance.depth:
                limits = Limits(max_engine_calls=9, max_generated_tokens=1, deadline_s=1.0, max_depth=9)
                async with aclosing(engines.solve(replace(request, limits=limits))) as events:
                    assert [event async for event in events]
            yield Stop(FinishReason.STOP)

    started = time.monotonic()
    register_policy("frugal", Frugal)
    try:
        limits = Limits(max_engine_calls=5, max_generated_tokens=40, deadline_s=60.0)
        completion = await make_runtime().complete(Request.ask("?", "frugal", limits=limits))
    finally:
        unregister_policy("frugal")

    first, later, below = seen[:3]
    assert completion.finish_reason is FinishReason.STOP
    assert (first.engine_calls, first.generated_tokens, first.depth) == (5, 40, 1)
    assert first.deadline is not None
    assert 59.0 < first.deadline - started < 62.0
    assert later == replace(first, engine_calls=2, generated_tokens=37)
    assert (below.engine_calls, below.generated_tokens, below.depth) == (2, 1, 0)
    assert below.deadline is not None
    assert below.deadline < first.deadline


async def test_what_a_request_reports_is_not_mixed_with_that_of_its_sub_requests() -> None:
    class Reporter(PolicyOptions):
        """Tells how deep it may still ask, and asks itself."""

        engines = ("target",)

        async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
            depth = engines.allowance.depth
            if request.report:
                request.report({"depth": depth})
            if depth:
                async with aclosing(engines.solve(request)) as events:
                    assert [event async for event in events]
            yield Stop(FinishReason.STOP)

    told: list[Mapping[str, Any]] = []
    request = Request.ask("?", "reporter", limits=Limits(max_depth=2), report=told.append)
    register_policy("reporter", Reporter)
    try:
        await make_runtime().complete(request)
    finally:
        unregister_policy("reporter")

    assert told == [{"depth": 2}]
    assert request == replace(request, report=None)
    assert "report" not in repr(request).replace("'reporter'", "")


async def test_leaving_a_request_leaves_its_sub_requests(asker: str) -> None:
    runtime = make_runtime(seconds_per_token=0.001)
    async with aclosing(runtime.solve(Request.ask("?", asker))) as events:
        await anext(events)
        assert sum(engine.running for engine in scripted(runtime)) == 1

    assert all(engine.running == 0 for engine in scripted(runtime))


async def test_context_is_refused_by_a_policy_that_reads_none() -> None:
    with pytest.raises(RequestError, match="policy 'target' reads no context"):
        await make_runtime().complete(Request.ask("?", context="a very long text"))


class Asker(PolicyOptions):
    """Asks the policies `target` and `draft`, commits what they answer as it comes, and ends where one is cut off."""

    engines = ()

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        for policy in ("target", "draft"):
            async with aclosing(engines.solve(Request.ask("?", policy))) as events:
                async for event in events:
                    if isinstance(event, Step):
                        yield event
                    elif event.finish_reason is not FinishReason.STOP:
                        yield Stop(event.finish_reason)
                        return


@pytest.fixture
def asker() -> Iterator[str]:
    register_policy("asker", Asker)
    yield "asker"
    unregister_policy("asker")
