"""The loop of step-level speculation: who writes what, and what is thrown away."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import RequestError
from reasonrt.policies.registry import build_policy

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


async def solve(runtime: Runtime, policy: str = "rsd", limits: Limits | None = None, **options: Any) -> Completion:
    return await runtime.complete(Request.ask("?", policy, options=options, limits=limits or Limits()))


def engine(runtime: Runtime, role: str) -> ScriptedEngine:
    found = runtime.engines[role]
    assert isinstance(found, ScriptedEngine)
    return found


def authors(completion: Completion) -> list[str]:
    return [step.author for step in completion.steps]


@pytest.mark.parametrize("look_ahead", [0, 1, 4])
@pytest.mark.parametrize("warm_target", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_target_writes_the_steps_that_the_router_rejects(look_ahead: int, warm_target: bool, chunk: int) -> None:
    runtime = make_runtime(chunk_tokens=chunk)

    completion = await solve(runtime, look_ahead=look_ahead, warm_target=warm_target)

    assert [step.text for step in completion.steps] == GOOD
    assert authors(completion) == ["draft", "target", "draft", "target", "draft", "target"]
    assert completion.finish_reason is FinishReason.STOP
    draft_tokens = sum(len(step.token_ids) for step in completion.steps if step.author == "draft")
    assert dict(completion.details) | {"router_s": 0} == {
        "steps": 6, "draft_steps": 3, "draft_tokens": draft_tokens, "escalations": 3, "useless_escalations": 0,
        "verifications": 0, "agreed": 0, "not_verified": "", "router_s": 0, "verify_s": 0, "fallback": "",
        "expected_loss": 0.0, "handed_over": False,
    }  # fmt: skip
    assert completion.usage["target"].generated == sum(len(s.token_ids) for s in completion.steps[1::2]) + (
        completion.usage["target"].probe
    )


async def test_threshold_of_zero_is_the_draft_and_of_one_over_one_is_the_target() -> None:
    """Rewards are 0 and 1: no step is below 0, and every one is below 1.1."""
    lenient, strict = await solve(make_runtime(), threshold=0.0), await solve(make_runtime(), threshold=1.1)

    assert [step.text for step in lenient.steps][:-1] == BAD[:-1]
    assert set(authors(strict)) == {"target"}


async def test_answer_has_its_stricter_threshold() -> None:
    """A reward of 0.6 is enough for a step (threshold 0.5, advantage 0.4), not for the answer (0.25)."""
    runtime = make_runtime(scores=lambda text: 0.6)

    completion = await solve(runtime, threshold=0.5)
    same = await solve(runtime, threshold=0.5, answer_threshold=0.5)

    assert authors(completion) == ["draft"] * 4 + ["target"] * 2  # the end of thinking, and the box
    assert set(authors(same)) == {"draft"}


@pytest.mark.parametrize(
    ("policy", "strict", "stricter"), [("rsd", 0.7, 0.9), ("specreason", 5, 8), ("arbitrage", 0.06, 0.03)]
)
def test_answers_threshold_is_in_the_unit_of_the_other(policy: str, strict: float, stricter: float) -> None:
    """Between both, a step is good enough and an answer is not."""
    built: Any = build_policy(policy, {"threshold": strict, "answer_threshold": stricter})
    between = built.kind.advantage_at((strict + stricter) / 2)

    assert not built.is_worth(between, Step("so\n\n", (1,), "draft"), None)
    assert built.is_worth(between, Step(r"\boxed{7}", (1,), "draft"), None)


async def test_target_share_is_kept() -> None:
    completion = await solve(make_runtime(), threshold=1.1, max_target_share=0.5)

    tokens = [len(step.token_ids) for step in completion.steps]
    written = sum(n for n, author in zip(tokens, authors(completion), strict=True) if author == "target")
    assert 0 < written <= 0.5 * sum(tokens) + max(tokens)
    for draft in (BAD, BAD[:3]):  # not even the end is asked about
        nothing = await solve(make_runtime(draft), threshold=1.1, max_target_share=0, start_early=0.0)
        assert nothing.usage["target"].calls == 0


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("policy", ["rsd", "specreason"])  # the target may be the router, too
@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("warm_target", [False, True])
async def test_verified_steps_are_charged_by_passes(
    share: float, policy: str, is_lost: bool, warm_target: bool
) -> None:
    """A target that agrees writes no token; each step of nine tokens costs it a pass, and not nine tokens.

    A draft that has lost a step is corrected again and again, and each time that is a pass as well.
    """
    steps = [f"step {index:03}\n\n" for index in range(40)]
    drafted = ["zzzz zzz\n\n"] * 40 if is_lost else steps
    options: dict[str, Any] = {"threshold": 10.0, "max_target_share": share, "warm_target": warm_target}

    completion = await solve(make_runtime(drafted, steps), policy, verify=True, **options)

    if not is_lost:
        assert completion.text == "".join(steps)
    passes, tokens = completion.usage["target"].passes, sum(len(step.token_ids) for step in completion.steps)
    assert passes <= share * tokens
    assert passes >= min(share * tokens - 2, len(steps))


@pytest.mark.parametrize("policy", ["rsd", "specreason"])
async def test_probes_of_a_stopping_rule_take_nothing_of_the_targets_share(policy: str) -> None:
    """The text that is recorded, with many probes, is the one that is written without them."""
    steps = ["<think>\n\n", *[f"step {index:03}\n\n" for index in range(40)], "</think>\n\n", r"\boxed{7}"]
    options: dict[str, Any] = {"threshold": 10.0, "verify": True, "max_target_share": 0.1}
    schedule = {"first_tokens": 8, "block_tokens": 4, "growth": 1.1, "answer_tokens": 12}
    drafted = [step.replace("step", "stop") for step in steps]

    free = await solve(make_runtime(drafted, steps), policy, **options)
    options["stopping"] = {"record": True, "schedule": schedule}
    recorded = await solve(make_runtime(drafted, steps), policy, **options)

    assert recorded.usage["target"].passes > free.usage["target"].passes
    assert [(step.text, step.author) for step in recorded.steps] == [(step.text, step.author) for step in free.steps]
    assert recorded.details["verifications"] == free.details["verifications"] > 1


@pytest.mark.parametrize("options", [{}, {"verify": True}, {"hand_over": True}, {"max_target_share": 0}])
async def test_step_that_the_draft_keeps_is_its_own_after_a_limit_of_the_thinking_has_cut_it(
    options: dict[str, Any],
) -> None:
    """The text holds no thinking, and so it goes on: nobody has doubted what was written up to the limit."""
    steps = ["a step\n\n", "a second step\n\n", r"\boxed{7}"]
    runtime = make_runtime(steps, scores=lambda text: 1.0)

    completion = await runtime.complete(Request.ask("?", "rsd", options=options, thinking_tokens=12))

    assert completion.text == "".join(steps)
    assert [step.is_complete for step in completion.steps] == [True, False, True, True]
    assert completion.usage["target"].calls == 0
    assert not completion.details["handed_over"]


async def test_useless_escalations_are_counted() -> None:
    completion = await solve(make_runtime(draft=GOOD), threshold=1.1)

    assert completion.details["useless_escalations"] == completion.details["escalations"] == len(GOOD)


async def test_price_buys_less_where_the_target_is_slow() -> None:
    """Advantage 1 for a bad step; the target's step costs about 7 tokens * 20 ms."""
    runtime = make_runtime(seconds_per_token=0.02, chunk_tokens=1)
    await solve(runtime, "target")  # now its pace is known

    cheap, dear = await solve(runtime, price=0.5), await solve(runtime, price=50.0)

    assert cheap.details["escalations"] == 3
    assert dear.details["escalations"] == 0


