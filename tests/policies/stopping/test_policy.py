"""Stopping over a policy: the same token as in replay, the probe's answer, nothing left running."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.calibration import replay, upper_threshold_rules
from reasonrt.calibration.stopping.families import budget_rules, lower_threshold_rules
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.errors import RequestError
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.rules import Gated, Spaced, StoppingRule, UpperThreshold
from reasonrt.policies.stopping.signals import Agreement, Ema, Recorded, TokensUsed
from reasonrt.policies.stopping.traces import Checkpoint, Trace
from reasonrt.thinking import END_THINK
from reasonrt.types import Sampling, TokenDelta

SCHEDULE = {"first_tokens": 8, "block_tokens": 4, "growth": 1.1, "answer_tokens": 12}


def thinking(num_steps: int, answers: Sequence[str]) -> Any:
    """A model that thinks for so many steps and, asked after i of them, says answers[i]."""
    steps = [f"step {index}: {'so ' * (index % 4)}it goes\n\n" for index in range(num_steps)]
    text = "<think>\n" + "".join(steps) + f"</think>\n\n\\boxed{{{answers[-1]}}}"

    def script(prompt: str, sampling: Sampling) -> str:
        said = prompt.rpartition("[assistant] ")[2]
        before, probed, begun = said.partition(SUFFIX)
        done = before.count("step")
        if probed and done < num_steps:  # with all steps there it may be the model's own end
            return f"{answers[done % len(answers)]}}}"[len(begun) :]
        return continuing(text)(prompt, sampling)

    return script


def make_runtime(script: Any, **settings: Any) -> Runtime:
    return Runtime({role: ScriptedEngine(role, script, **settings) for role in ("target", "draft", "reward")})


async def solve(runtime: Runtime, policy: str = "target", limits: Limits | None = None, **stopping: Any) -> Completion:
    stopping = {"schedule": SCHEDULE} | stopping if "certificate" not in stopping else stopping
    return await runtime.complete(Request.ask("?", policy, options={"stopping": stopping}, limits=limits or Limits()))


async def recorded(runtime: Runtime, policy: str = "target") -> Trace:
    completion = await solve(runtime, policy, record=True)
    checkpoints = [Checkpoint(**point) for point in completion.details["stopping"]["checkpoints"]]
    return Trace("p", checkpoints, sum(len(step.token_ids) for step in completion.steps), completion.content)


def assert_adds_up(completion: Completion, runtime: Runtime) -> None:
    for engine in runtime.engines.values():
        assert isinstance(engine, ScriptedEngine)
        usage = completion.usage.get(engine.name)
        committed = sum(len(step.token_ids) for step in completion.steps if step.author == engine.name)
        assert (usage.generated if usage else 0) == engine.generated_tokens
        assert not usage or usage.generated - usage.discarded == committed
        assert not usage or usage.discarded >= 0
        assert engine.running == 0


SIGNALS = st.sampled_from(
    [Recorded("confidence"), Recorded("entropy_after_thinking"), Recorded("end_of_thinking"), Agreement(), TokensUsed()]
)
UPPERS = st.builds(UpperThreshold, st.one_of(SIGNALS, st.builds(Ema, SIGNALS, st.just(0.5))), st.floats(0, 3))
LOWERS = st.sampled_from(lower_threshold_rules("confidence", [20, 90], slope_per_token=0.1, low=0.0, high=0.6))
SPACED = st.one_of(UPPERS, LOWERS, st.builds(Spaced, UPPERS, st.integers(1, 60)))
RULES: st.SearchStrategy[StoppingRule] = st.one_of(
    SPACED, st.builds(Gated, SPACED, st.floats(0, 2)), st.sampled_from(budget_rules(range(0, 200, 20)))
)
ANSWERS = st.lists(
    st.sampled_from(["7", "07", "8", "", " ", "no { end", r"\frac{1}{2}", "0.5", "50%"]), min_size=1, max_size=9
)


@given(
    rule=RULES,
    answers=ANSWERS,
    num_steps=st.integers(0, 12),
    policy=st.sampled_from(["target", "random", "rsd"]),
    chunk_tokens=st.integers(1, 40),
)
@settings(deadline=None, max_examples=200)
async def test_live_stops_where_replay_stops(
    rule: StoppingRule, answers: list[str], num_steps: int, policy: str, chunk_tokens: int
) -> None:
    runtime = make_runtime(thinking(num_steps, answers), chunk_tokens=chunk_tokens)
    trace = await recorded(runtime, policy)
    replayed = replay(rule, trace)
    runtime = make_runtime(thinking(num_steps, answers), chunk_tokens=chunk_tokens)

    completion = await solve(runtime, policy, rule=rule)

    found = completion.details["stopping"]
    stop = None if replayed.index is None else trace.checkpoints[replayed.index].tokens
    assert (found["action"], found["tokens"]) == (replayed.action, stop)
    assert found["probe_tokens"] + (stop or trace.full_tokens) >= replayed.net_tokens  # probes behind the stop cost too
    if replayed.action == "answer":
        assert completion.content == f"\\boxed{{{completion.steps[-1].text}"
        assert sum(len(step.token_ids) for step in completion.steps[:-2]) == stop
    if replayed.action == "go_on":
        assert found["probe_tokens"] + trace.full_tokens == replayed.net_tokens
        assert sum(len(step.token_ids) for step in completion.steps) == trace.full_tokens
    assert_adds_up(completion, runtime)


async def test_the_answer_of_the_probe_is_returned_with_its_signals() -> None:
    runtime = make_runtime(thinking(20, ["8", "8", "8", "7"]), chunk_tokens=1, seconds_per_token=0.0005)

    completion = await solve(runtime, rule=upper_threshold_rules(Agreement(), [2])[0])

    inserted, answer = completion.steps[-2:]
    assert (inserted.text, inserted.author) == (SUFFIX, "stopping")
    assert (answer.text, answer.author, answer.is_complete) == ("8}", "target", True)
    assert set(answer.scores) == {"confidence", "geometric_confidence"}
    assert completion.content == r"\boxed{8}"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.details["stopping"]["rule"]["threshold"] == 2.0
    assert completion.details["stopping"]["returned_tokens"] == 2
    assert completion.usage["target"].generated < 200  # of more than 400
    assert_adds_up(completion, runtime)


async def test_the_request_goes_on_while_it_is_probed() -> None:
    class Watched(ScriptedEngine):
        most_running = 0

        async def work(self, num_tokens: int, life: int) -> None:
            self.most_running = max(self.most_running, self.running)
            await super().work(num_tokens, life)

    engine = Watched("target", thinking(12, ["1", "2", "3", "4"]), chunk_tokens=1)

    await solve(Runtime({"target": engine}), record=True)

    assert engine.most_running >= 2


@pytest.mark.parametrize("answers", [["77777777"], ["        ", "7"]])
async def test_nothing_more_is_written_while_the_answer_is_asked_for(answers: list[str]) -> None:
    """Once a rule that reads no answer has decided; where the answer is blank, the text continues as it would have."""
    script = thinking(40, answers)
    runtime = make_runtime(script, chunk_tokens=1, seconds_per_token=0.001)

    completion = await solve(runtime, rule=budget_rules([60])[0])

    found = completion.details["stopping"]
    assert found["action"] == "answer"
    in_vain = completion.usage["target"].discarded - (found["probe_tokens"] - found["returned_tokens"])
    assert in_vain <= 4 * len(answers)  # of 9 tokens that each answer takes
    thought = "".join(step.text for step in completion.steps[:-2])
    assert thought == (await make_runtime(script).complete(Request.ask("?"))).text[: len(thought)]
    assert_adds_up(completion, runtime)


async def test_stop_does_not_depend_on_how_long_a_probe_takes() -> None:
    class Slow(ScriptedEngine):
        """Answers probes when the request itself has long come to its end."""

        def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
            stream = super().generate(prompt_token_ids, sampling, cache_salt)
            if SUFFIX in self.tokenizer.decode(prompt_token_ids):
                return _Late(stream)
            return stream

    script, rule = thinking(12, ["1", "8", "8", "8", "7"]), upper_threshold_rules(Agreement(), [2])[0]
    fast = await solve(make_runtime(script), rule=rule)
    runtime = Runtime({"target": Slow("target", script)})

    slow = await solve(runtime, rule=rule)

    assert slow.details["stopping"]["tokens"] == fast.details["stopping"]["tokens"]
    assert slow.text == fast.text
    assert_adds_up(slow, runtime)


class _Late:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def generated_tokens(self) -> int:
        return int(self._stream.generated_tokens)

    @property
    def passes(self) -> int:
        return int(self._stream.passes)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> TokenDelta:
        await asyncio.sleep(0.02)
        delta: TokenDelta = await anext(self._stream)
        return delta

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_dropped_probes_mean_go_on() -> None:
    runtime = make_runtime(thinking(8, ["7"]))

    completion = await solve(runtime, rule=budget_rules([1])[0], max_running=0)

    found = completion.details["stopping"]
    assert (found["action"], found["probe_tokens"]) == ("go_on", 0)
    assert found["num_dropped"] > found["num_checkpoints"] == 0


async def test_a_probe_that_takes_too_long_is_dropped_and_leaves_the_engine() -> None:
    """Text that is held back behind a checkpoint waits no longer than this for the rule."""
    runtime = make_runtime(thinking(8, ["7"]), seconds_per_token=0.003)

    hasty = await solve(runtime, rule=budget_rules([1])[0], patience_s=0.001)
    patient = await solve(runtime, rule=budget_rules([1])[0], patience_s=60)

    assert (hasty.details["stopping"]["action"], patient.details["stopping"]["action"]) == ("go_on", "answer")
    assert hasty.details["stopping"]["num_dropped"] > hasty.details["stopping"]["num_checkpoints"] == 0
    assert runtime.engines["target"].running == 0  # type: ignore[attr-defined]


async def test_no_probe_where_the_context_or_the_limit_leaves_no_room() -> None:
    script = thinking(12, ["7"])
    full = await solve(make_runtime(script), rule=budget_rules([100])[0])
    stop = full.details["stopping"]["tokens"]

    tight = await solve(make_runtime(script), limits=Limits(stop + 10), rule=budget_rules([100])[0])

    assert tight.details["stopping"]["num_checkpoints"] < full.details["stopping"]["num_checkpoints"]
    assert tight.finish_reason is FinishReason.LENGTH


async def test_giving_up_returns_what_was_thought_and_no_answer() -> None:
    (rule,) = lower_threshold_rules("confidence", [20], slope_per_token=1.0, low=0.0, high=1.0)

    completion = await solve(make_runtime(thinking(12, ["7"])), rule=rule)

    assert completion.details["stopping"]["action"] == "give_up"
    assert completion.content == ""
    assert completion.text.startswith("<think>\nstep 0")


async def test_engine_that_loses_a_probe_goes_on() -> None:
    class Forgetful(ScriptedEngine):
        def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
            if self.tokenizer.decode(prompt_token_ids).endswith(SUFFIX):
                raise RequestError("not now")
            return super().generate(prompt_token_ids, sampling, cache_salt)

    runtime = Runtime({"target": Forgetful("target", thinking(8, ["7"]))})

    completion = await solve(runtime, rule=budget_rules([1])[0])

    assert completion.content == r"\boxed{7}"
    assert completion.details["stopping"]["num_dropped"] > completion.details["stopping"]["num_checkpoints"] == 0


async def test_after_one_dropped_probe_the_request_thinks_to_its_end() -> None:
    """A rule that has missed a checkpoint could stop where it would not have: here on the answer before it settles."""

    class FailsOnce(ScriptedEngine):
        num_failures = 0

        def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
            if self.tokenizer.decode(prompt_token_ids).endswith(SUFFIX) and not self.num_failures:
                self.num_failures += 1
                raise RequestError("not now")
            return super().generate(prompt_token_ids, sampling, cache_salt)

    runtime = Runtime({"target": FailsOnce("target", thinking(8, ["7"]))})

    completion = await solve(runtime, rule=budget_rules([1])[0])

    found = completion.details["stopping"]
    assert (found["action"], found["num_dropped"], found["num_checkpoints"]) == ("go_on", 1, 0)
    assert completion.content == r"\boxed{7}"


async def test_nothing_is_asked_behind_the_end_of_a_text_without_thinking_marks() -> None:
    runtime = make_runtime(continuing("the answer is seven times six\n\nwhich is 42"))

    completion = await solve(runtime, rule=budget_rules([1])[0], suffix=r"\boxed{", schedule=SCHEDULE)
    short = await solve(make_runtime(continuing("which is 42, as is well known")), rule=budget_rules([1])[0])

    assert completion.details["stopping"]["num_checkpoints"] == 1
    assert (short.text, short.details["stopping"]["num_checkpoints"]) == ("which is 42, as is well known", 0)


async def test_resumed_request_is_watched_from_where_it_stands() -> None:
    runtime = make_runtime(thinking(12, ["7"]))
    full = await runtime.complete(Request.ask("?"))
    options = {"stopping": {"rule": budget_rules([1])[0], "schedule": SCHEDULE}}

    resumed = await runtime.complete(Request.ask("?", committed=full.steps[:4], options=options))
    ended = await runtime.complete(Request.ask("?", committed=full.steps[:-1], options=options))

    before = sum(len(step.token_ids) for step in full.steps[:4])
    assert resumed.details["stopping"]["tokens"] > before
    assert ended.details["stopping"]["num_checkpoints"] == 0
    assert ended.text == full.text


@pytest.mark.parametrize("cut", range(len(END_THINK)))
async def test_thinking_has_ended_wherever_steps_cut_the_tag(cut: int) -> None:
    """A step that is carried on may end anywhere, inside of the tag too."""
    runtime = make_runtime(thinking(12, ["7"]))
    full = await runtime.complete(Request.ask("?"))
    *thought, _, _ = full.steps
    begun = CharacterTokenizer().encode(END_THINK[:cut])
    committed = (*thought, Step(END_THINK[:cut], tuple(begun), "target", is_complete=False))
    everywhere = {"first_tokens": 1, "block_tokens": 1, "growth": 1.0, "answer_tokens": 12}
    options = {"stopping": {"rule": budget_rules([1])[0], "schedule": everywhere}}

    resumed = await runtime.complete(Request.ask("?", committed=committed, options=options))

    assert resumed.details["stopping"]["num_checkpoints"] == 0
    assert resumed.text == full.text
