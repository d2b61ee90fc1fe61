"""The majority wins, and sampling stops exactly when nothing could change it."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.policies.self_consistency import is_decided
from reasonrt.types import Sampling
from reasonrt.writing import seed_of

SEED = 100
INDEX = {seed_of(SEED, "sample", index): index for index in range(64)}


async def vote(texts: list[str], max_tokens: int = 1024) -> tuple[Completion, ScriptedEngine]:
    """Sample number i writes `texts[i]`; a longer text takes longer."""

    def script(prompt: str, sampling: Sampling) -> str:
        return texts[INDEX[sampling.seed]]

    engine = ScriptedEngine("target", script, chunk_tokens=1)
    request = Request.ask(
        "?", "self_consistency", options={"k": len(texts)}, seed=SEED, limits=Limits(max_tokens=max_tokens)
    )
    return await Runtime({"target": engine}).complete(request), engine


@given(votes=st.lists(st.integers(0, 5), max_size=4), silent=st.integers(0, 2), running=st.integers(0, 4))
def test_is_decided_is_true_exactly_when_no_outcome_changes_the_leader(
    votes: list[int], silent: int, running: int
) -> None:
    answers: Counter[object] = Counter({index: count for index, count in enumerate(votes) if count})
    answers[None] = silent

    def leader(counts: Counter[object]) -> object:
        ranked = [(answer, count) for answer, count in counts.most_common() if answer is not None and count]
        is_alone = ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1])
        return ranked[0][0] if is_alone else None

    outcomes = itertools.product([*range(len(votes)), "new", "other", None], repeat=running)
    leaders = {leader(answers + Counter(outcome)) for outcome in outcomes}

    assert is_decided(answers, running) == (len(leaders) == 1 and None not in leaders)


@settings(deadline=None)
@given(samples=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30)), min_size=1, max_size=9))
async def test_winner_is_the_full_majority_and_no_sample_is_drawn_in_vain(samples: list[tuple[int, int]]) -> None:
    texts = ["think" * thinking + rf"\boxed{{{answer}}}" for answer, thinking in samples]

    completion, engine = await vote(texts)

    full = Counter(answer for answer, _ in samples)
    assert completion.content.endswith(rf"\boxed{{{full.most_common(1)[0][0]}}}")
    assert completion.details["votes"] <= max(full.values())
    assert completion.details["k"] == len(texts)
    assert engine.running == 0
    usage = completion.usage["target"]
    assert usage.generated == engine.generated_tokens
    # the votes of the shortest samples decide, of equals the first: what is longer is not waited for
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    assert completion.details["samples"] == next(
        n
        for n in range(1, len(texts) + 1)
        if n == len(texts) or is_decided(Counter(samples[i][0] for i in by_length[:n]), len(texts) - n)
    )


async def test_early_stop_saves_what_the_long_samples_would_have_written() -> None:
    short, long = r"\boxed{1}", "x" * 500 + r"\boxed{2}"

    completion, engine = await vote([long, short, short, short, long])

    assert completion.text == short
    assert completion.details == {"votes": 3, "samples": 3, "k": 5}
    assert engine.generated_tokens < 150


async def test_tie_goes_to_the_sample_that_was_asked_first() -> None:
    completion, _ = await vote(["xxxx" + r"\boxed{1}", r"\boxed{2}"])

    assert completion.text.endswith(r"\boxed{1}")
    assert completion.details == {"votes": 1, "samples": 2, "k": 2}


async def test_equal_answers_count_together_however_they_are_written() -> None:
    completion, _ = await vote([r"\boxed{0.5}", r"\boxed{7}", r"\boxed{\frac{1}{2}}"])

    assert completion.text == r"\boxed{0.5}"
    assert completion.details["votes"] == 2


async def test_sample_that_was_cut_off_has_no_vote() -> None:
    cut_off = "7 and 7 " * 20

    completion, _ = await vote([cut_off, cut_off, r"\boxed{1}"], max_tokens=30)

    assert completion.text == r"\boxed{1}"
    assert completion.finish_reason is FinishReason.STOP


async def test_limit_of_the_thinking_is_that_of_each_sample() -> None:
    """Those that think for longer are closed, and answer: they are not cut off, and out of the vote."""

    def script(prompt: str, sampling: Sampling) -> str:
        if prompt.endswith("\n</think>\n\n"):
            return r"\boxed{1}"
        thought = "x" * (2 if sampling.seed == seed_of(SEED, "sample", 2) else 500)
        return f"<think>\n{thought}\n</think>\n\n" + r"\boxed{2}"

    engine = ScriptedEngine("target", script, chunk_tokens=1)
    request = Request.ask("?", "self_consistency", options={"k": 5}, seed=SEED, thinking_tokens=60)

    completion = await Runtime({"target": engine}).complete(request)

    assert completion.content == r"\boxed{1}"
    assert completion.details == {"closed": "limit", "votes": 3, "samples": 4, "k": 5}
    assert engine.running == 0


@pytest.mark.parametrize(
    ("budget", "is_apart", "votes", "reason"),
    [
        (350, False, 3, FinishReason.STOP),
        (350, True, 3, FinishReason.STOP),
        (250, False, 2, FinishReason.STOP),  # the third is cut
        (250, True, 2, FinishReason.STOP),
        (60, False, 0, FinishReason.BUDGET),
        (60, True, 0, FinishReason.BUDGET),
        (10_000, False, 3, FinishReason.STOP),
    ],
)
async def test_budget_draws_what_it_can_hold_whole(
    budget: int, is_apart: bool, votes: int, reason: FinishReason
) -> None:
    """Shared by all samples from the beginning, it would cut each of them, and nobody would vote."""
    text = "x" * 91 + r"\boxed{1}"
    engine = ScriptedEngine("target", text)
    limits, thinking = Limits(max_generated_tokens=budget), 500 if is_apart else None
    request = Request.ask("?", "self_consistency", options={"k": 5}, limits=limits, thinking_tokens=thinking)

    completion = await Runtime({"target": engine}).complete(request)

    assert (completion.details.get("votes", 0), completion.finish_reason) == (votes, reason)
    assert completion.content == (text if votes else "" if is_apart else "x" * 60)
    assert engine.running == 0


async def test_without_any_answer_the_first_sample_is_the_text() -> None:
    completion, _ = await vote(["no idea", "none at all"])

    assert completion.text == "no idea"
    assert completion.details == {"votes": 0, "samples": 2, "k": 2}


@pytest.mark.parametrize("k", [1, 64])
async def test_bounds_of_k(k: int) -> None:
    completion, engine = await vote([r"\boxed{1}"] * k)

    assert completion.text == r"\boxed{1}"
    assert engine.running == 0


async def test_one_answer_in_several_spellings_has_all_their_votes() -> None:
    answers = [r"x = \frac12", "3", r"\dfrac12", "3", "0.5"]

    completion, _ = await vote([rf"\boxed{{{answer}}}" for answer in answers])

    assert completion.details["votes"] == 3
    assert completion.content == rf"\boxed{{{answers[0]}}}"


@pytest.mark.parametrize(("options", "drawn"), [({}, 5), ({"temperature": 0.3}, 5), ({"temperature": 0}, 1)])
async def test_equal_samples_are_drawn_once(options: dict[str, float], drawn: int) -> None:
    """At the request's temperature of 0 it draws at its own; where that is 0, too, k votes would all be one."""
    temperatures = set()

    def script(prompt: str, sampling: Sampling) -> str:
        temperatures.add(sampling.temperature)
        return str(INDEX[sampling.seed])

    runtime = Runtime({"target": ScriptedEngine("target", script)})
    request = Request.ask("?", "self_consistency", options={"k": 5, **options}, seed=SEED)

    completion = await runtime.complete(request)

    assert temperatures == {options.get("temperature", 0.7)}
    assert completion.usage["target"].calls == completion.details["samples"] == drawn
    assert runtime.prepare(request).policy.num_streams == drawn


@pytest.mark.parametrize(("running", "agreed", "drawn"), [(0, True, 5), (48, True, 3), (48, False, 5)])
async def test_busy_engine_draws_what_the_vote_may_not_need_only_when_it_does(
    running: int, agreed: bool, drawn: int
) -> None:
    asked = []

    def script(prompt: str, sampling: Sampling) -> str:
        asked.append(INDEX[sampling.seed])
        return rf"\boxed{{{7 if agreed else INDEX[sampling.seed] % 2}}}"

    runtime = Runtime({"target": ScriptedEngine("target", script)})
    runtime.paces["target"].running = running

    completion = await runtime.complete(Request.ask("?", "self_consistency", options={"k": 5}, seed=SEED))

    assert sorted(asked) == list(range(drawn))
    assert completion.details["votes"] == 3
    assert completion.usage["target"].calls == drawn
