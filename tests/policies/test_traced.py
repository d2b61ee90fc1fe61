"""What a traced request tells beside its steps: all that was paid for and is not in the text."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.policies.registry import register_policy, unregister_policy
from reasonrt.policies.single import Target
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.ports import Engines
from reasonrt.types import PolicyEvent, Sampling, Stop

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "four\n\n", "</think>\n\n", r"\boxed{7}"]
BAD = ["<think>\none\n\n", "2wo!\n\n", "three\n\n", "4our\n\n", "</think>\n\n", r"\boxed{8}"]
Told = list[Mapping[str, Any]]


def wrong_step(text: str) -> float:
    last = text.rstrip("\n").rpartition("\n\n")[2]
    return 0.0 if any(mark in last for mark in ("2wo", "4our", "{8}")) else 1.0


def thinks_long(prompt: str, sampling: Sampling) -> str:
    """Twelve steps; asked for its answer, it says 1, 2 and 3 after the first three of them, and 7 from then on."""
    said = prompt.rpartition("[assistant] ")[2]
    before, probed, begun = said.partition(SUFFIX)
    if probed and "</think>" not in before:
        num_steps = before.count("and")
        return f"{num_steps if num_steps < 4 else 7}}}"[len(begun) :]
    return continuing("<think>\n" + "step and step\n\n" * 12 + "</think>\n\n\\boxed{7}")(prompt, sampling)


async def traced(policy: str, *, is_traced: bool = True, script: Any = None, **options: Any) -> tuple[Completion, Told]:
    told: Told = []
    engines = {
        "draft": ScriptedEngine("draft", script or continuing("".join(BAD)), chunk_tokens=3),
        "target": ScriptedEngine("target", script or continuing("".join(GOOD)), chunk_tokens=3),
        "reward": ScriptedEngine("reward", "", scores=wrong_step),
    }
    limits = options.pop("limits", Limits())
    request = Request.ask("?", policy, options=options, limits=limits, report=told.append, trace=is_traced)
    return await Runtime(engines).complete(request), told


def of_kind(told: Told, kind: str) -> Told:
    return [event for event in told if event["kind"] == kind]


@pytest.mark.parametrize(
    "options", [{"keep_prefix": 0.5}, {"hand_over": True}, {"hand_over": True, "keep_prefix": 0.5}]
)
async def test_a_step_that_is_rejected_while_it_is_written_is_told_once(options: dict[str, Any]) -> None:
    completion, told = await traced("rsd", reject_early=True, **options)

    lost = of_kind(told, "discarded")
    assert any(event["why"] == "rejected" for event in lost)
    assert sum(event["tokens"] for event in lost) == completion.usage["draft"].discarded


@pytest.mark.parametrize("look_ahead", [0, 1, 4])
async def test_every_token_that_the_draft_lost_is_told(look_ahead: int) -> None:
    completion, told = await traced("rsd", look_ahead=look_ahead)

    lost = of_kind(told, "discarded")
    assert [event["text"] for event in lost if event["why"] == "rejected"] == ["2wo!\n\n", "4our\n\n", r"\boxed{8}"]
    assert all(event["scores"]["advantage"] == 1 for event in lost if event["why"] == "rejected")
    assert {event["why"] for event in lost} == ({"rejected", "ahead"} if look_ahead else {"rejected"})
    assert {event["author"] for event in lost} == {"draft"}
    assert sum(event["tokens"] for event in lost) == completion.usage["draft"].discarded


@pytest.mark.parametrize("keep_prefix", [0.0, 0.5])
async def test_the_step_at_which_the_draft_hands_over_is_told(keep_prefix: float) -> None:
    completion, told = await traced("rsd", hand_over=True, keep_prefix=keep_prefix)

    lost = of_kind(told, "discarded")
    assert [event["why"] for event in lost].count("rejected") == 1
    assert sum(event["tokens"] for event in lost) == completion.usage["draft"].discarded > 0


async def test_what_the_target_reads_and_keeps_of_a_step_is_told() -> None:
    completion, told = await traced("rsd", verify=True)

    read = of_kind(told, "verification")
    assert len(read) == completion.details["verifications"] > 0
    assert {event["author"] for event in read} == {"target"}
    rejected = [event for event in of_kind(told, "discarded") if event["why"] == "rejected"]
    kept = [event["kept_tokens"] for event in read if event["kept_tokens"] < event["tokens"]]
    assert kept == [event["kept_tokens"] for event in rejected]
    assert all(0 <= event["kept_tokens"] < event["kept_tokens"] + event["tokens"] for event in rejected)


@pytest.mark.parametrize("policy", ["target", "draft", "rsd", "self_consistency"])
async def test_each_token_has_its_log_probability_where_the_request_is_traced(policy: str) -> None:
    completion, _ = await traced(policy)
    plain, told = await traced(policy, is_traced=False)

    assert [len(step.logprobs) for step in completion.steps] == [len(step.token_ids) for step in completion.steps]
    assert all(step.mean_logprob is not None and step.mean_logprob < 0 for step in completion.steps)
    assert [(step.text, step.author) for step in completion.steps] == [(step.text, step.author) for step in plain.steps]
    assert told == []


async def test_probes_and_what_was_written_after_the_stop_are_told() -> None:
    rule = {"kind": "upper_threshold", "signal": {"kind": "agreement"}, "threshold": 3}
    schedule = {"first_tokens": 8, "block_tokens": 8, "growth": 1.0, "answer_tokens": 12}
    completion, told = await traced("target", script=thinks_long, stopping={"rule": rule, "schedule": schedule})

    probes = of_kind(told, "probe")
    assert [probe["action"] for probe in probes if probe["action"] != "unused"] == ["go_on"] * 5 + ["answer"]
    assert [probe["answer"] for probe in probes][:6] == ["1", "2", "3", "7", "7", "7"]
    stopping = completion.details["stopping"]
    assert probes[5]["at_tokens"] == stopping["tokens"]
    assert sum(probe["tokens"] for probe in probes) == stopping["probe_tokens"]
    after = of_kind(told, "discarded")
    assert {(event["why"], event["author"]) for event in after} <= {("stopped", "target")}
    probed = stopping["probe_tokens"] - stopping["returned_tokens"]
    lost = completion.usage["target"].discarded - probed
    assert 0 <= lost - sum(event["tokens"] for event in after) < 20  # a step that was not whole yet


class Wordy(Target):
    """Commits two steps of ten tokens each."""

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        for text in ("once over\n", "and again\n"):
            yield Step(text, tuple(engines["target"].tokenizer.encode(text)), "target")
        yield Stop(FinishReason.STOP)


async def test_what_a_limit_cuts_off_is_told() -> None:
    register_policy("wordy", Wordy)
    try:
        completion, told = await traced("wordy", limits=Limits(max_tokens=15))
    finally:
        unregister_policy("wordy")

    assert completion.text == "once over\n"
    assert [(event["why"], event["text"], event["tokens"]) for event in told] == [("limit", "and again\n", 10)]


async def test_samples_of_a_vote_are_told() -> None:
    _, told = await traced("self_consistency", k=3)

    samples = of_kind(told, "sample")
    assert [sample["answer"] for sample in samples] == ["7"] * len(samples)
    assert {sample["text"] for sample in samples} == {"".join(GOOD)}
