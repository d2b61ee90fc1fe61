"""Speculation where one of the models ends, dies, is full, or has another tokenizer: who writes the rest."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import CapabilityError, EngineError
from reasonrt.policies.speculation import loop
from reasonrt.ports import Capability, Score
from reasonrt.thinking import CLOSING
from reasonrt.types import Sampling

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "four\n\n", "</think>\n\n", r"\boxed{7}"]
BAD = ["<think>\none\n\n", "2wo!\n\n", "three\n\n", "4our\n\n", "</think>\n\n", r"\boxed{8}"]


def wrong_step(text: str) -> float:
    """A reward model's view of a prompt: what it thinks of the last step."""
    last = text.rstrip("\n").rpartition("\n\n")[2]
    return 0.0 if any(mark in last for mark in ("2wo", "4our", "{8}")) else 1.0


def make_runtime(
    draft: list[str] = BAD, target: list[str] = GOOD, scores: Callable[[str], float] = wrong_step, **settings: Any
) -> Runtime:
    return Runtime(
        {
            "draft": ScriptedEngine("draft", continuing("".join(draft)), **settings),
            "target": ScriptedEngine("target", continuing("".join(target)), **settings),
            "reward": ScriptedEngine("reward", "", scores=scores),
        }
    )


async def solve(runtime: Runtime, policy: str = "rsd", **options: Any) -> Completion:
    return await runtime.complete(Request.ask("?", policy, options=options))


def engine(runtime: Runtime, role: str) -> ScriptedEngine:
    found = runtime.engines[role]
    assert isinstance(found, ScriptedEngine)
    return found


def authors(completion: Completion) -> list[str]:
    return [step.author for step in completion.steps]


@pytest.mark.parametrize("look_ahead", [0, 4])
@pytest.mark.parametrize("length", [0, 2, 5])
@pytest.mark.parametrize("threshold", [0.5, 1.1])
async def test_draft_that_ends_without_an_answer_leaves_the_rest_to_the_target(
    look_ahead: int, length: int, threshold: float
) -> None:
    """It ends behind a boundary; every step that it writes is accepted, or none."""
    runtime = make_runtime(draft=GOOD[:length])

    completion = await solve(runtime, look_ahead=look_ahead, threshold=threshold)

    assert completion.text == "".join(GOOD)
    assert authors(completion)[-1] == "target"


async def test_draft_may_end_behind_an_answer_that_was_accepted() -> None:
    accepted = await solve(make_runtime(draft=[*GOOD, "\n\n"]))
    asked = await solve(make_runtime(draft=[*GOOD, "\n\n"], target=[*GOOD, "\n\n", "Done."]), threshold=1.1)

    assert accepted.usage["target"].calls == 0
    assert asked.text.endswith("Done.")


async def test_early_start_is_dropped_when_the_draft_dies() -> None:
    runtime = make_runtime(
        draft=[GOOD[0], "y" * 500 + "\n\n"], target=[GOOD[0], "x" * 500 + "\n\n", r"</think> \boxed{7}"],
        chunk_tokens=1, seconds_per_token=0.0005,
    )  # fmt: skip
    events = runtime.solve(Request.ask("?", "rsd", options={"start_early": 0.0}))
    await anext(events)
    asyncio.get_running_loop().call_later(0.05, engine(runtime, "draft").kill)

    *_, completion = [event async for event in events]

    assert isinstance(completion, Completion)
    assert "died" in completion.details["fallback"]
    assert 0 < completion.usage["target"].discarded < 250


async def test_draft_that_dies_leaves_the_request_to_the_target() -> None:
    runtime = make_runtime(seconds_per_token=0.002, chunk_tokens=1)
    steps: list[Any] = []
    async for event in runtime.solve(Request.ask("?", "rsd")):
        steps.append(event)
        if len(steps) == 1:
            engine(runtime, "draft").kill()

    completion = steps[-1]
    assert completion.text == "".join(GOOD)
    assert "died" in completion.details["fallback"]
    assert authors(completion)[1:] == ["target"] * 5


async def test_router_that_dies_leaves_the_request_to_the_target(caplog: pytest.LogCaptureFixture) -> None:
    runtime = make_runtime()

    class Lost(ScriptedEngine):
        async def score(self, prompt_token_ids: Any, cache_salt: str = "") -> Score:
            raise EngineError("the reward model died")

    runtime.engines["reward"] = Lost("reward", "")
    completion = await solve(runtime)

    assert completion.text == "".join(GOOD)
    assert "reward model died" in completion.details["fallback"]
    assert "reward model died" in completion.warnings["speculation"]


async def test_router_whose_context_is_full_leaves_the_request_to_the_target() -> None:
    runtime = make_runtime()
    runtime.engines["reward"] = ScriptedEngine("reward", "", scores=wrong_step, max_model_len=42)

    completion = await solve(runtime)

    assert completion.text == "".join(GOOD)
    assert "max_model_len 42" in completion.details["fallback"]
    assert authors(completion) == ["draft", *["target"] * 5]