async def test_kept_prefix_ends_where_the_draft_was_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = ScriptedEngine("", "").tokenizer.encode("2!")
    monkeypatch.setattr(ScriptedEngine, "logprob", staticmethod(lambda token_id: -5.0 if token_id in unsure else -0.01))
    runtime = make_runtime(
        draft=["<think>\none\n\n", "tw2\n\n", *BAD[2:]], scores=lambda text: float("tw2" not in text)
    )

    completion = await solve(runtime, keep_prefix=0.9, threshold=0.5)

    assert completion.text.startswith("<think>\none\n\ntwo\n\nthree")
    kept, rest = completion.steps[1:3]
    assert (kept.text, kept.author, kept.is_complete) == ("tw", "draft", False)
    assert (rest.text, rest.author) == ("o\n\n", "target")


async def test_rejecting_early_stops_the_draft_within_the_step() -> None:
    runtimes = [make_runtime(chunk_tokens=1, scores=lambda text: float("2" not in text)) for _ in range(2)]

    late, early = await solve(runtimes[0]), await solve(runtimes[1], reject_early=True)

    assert early.text.startswith("<think>\none\n\ntwo\n\n")
    assert early.usage["draft"].discarded < late.usage["draft"].discarded


async def test_target_that_starts_early_is_stopped_when_the_draft_is_good_enough() -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.001)

    completion = await solve(runtime, start_early=0.0)

    assert [step.text for step in completion.steps] == GOOD
    assert completion.usage["target"].discarded > 0
    assert engine(runtime, "target").running == 0


