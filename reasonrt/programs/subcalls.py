"""Sub-questions of all candidates of a run: gathered, asked concurrently, and each one only once.

To the program that asks, a sub-call looks synchronous. Here it is a task, which every candidate that asks the same
shares: sub-questions are asked at temperature 0, so that equal ones have equal answers. Nothing is shared between
requests, and so nothing between tenants.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from reasonrt.answers import find_answer, normal_form
from reasonrt.errors import EngineError, RequestError, told
from reasonrt.programs.budget import Spent
from reasonrt.programs.model import Model, PromptTooLong
from reasonrt.programs.values import value_of
from reasonrt.tasks import cancel
from reasonrt.types import Message

YES, NO = "yes", "no"
_SHORT_TOKENS = 24  # of a number, or of a label that cannot be read

Kind = Literal["text", "number", "bool", "choice"]


@dataclass(frozen=True, slots=True)
class Question:
    """One sub-question: the data first and the instruction last, so that questions about the same data share a prefix.

    Attributes:
        kind: of the answer; a choice is one of `labels`, read and not parsed.
    """

    data: str
    instruction: str = ""
    kind: Kind = "text"
    labels: tuple[str, ...] = ()

    def messages(self) -> tuple[Message, ...]:
        """What the model is asked."""
        form = {
            "text": "",
            "number": "Answer with one number and nothing else.",
            "bool": f"Answer with {YES} or {NO}.",
            "choice": f"Answer with one of: {', '.join(self.labels)}.",
        }[self.kind]
        return (Message("user", "\n\n".join(part for part in (self.data, self.instruction, form) if part)),)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one sub-question.

    Attributes:
        value: of the question's kind; None where it failed.
        error: why it failed; empty where it did not.
        probability: of a choice, among the choices.
        num_tokens: that the model wrote; a choice that is read counts as one.
    """

    value: str | int | float | bool | None
    error: str = ""
    probability: float | None = None
    num_tokens: int = 0


@dataclass
class _Asked:
    task: "asyncio.Task[Reply]"
    num_waiting: int = 0


class SubCalls:
    """Asks a model.

    Args:
        model: at temperature 0.
        max_tokens: of an answer in words.
    """

    def __init__(self, model: Model, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._asked: dict[Question, _Asked] = {}
        self.num_asked = 0
        self.num_shared = 0  # answers that an earlier, equal question had brought

    async def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply for each question, in order. One that fails costs its neighbours nothing.

        Cancelling it cancels what nobody else waits for.
        """
        mine: list[_Asked] = []
        for question in questions:
            if (asked := self._asked.get(question)) is None:
                self.num_asked += 1
                asked = self._asked[question] = _Asked(asyncio.create_task(self._answer(question)))
            else:
                self.num_shared += 1
            asked.num_waiting += 1
            mine.append(asked)
        try:
            return await asyncio.gather(*(asyncio.shield(asked.task) for asked in mine))
        finally:
            for question, asked in zip(questions, mine, strict=True):
                asked.num_waiting -= 1
                if not asked.num_waiting and _is_worth_nothing(asked.task):
                    asked.task.cancel()
                    self._asked.pop(question, None)

    async def aclose(self) -> None:
        """Cancel what still runs. Idempotent."""
        await cancel(*(asked.task for asked in self._asked.values()))

    async def _answer(self, question: Question) -> Reply:
        try:
            return await self._answer_as(question.kind, question)
        except (PromptTooLong, Spent) as error:
            return Reply(None, str(error))
        except (EngineError, RequestError) as error:
            return Reply(None, f"the model could not answer: {told(error)}"[:200])

    async def _answer_as(self, kind: Kind, question: Question) -> Reply:
        messages = question.messages()
        labels = (YES, NO) if kind == "bool" else question.labels
        if labels and (probabilities := await self._model.choose(messages, labels)):
            best = max(range(len(labels)), key=probabilities.__getitem__)
            return Reply(labels[best] == YES if kind == "bool" else labels[best], "", probabilities[best], 1)
        max_tokens = self._max_tokens if kind == "text" else _SHORT_TOKENS
        written = await self._model.write(messages, max_tokens=max_tokens)
        return replace(_read(written.text.strip(), kind, labels), num_tokens=written.num_tokens)


def _is_worth_nothing(task: "asyncio.Task[Reply]") -> bool:
    """Whether nobody who asks again should get it: it runs for nobody, or it failed."""
    return not task.done() or task.cancelled() or bool(task.result().error)


def _read(text: str, kind: Kind, labels: Sequence[str]) -> Reply:
    """What a model said, as a value of the kind."""
    if kind == "text":
        return Reply(text) if text else Reply(None, "the model wrote nothing")
    if kind == "number":
        number = _number(text)
        return Reply(number) if number is not None else Reply(None, f"the model answered {text[:40]!r}, and no number")
    said = text.strip("\"'.*`").casefold()
    for label in labels:
        if said == label.casefold():
            return Reply(label == YES if kind == "bool" else label)
    return Reply(None, f"the model answered {text[:40]!r}, and none of {', '.join(labels)[:80]}")


def _number(text: str) -> int | float | None:
    """The number that a text is, with or without a unit, or else the last one in it."""
    value: object
    match value_of(text, "number"):
        case ("number", value, _):
            pass
        case _:
            value = normal_form(re.sub(r"[^\d./+-]", "", find_answer(text) or ""))
    if not isinstance(value, Fraction):
        return None
    try:
        return int(value) if value.denominator == 1 else float(value)
    except OverflowError:
        return None
