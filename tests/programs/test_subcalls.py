"""Sub-questions: each asked once, shared by who asks the same, and given up when nobody waits."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from reasonrt.errors import EngineError
from reasonrt.programs.budget import Spent
from reasonrt.programs.model import PromptTooLong, Written
from reasonrt.programs.subcalls import Question, Reply, SubCalls
from reasonrt.types import FinishReason, Message


class Slow:
    """Answers with the prompt in capitals once it is let go; a choice is the label that stands in the prompt."""

    def __init__(self, can_choose: bool = True, say: Callable[[str], str] = str.upper) -> None:
        self.go = asyncio.Event()
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.can_choose, self.say = can_choose, say

    async def write(self, messages: Sequence[Message], *, max_tokens: int, **_: Any) -> Written:
        prompt = messages[0].content
        self.asked.append(prompt)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(prompt)
            raise
        for word, error in (
            ("long", PromptTooLong("the prompt is too long")),
            ("spent", Spent(FinishReason.BUDGET)),
            ("die", EngineError("engine 'target' died")),
        ):
            if word in prompt:
                raise error
        return Written(self.say(prompt), min(max_tokens, len(prompt)), True)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        if not self.can_choose:
            return ()
        self.asked.append(messages[0].content)
        first = messages[0].content.partition("\n")[0]
        return tuple(0.7 if choice == first else 0.3 / (len(choices) - 1) for choice in choices)


async def started(model: Slow, num: int = 1) -> None:
    async with asyncio.timeout(60):
        while len(model.asked) < num:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_who_asks_the_same_gets_the_same_answer_from_one_call() -> None:
    model = Slow()
    sub_calls = SubCalls(model, 100)
    askers = [asyncio.create_task(sub_calls.ask([Question("a"), Question("b"), Question("a")])) for _ in range(3)]
    await started(model, 2)
    model.go.set()

    for asker in askers:
        assert [reply.value for reply in await asker] == ["A", "B", "A"]
    assert sorted(model.asked) == ["a", "b"]
    assert (sub_calls.num_asked, sub_calls.num_shared) == (2, 7)
    assert [reply.value for reply in await sub_calls.ask([Question("a")])] == ["A"]  # also after it was answered
    assert len(model.asked) == 2


async def test_one_asker_that_leaves_takes_nothing_from_the_other() -> None:
    model = Slow()
    sub_calls = SubCalls(model, 100)
    leaving, staying = (asyncio.create_task(sub_calls.ask([Question("a")])) for _ in range(2))
    await started(model)

    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    model.go.set()

    assert [reply.value for reply in await staying] == ["A"]
    assert not model.cancelled


async def test_what_nobody_waits_for_any_more_is_given_up_and_can_be_asked_again() -> None:
    model = Slow()
    sub_calls = SubCalls(model, 100)
    askers = [asyncio.create_task(sub_calls.ask([Question("a"), Question("b")])) for _ in range(2)]
    await started(model, 2)

    for asker in askers:
        asker.cancel()
    await asyncio.gather(*askers, return_exceptions=True)
    await asyncio.sleep(0)
    assert sorted(model.cancelled) == ["a", "b"]

    model.go.set()
    assert [reply.value for reply in await sub_calls.ask([Question("a")])] == ["A"]


async def test_end_of_a_run_gives_up_what_still_runs() -> None:
    model = Slow()
    sub_calls = SubCalls(model, 100)
    asker = asyncio.create_task(sub_calls.ask([Question("a")]))
    await started(model)

    await sub_calls.aclose()
    await sub_calls.aclose()

    assert model.cancelled == ["a"]
    with pytest.raises(asyncio.CancelledError):
        await asker


async def test_one_that_fails_costs_its_neighbours_nothing_and_is_asked_anew() -> None:
    model = Slow()
    model.go.set()
    sub_calls = SubCalls(model, 100)

    replies = await sub_calls.ask([Question(each) for each in ("a", "too long", "spent", "die", "b")])

    assert [reply.value for reply in replies] == ["A", None, None, None, "B"]
    assert [reply.error for reply in replies] == [
        "", "the prompt is too long", "the budget is spent: budget", "the model could not answer: engine 'target' died",
        "",
    ]  # fmt: skip
    await sub_calls.ask([Question("a"), Question("die")])
    assert model.asked.count("die") == 2
    assert model.asked.count("a") == 1


@pytest.mark.parametrize(
    ("said", "question", "value"),
    [
        ("There are 1,234 of them.", Question("x", "", "number"), 1234),
        ("-2.5", Question("x", "", "number"), -2.5),
        ("1/4", Question("x", "", "number"), 0.25),
        ("1/4.", Question("x", "", "number"), 0.25),
        ("2e3", Question("x", "", "number"), 2000),
        ("12 apples", Question("x", "", "number"), 12),
        ("seven", Question("x", "", "number"), 7),
        ("9" * 400 + ".5", Question("x", "", "number"), None),
        ("none at all", Question("x", "", "number"), None),
        ("inf", Question("x", "", "number"), None),
        ("Yes.", Question("x", "", "bool"), True),
        ("no", Question("x", "", "bool"), False),
        ("perhaps", Question("x", "", "bool"), None),
        ("'Red'.", Question("x", "", "choice", ("red", "blue")), "red"),
        ("not red", Question("x", "", "choice", ("red", "blue")), None),
        ("", Question("x"), None),
        (" \n ", Question("x"), None),
        ("plain", Question("x"), "plain"),
    ],
)
async def test_what_a_model_says_is_read_by_its_kind_where_it_cannot_be_read(
    said: str, question: Question, value: object
) -> None:
    model = Slow(can_choose=False, say=lambda _: said)
    model.go.set()

    (reply,) = await SubCalls(model, 100).ask([question])

    assert reply.value == value
    assert bool(reply.error) == (value is None)
    assert "\n" not in reply.error
    assert len(reply.error) < 250


async def test_a_choice_is_read_with_its_probability() -> None:
    sub_calls = SubCalls(Slow(), 100)

    assert await sub_calls.ask([Question("red", "?", "choice", ("blue", "red")), Question("no", "?", "bool")]) == [
        Reply("red", "", 0.7, 1),
        Reply(False, "", 0.7, 1),
    ]


@pytest.mark.parametrize(
    ("question", "last"),
    [
        (Question("the data", "Who?"), "Who?"),
        (Question("the data", "How many?", "number"), "Answer with one number and nothing else."),
        (Question("the data", "Which?", "choice", ("a", "b")), "Answer with one of: a, b."),
    ],
)
def test_data_comes_first_so_that_questions_about_it_share_a_prefix(question: Question, last: str) -> None:
    (message,) = question.messages()

    assert message.content.startswith("the data\n\n")
    assert message.content.endswith(last)


async def test_no_questions_have_no_replies() -> None:
    assert await SubCalls(Slow(), 100).ask([]) == []