@pytest.mark.parametrize(("policy", "context"), [("rsd", 50), ("rsd", 500), ("oracle", 500)])
@pytest.mark.parametrize("short_by", [0, 8])
async def test_details_are_those_of_the_whole_text_where_it_is_written_in_several_runs(
    policy: str, context: int, short_by: int
) -> None:
    """Both end inside the thinking; after it is closed, the draft's context may be full. A limit may then end it."""

    def writing(thought: str) -> Callable[[str, Sampling], str]:
        answers = continuing("It is:\n\n\\boxed{7}")

        def script(prompt: str, sampling: Sampling) -> str:
            before, closed, after = prompt.partition("\n</think>\n\n")
            return answers(f"[assistant] {after}", sampling) if closed else continuing(thought)(before, sampling)

        return script

    async def run(limits: Limits) -> Completion:
        runtime = make_runtime()
        engine(runtime, "draft").script = writing("<think>\none\n\n2wo!\n\nthree")
        engine(runtime, "target").script = writing("<think>\none\n\ntwo\n\nthree")
        engine(runtime, "draft").max_model_len = context
        return await runtime.complete(Request.ask("?", policy, limits=limits))

    whole = await run(Limits())
    completion = await run(Limits(max_generated_tokens=whole.generated_tokens - short_by)) if short_by else whole

    steps, details = [step for step in completion.steps if step.author != CLOSING], completion.details
    assert completion.content.startswith("It is:")
    assert completion.finish_reason is (FinishReason.BUDGET if short_by else FinishReason.STOP)
    by_draft = [step for step in steps if step.author == "draft"]
    assert details["draft_steps"] == len(by_draft)
    assert details["draft_tokens"] == sum(len(step.token_ids) for step in by_draft)
    assert details["steps"] == len(steps)
    assert details["escalations"] == 1
    assert ("context is full" in details["fallback"]) == (context == 50)


@pytest.mark.parametrize("look_ahead", [0, 4])
@pytest.mark.parametrize("room", [1, 16, 17, 30])
async def test_draft_whose_context_is_full_leaves_the_request_to_the_target(look_ahead: int, room: int) -> None:
    """Its prompt alone, 23 tokens, or what is committed behind it."""
    runtime = make_runtime(draft=GOOD)
    runtime.engines["draft"] = ScriptedEngine("draft", continuing("".join(GOOD)), max_model_len=22 + room)

    completion = await solve(runtime, look_ahead=look_ahead)

    assert completion.text == "".join(GOOD)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.details["fallback"]


