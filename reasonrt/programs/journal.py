"""All that models said in one run, so that the run can be done again without them, to the same trace.

A journal is one JSON file: the question, the documents, the options, each reply under a hash of what was asked, and
the order in which the candidates ended. Replaying runs the same code on the same documents and takes the replies from
the file; the sandbox computes everything else again.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import TypeAdapter

from reasonrt.errors import EngineError, RequestError
from reasonrt.files import FileKind
from reasonrt.programs.budget import Spent
from reasonrt.programs.host import AskBelow
from reasonrt.programs.model import Model, PromptTooLong, Written
from reasonrt.types import Document, FinishReason, Message

SCHEMA: Final = "reasonrt.program_journal/2"
ANOTHER_COURSE: Final = "the run takes another course than the journal's; ask anew"

_FILE: Final = FileKind(RequestError, "name the file that --trace wrote, or record it anew", most_bytes=1 << 30)

T = TypeVar("T")


@dataclass
class Journal:
    """One run.

    Attributes:
        options: of the policy, defaults included.
        seed: of the run; candidates derive theirs from it.
        nonce: of the frames of observations.
        replies: by the hash of who asked what, in their order.
        recurses: programs may search programs for a part of the context.
        backend: of the sandbox.
        order: indices of the candidates, in the order in which they ended; None before the run.
        was_late: the deadline has ended the run.
        weights: what `Weights.to_json` gives; empty without any.
        trace_hash: of the trace that the run came to.
    """

    question: str
    documents: tuple[Document, ...]
    options: Mapping[str, Any]
    seed: int
    nonce: str
    replies: dict[str, list[Any]] = field(default_factory=dict)
    recurses: bool = False
    backend: str = "monty"
    order: list[int] | None = None
    was_late: bool = False
    weights: str = ""
    trace_hash: str = ""

    def to_value(self) -> dict[str, Any]:
        """Plain JSON data, which `read` takes from a file."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: RequestError: the file cannot be read, or is no journal of this version."""
        value = _FILE.read_json(path)
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
            raise RequestError(f"{path} is no journal of a program search ({SCHEMA}); {_FILE.way_out}")
        return _FILE.validate(TypeAdapter(cls), value, str(path))


class AnotherCourse(Exception):  # noqa: N818 (nothing that a run may catch as a failure of a model)
    """A run that is replayed asks for what the journal does not have, or has what no model says."""


class JournaledModel:
    """A model whose replies are written down, failures included.

    Args:
        asker: who asks: a candidate, by its index, or the sub-questions of all. One asks for the same again only after
            it has got a reply, so that the replies to it have an order.
    """

    def __init__(self, model: Model, journal: Journal, asker: str) -> None:
        self._model, self._journal, self._asker = model, journal, asker

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
        key = _key(self._asker, "write", messages, max_tokens, temperature, seed, beginning)
        written = self._model.write(
            messages, max_tokens=max_tokens, temperature=temperature, seed=seed, until=until, beginning=beginning
        )
        return await note(self._journal, key, written, asdict)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        key = _key(self._asker, "choose", messages, list(choices))
        return await note(self._journal, key, self._model.choose(messages, choices), list)


class ReplayedModel:
    """A model that says what a journal has; see `JournaledModel`."""

    def __init__(self, journal: Journal, asker: str) -> None:
        self._journal, self._asker = journal, asker

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
        key = _key(self._asker, "write", messages, max_tokens, temperature, seed, beginning)
        return recall(self._journal, key, _WRITTEN)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        return recall(self._journal, _key(self._asker, "choose", messages, list(choices)), _CHOSEN)


def journaled_below(ask: AskBelow, journal: Journal) -> AskBelow:
    """As `ask`, with its answers written down."""

    async def asked(question: str, text: str) -> str:
        return await note(journal, _key_below(question, text), ask(question, text), str)

    return asked


def replayed_below(journal: Journal) -> AskBelow:
    """The answers that `journaled_below` has written down."""

    async def asked(question: str, text: str) -> str:
        return recall(journal, _key_below(question, text), _TEXT)

    return asked


async def note(journal: Journal, key: str, asking: Awaitable[T], as_json: Callable[[T], Any]) -> T:
    """Wait for a reply, and write it down, or the failure that came in its place."""
    replies = journal.replies.setdefault(key, [])
    try:
        reply = await asking
    except tuple(_FAILURES.values()) as error:
        name = next(name for name, kind in _FAILURES.items() if isinstance(error, kind))
        replies.append({"failed": name, "why": error.reason if isinstance(error, Spent) else str(error)})
        raise
    replies.append(as_json(reply))
    return reply


def recall(journal: Journal, key: str, kind: TypeAdapter[T]) -> T:
    """The next reply to what was asked; the last one again where it is asked once more."""
    replies = journal.replies.get(key)
    if not replies:
        raise AnotherCourse(ANOTHER_COURSE)
    reply = replies.pop(0) if len(replies) > 1 else replies[0]
    try:
        if isinstance(reply, dict) and (failed := reply.get("failed")) in _FAILURES:
            why = str(reply["why"])
            raise Spent(FinishReason(why)) if failed == "spent" else _FAILURES[failed](why)
        return kind.validate_python(reply)
    except (ValueError, KeyError):
        raise AnotherCourse(f"the journal's reply {key} is none that a model gives; ask anew") from None


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _key_below(question: str, text: str) -> str:
    return digest(["below", question, text])[:32]


def _key(asker: str, verb: str, messages: Sequence[Message], *rest: object) -> str:
    return digest([asker, verb, [[message.role, message.content] for message in messages], *rest])[:32]


_WRITTEN: TypeAdapter[Written] = TypeAdapter(Written)
_CHOSEN: TypeAdapter[tuple[float, ...]] = TypeAdapter(tuple[float, ...])
_TEXT: TypeAdapter[str] = TypeAdapter(str)
_FAILURES: dict[str, Any] = {
    "too_long": PromptTooLong,
    "spent": Spent,
    "engine": EngineError,
    "refused": RequestError,
}
