"""Journals: all that was said, under what was asked, and nothing else."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from reasonrt.errors import EngineError, RequestError
from reasonrt.programs.budget import Spent
from reasonrt.programs.journal import (
    AnotherCourse,
    Journal,
    JournaledModel,
    ReplayedModel,
    digest,
    journaled_below,
    replayed_below,
)
from reasonrt.programs.model import PromptTooLong, Written
from reasonrt.types import Document, FinishReason, Message

ASKED = (Message("system", "s"), Message("user", "Which é \ud800?"))


def make_journal() -> Journal:
    return Journal("Which?", (Document("é\0\r\n", "a.txt"), Document("")), {"k": 3, "answer": "auto"}, 7, "0a0b0c0d")


class Model:
    """Says different things to different questions."""

    async def write(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        until: Callable[[str], bool] | None = None,
        beginning: str = "",
    ) -> Written:
        if max_tokens > 100:
            raise PromptTooLong("too long by far")
        return Written(f"{messages[-1].content} {temperature} {seed}{beginning}", max_tokens, True, -0.25)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        if len(choices) > 3:
            raise PromptTooLong("too long by far")
        return tuple(1 / len(choices) for _ in choices)


def through_a_file(journal: Journal, folder: Path) -> Journal:
    (folder / "journal.json").write_text(json.dumps(journal.to_value()))
    return Journal.read(folder / "journal.json")


ASKING: list[Callable[[Any], Any]] = [
    lambda model: model.write(ASKED, max_tokens=5),
    lambda model: model.write(ASKED, max_tokens=6),
    lambda model: model.write(ASKED, max_tokens=5, temperature=0.5),
    lambda model: model.write(ASKED, max_tokens=5, temperature=0.5, seed=1),
    lambda model: model.write(ASKED, max_tokens=5, beginning="b"),
    lambda model: model.write(ASKED[1:], max_tokens=5),
    lambda model: model.choose(ASKED, ("a", "b")),
    lambda model: model.choose(ASKED, ("ab", "")),
]
TOO_LONG: list[Callable[[Any], Any]] = [
    lambda model: model.write(ASKED, max_tokens=101),
    lambda model: model.choose(ASKED, ("a", "b", "c", "d")),
]


async def test_a_journal_says_again_what_was_said_through_a_file(tmp_path: Path) -> None:
    journal = make_journal()
    recording = JournaledModel(Model(), journal, "root")
    said = [await ask(recording) for ask in ASKING]
    for ask in TOO_LONG:
        with pytest.raises(PromptTooLong):
            await ask(recording)
    assert len(journal.replies) == len(ASKING) + len(TOO_LONG)

    read = through_a_file(journal, tmp_path)
    assert read == journal
    replayed = ReplayedModel(read, "root")
    assert [await ask(replayed) for ask in ASKING] == said
    for ask in TOO_LONG:
        with pytest.raises(PromptTooLong, match="too long by far"):
            await ask(replayed)


@pytest.mark.parametrize("ask", [*ASKING, *TOO_LONG])
async def test_what_was_not_asked_is_another_course(ask: Callable[[Any], Any], tmp_path: Path) -> None:
    journal = make_journal()
    await ASKING[0](JournaledModel(Model(), journal, "sub"))

    with pytest.raises(AnotherCourse, match="another course"):
        await ask(ReplayedModel(journal, "root"))  # it was another model that was asked


async def test_reply_that_no_model_gives_is_named(tmp_path: Path) -> None:
    journal = make_journal()
    for ask in ASKING:
        await ask(JournaledModel(Model(), journal, "root"))
        (key,) = journal.replies
        for spoilt in (None, "x", {"text": "x"}, [["x"]], {}, {"failed": "spent"}, {"failed": "spent", "why": 7}):
            journal.replies[key] = [spoilt]
            with pytest.raises(AnotherCourse, match=f"reply {key} is none that a model gives"):
                await ask(ReplayedModel(through_a_file(journal, tmp_path), "root"))
        journal.replies.clear()


class Failing(Model):
    """Fails in every way that there is, then says something."""

    def __init__(self) -> None:
        self.errors: list[Exception] = [Spent(FinishReason.CALLS), EngineError("it died"), RequestError("no")]

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        if self.errors:
            raise self.errors.pop(0)
        return (0.5, 0.5)


async def test_failures_come_again_in_their_order_and_the_last_reply_stays(tmp_path: Path) -> None:
    async def outcomes(model: Any) -> list[str]:
        found = []
        for _ in range(5):
            try:
                found.append(str(await model.choose(ASKED, ("a", "b"))))
            except (Spent, EngineError, RequestError) as error:
                found.append(f"{type(error).__name__} {error}")
        return found

    journal = make_journal()
    said = await outcomes(JournaledModel(Failing(), journal, "root 0"))

    assert said == ["Spent the budget is spent: calls", "EngineError it died", "RequestError no", *["(0.5, 0.5)"] * 2]
    assert await outcomes(ReplayedModel(through_a_file(journal, tmp_path), "root 0")) == said


async def test_runs_below_are_answered_again(tmp_path: Path) -> None:
    async def ask(question: str, text: str) -> str:
        if not text:
            raise RequestError("nothing to search")
        return f"{question} {text}"

    journal = make_journal()
    below = journaled_below(ask, journal)
    assert await below("who", "é") == "who é"
    with pytest.raises(RequestError):
        await below("who", "")

    again = replayed_below(through_a_file(journal, tmp_path))
    assert await again("who", "é") == "who é"
    with pytest.raises(RequestError, match="nothing to search"):
        await again("who", "")
    with pytest.raises(AnotherCourse):
        await again("what", "é")


@pytest.mark.parametrize(
    "change",
    [
        {"documents": None},
        {"documents": [{"name": "a"}]},
        {"documents": [{"text": 7}]},
        {"seed": "seven"},
        {"seed": None},
        {"options": []},
        {"order": [0.5]},
        {"replies": []},
        {"replies": {"a": "x"}},
        {"was_late": "perhaps"},
        {"nonce": 7},
        {"schema": "reasonrt.program_journal/1"},
    ],
)
def test_file_that_is_none_of_ours_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text(json.dumps(make_journal().to_value() | change))

    with pytest.raises(RequestError, match=r"journal\.json.*record it anew"):
        Journal.read(tmp_path / "journal.json")


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "[" * 100_000, "{" * 100_000, '{"schema": [1]}'])
def test_text_that_is_no_journal_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text(text)

    with pytest.raises(RequestError, match=r"journal\.json.*record it anew"):
        Journal.read(tmp_path / "journal.json")


def test_bytes_that_are_no_journal_are_named(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_bytes(b"\xff\xfe")

    with pytest.raises(RequestError, match=r"journal\.json.*record it anew"):
        Journal.read(tmp_path / "journal.json")
    with pytest.raises(RequestError, match="cannot read"):
        Journal.read(tmp_path)


def test_digest_depends_on_the_value_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1, "b": [2]}) != digest({"a": 1, "b": ["2"]})
    assert len(digest("\ud800")) == 64  # half of a surrogate pair, too