async def test_draft_is_stopped_when_it_is_too_far_ahead() -> None:
    """The router takes as long as many steps; the draft may be one step ahead, not all of them."""
    runtime = make_runtime(draft=["a\n\n"] * 200)
    runtime.engines["reward"] = ScriptedEngine("reward", "", scores=lambda text: 1.0, seconds_per_token=0.01)
    committed = 0

    async with aclosing(runtime.solve(Request.ask("?", "rsd", options={"look_ahead": 1}))) as events:
        async for event in events:
            assert isinstance(event, Step)
            assert engine(runtime, "draft").generated_tokens - committed <= 10  # three steps and a delta
            committed += len(event.token_ids)
            if committed > 40:
                break


@given(
    rewards=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    threshold=st.floats(0, 1),
    look_ahead=st.integers(0, 3),
    chunk=st.integers(1, 20),
    keep_prefix=st.sampled_from([0.0, 0.5, 1.0]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(deadline=None)
async def test_text_is_what_its_authors_wrote_and_tokens_add_up(
    rewards: list[float],
    threshold: float,
    look_ahead: int,
    chunk: int,
    keep_prefix: float,
    flags: tuple[bool, bool, bool],
) -> None:
    runtime = make_runtime(chunk_tokens=chunk, scores=lambda text: rewards[len(text) % len(rewards)])

    completion = await solve(
        runtime, threshold=threshold, look_ahead=look_ahead, keep_prefix=keep_prefix, warm_target=flags[0],
        reject_early=flags[1], verify=flags[2],
    )  # fmt: skip

    assert completion.finish_reason is FinishReason.STOP
    assert completion.text.count("\n\n") == 5
    for role in ("draft", "target"):
        committed = sum(len(step.token_ids) for step in completion.steps if step.author == role)
        usage = completion.usage[role]
        assert usage.generated == engine(runtime, role).generated_tokens
        assert usage.generated - usage.discarded == committed
        assert engine(runtime, role).running == 0


@pytest.mark.parametrize("options", [{"start_early": 0.0}, {"verify": True, "threshold": 1.1}])
async def test_leaving_stops_draft_target_and_what_warms_it(options: dict[str, Any]) -> None:
    runtime = make_runtime(draft=["a longer step of many letters, to be read along\n\n"] * 50, seconds_per_token=0.001)
    events = runtime.solve(Request.ask("?", "rsd", options=options | {"warm_target": True}))
    await anext(events)
    await anext(events)

    await events.aclose()
    counts = [engine(runtime, role).generated_tokens for role in ("draft", "target")]
    await asyncio.sleep(0.05)

    assert [engine(runtime, role).generated_tokens for role in ("draft", "target")] == counts
    assert all(engine(runtime, role).running == 0 for role in ("draft", "target"))


async def test_oracle_takes_the_better_step_of_both() -> None:
    completion = await solve(make_runtime(), "oracle")

    assert completion.text == "".join(GOOD)
    assert authors(completion) == ["draft", "target", "draft", "target", "draft", "target"]


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("rsd", {"max_target_share": 2}, r"max_target_share must be a number in \[0, 1\], got 2"),
        ("rsd", {"price": -1}, r"price must be a number in \[0, 1000000\] or null, got -1"),
        ("oracle", {"threshold": "abc"}, "threshold must be a number"),
        ("arbitrage", {"verify": "no"}, "verify must be true or false, got 'no'"),
        ("target", {"engine": {}}, "engine must be text, got {}"),
        ("arbitrage", {"target": ["x"]}, "target must be text"),
        ("arbitrage", {"threshold": float("nan")}, "threshold must be"),
        ("rsd", {"threshold": "high"}, "threshold must be .* got 'high'"),
        ("rsd", {"layout": "magic"}, "layout must be one of plain, marked, skywork, qwen_prm, got 'magic'"),
        ("random", {"look_ahead": True}, "look_ahead must be"),
        ("arbitrage", {"patience": 5}, "unknown option 'patience'"),
    ],
)
def test_bad_options_are_refused(policy: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_policy(policy, options)


def test_committed_steps_carry_their_advantage() -> None:
    completion = asyncio.run(solve(make_runtime()))

    assert all(isinstance(step, Step) and "advantage" in step.scores for step in completion.steps)