@pytest.mark.parametrize("router_file", ["zoo:nano-features", "/no/such/router.json"])
async def test_missing_or_mismatched_router_is_the_plain_target_and_one_warning(
    router_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop._warn_once.cache_clear()
    runtime = make_runtime()

    with caplog.at_level(logging.WARNING):
        completions = [await solve(runtime, "arbitrage", router_file=router_file) for _ in range(3)]

    assert {completion.text for completion in completions} == {"".join(GOOD)}
    assert all("calibrate router" in completion.details["fallback"] for completion in completions)
    assert all(completion.usage["draft"].generated == 0 for completion in completions)
    assert len([record for record in caplog.records if "writes alone" in record.message]) == 1


@pytest.mark.parametrize(("policy", "writes"), [("rsd", True), ("specreason", True), ("entropy", False)])
async def test_draft_without_log_probabilities_drafts_for_routers_that_read_none(policy: str, writes: bool) -> None:
    class Plain(ScriptedEngine):
        capabilities = frozenset(Capability) - {Capability.LOGPROBS}

        def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
            if sampling.logprobs or sampling.top_logprobs:
                raise CapabilityError("gives no log-probabilities")
            return super().generate(prompt_token_ids, sampling, cache_salt)

    runtime = make_runtime()
    runtime.engines["draft"] = Plain("draft", continuing("".join(BAD)))

    completion = await solve(runtime, policy, threshold=0, keep_prefix=0.5)

    assert ("draft" in authors(completion)) == writes
    assert ("gives no log-probabilities" in completion.details["fallback"]) != writes


@pytest.mark.parametrize("limits", [Limits(deadline_s=0.5), Limits(max_engine_calls=3), Limits(max_tokens=30)])
async def test_request_that_a_limit_ends_tells_what_was_done(limits: Limits) -> None:
    runtime = make_runtime(draft=["a\n\n"] * 400, seconds_per_token=0.001, chunk_tokens=1, scores=lambda text: 1.0)

    completion = await runtime.complete(Request.ask("?", "rsd", limits=limits))

    assert completion.finish_reason in (FinishReason.DEADLINE, FinishReason.CALLS, FinishReason.LENGTH)
    assert completion.details["steps"] >= len(completion.steps) > 0


async def test_full_context_ends_with_length() -> None:
    completion = await solve(make_runtime(draft=["abc\n\n"] * 100, max_model_len=60, scores=lambda text: 1.0))

    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.steps


async def test_target_whose_context_is_full_ends_with_length() -> None:
    runtime = make_runtime(scores=lambda text: float("4our" not in text))
    runtime.engines["target"] = ScriptedEngine("target", continuing("".join(GOOD)), max_model_len=40)

    completion = await solve(runtime)

    assert completion.finish_reason is FinishReason.LENGTH
    assert authors(completion) == ["draft"] * 3


class Recorded(ScriptedEngine):
    """An engine with a tokenizer of its own, and what it was asked to write behind."""

    def __init__(self, name: str, texts: list[str], tokenizer: Any, chat_end: str) -> None:
        def script(prompt: str, sampling: Any) -> str:
            return continuing("".join(texts))("[assistant] " + prompt.rpartition(chat_end)[2], sampling)

        super().__init__(name, script)
        self.tokenizer, self.chat_end = tokenizer, chat_end
        self.prompts: list[list[int]] = []

    def generate(self, prompt_token_ids: Sequence[int], *args: Any) -> Any:
        self.prompts.append(list(prompt_token_ids))
        return super().generate(prompt_token_ids, *args)


@pytest.mark.parametrize("look_ahead", [0, 4])
async def test_models_with_different_tokenizers_write_one_text(
    tokenizer_folder: Path, nano_target: Path, look_ahead: int
) -> None:
    """The draft's tokens are bytes, the target's are words."""
    words = HFTokenizer(nano_target)
    words.eos_token_ids = frozenset({0})  # with which scripts end
    draft = Recorded("draft", [step.replace("\n\n", ".\n\n") for step in BAD], HFTokenizer(tokenizer_folder), "t: ")
    target = Recorded("target", [step.replace("\n\n", ".\n\n") for step in GOOD], words, "?")
    reward = ScriptedEngine("reward", "", scores=wrong_step)
    runtime = Runtime({"draft": draft, "target": target, "reward": reward})

    completion = await solve(runtime, look_ahead=look_ahead, verify=True, warm_target=True)

    assert completion.text == "".join(GOOD).replace("\n\n", ".\n\n")
    assert authors(completion) == ["draft", "target", "draft", "target", "draft", "target"]
    assert completion.details["verifications"] == 0
    for writer in (draft, target):
        for step in completion.steps:
            if step.author == writer.name:
                assert writer.tokenizer.decode(step.token_ids) == step.text
        for before, after in pairwise(writer.prompts):
            assert after[: len(before)] == before  # what was committed keeps its ids
        said = writer.tokenizer.decode(writer.prompts[-1]).rpartition(writer.chat_end)[2]
        assert said
        assert completion.text.startswith(said)


class _Greedy(ScriptedEngine):
    """It verifies at temperature 0 alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.capabilities -= {Capability.VERIFY_SAMPLED}


async def test_verification_that_does_not_take_place_is_told() -> None:
    script = continuing("".join(GOOD))
    runtime = make_runtime()
    runtime.engines["target"] = _Greedy("target", script)
    request = Request.ask("?", "rsd", options={"verify": True})

    greedy = await runtime.complete(request)
    drawn = await runtime.complete(replace(request, temperature=0.7))
    unverified = await runtime.complete(replace(request, temperature=0.7, options={}))

    assert greedy.warnings == unverified.warnings == {}
    assert drawn.warnings == {"verification": "engine 'target' verifies at temperature 0 alone"}


async def test_kept_part_is_read_by_the_target_as_it_would_have_written_it(
    tokenizer_folder: Path, nano_target: Path
) -> None:
    """The draft is sure of each byte but one within a word, which to the target is one token."""
    words = HFTokenizer(nano_target)
    words.eos_token_ids = frozenset({0})
    drafted, wanted = "so the number is 7.\n\n", "so the number is 8.\n\n"
    draft = Recorded("draft", [drafted], HFTokenizer(tokenizer_folder), "t: ")
    target = Recorded("target", [wanted], words, "?")
    unsure = draft.tokenizer.encode("u")[0]
    draft.logprob = lambda token_id: -5.0 if token_id == unsure else -0.01  # type: ignore[method-assign]
    runtime = Runtime(
        {"draft": draft, "target": target, "reward": ScriptedEngine("reward", "", scores=lambda text: 0.0)}
    )

    completion = await solve(runtime, keep_prefix=0.5)

    kept = completion.steps[0]
    assert (kept.author, kept.is_complete) == ("draft", False)
    assert kept.text == "so the"
    read = words.encode_text(kept.text)
    assert words.encode_text(drafted)[: len(read)] == read
    assert completion.text == wanted


async def test_what_did_not_take_place_is_told_where_a_limit_ends_the_request() -> None:
    runtime = make_runtime()
    runtime.engines["reward"] = ScriptedEngine("reward", "", scores=wrong_step, max_model_len=42)
    request = Request.ask("?", "rsd", limits=Limits(max_generated_tokens=60))

    completion = await runtime.complete(request)

    assert completion.finish_reason is FinishReason.BUDGET
    assert "max_model_len 42" in completion.warnings["speculation"]
