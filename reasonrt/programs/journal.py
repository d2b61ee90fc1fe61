"""All that models said in one run, so that the run can be done again without them, to the same trace.

A journal is one JSON file: the question, the documents, the options, each reply under a hash of what was asked, and
the order in which the candidates ended. Replaying runs the same code on the same documents and takes the replies from
the file; the sandbox computes everything else again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from reasonrt.errors import RequestError
from reasonrt.programs.model import Model, PromptTooLong, Written
from reasonrt.types import Document, Message

SCHEMA: Final = "reasonrt.program_journal/1"
ANOTHER_COURSE: Final = "the run takes another course than the journal's; ask anew"

T = TypeVar("T")


@dataclass
class Journal:
    """One run.

    Attributes:
        options: of the policy, defaults included.
        seed: of the run; candidates derive theirs from it.
        nonce: of the frames of observations.
        replies: by the hash of what was asked.
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
    replies: dict[str, Any] = field(default_factory=dict)
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
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.pop("schema") != SCHEMA:
                raise ValueError
            return TypeAdapter(cls).validate_python(value)
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}; name the file that --trace wrote") from None
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise RequestError(f"{path} is no journal of a program search ({SCHEMA}); record it anew") from None


class JournaledModel:
    """A model whose replies are written down.

    Args:
        role: "root" or "sub".
    """

    def __init__(self, model: Model, journal: Journal, role: str) -> None:
        self._model, self._journal, self._role = model, journal, role

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
        key = _key(self._role, "write", messages, max_tokens, temperature, seed, beginning)
        try:
            written = await self._model.write(
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                until=until,
                beginning=beginning,
            )
        except PromptTooLong as error:
            self._journal.replies[key] = {"too_long": str(error)}
            raise
        self._journal.replies[key] = asdict(written)
        return written

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        key = _key(self._role, "choose", messages, list(choices))
        try:
            probabilities = await self._model.choose(messages, choices)
        except PromptTooLong as error:
            self._journal.replies[key] = {"too_long": str(error)}
            raise
        self._journal.replies[key] = list(probabilities)
        return probabilities

    async def fits(self, messages: Sequence[Message], max_tokens: int) -> bool:
        key = _key(self._role, "fits", messages, max_tokens)
        self._journal.replies[key] = await self._model.fits(messages, max_tokens)
        return bool(self._journal.replies[key])


class ReplayedModel:
    """A model that says what a journal has; see `JournaledModel`."""

    def __init__(self, journal: Journal, role: str) -> None:
        self._journal, self._role = journal, role

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
        key = _key(self._role, "write", messages, max_tokens, temperature, seed, beginning)
        return self._reply(key, _WRITTEN)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        return self._reply(_key(self._role, "choose", messages, list(choices)), _CHOSEN)

    async def fits(self, messages: Sequence[Message], max_tokens: int) -> bool:
        return self._reply(_key(self._role, "fits", messages, max_tokens), _FITS)

    def _reply(self, key: str, kind: TypeAdapter[T]) -> T:
        if key not in self._journal.replies:
            raise RequestError(ANOTHER_COURSE)
        reply = self._journal.replies[key]
        if isinstance(reply, dict) and "too_long" in reply:
            raise PromptTooLong(reply["too_long"])
        try:
            return kind.validate_python(reply)
        except ValidationError:
            raise RequestError(f"the journal's reply {key} is none that a model gives; ask anew") from None


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _key(role: str, verb: str, messages: Sequence[Message], *rest: object) -> str:
    return digest([role, verb, [[message.role, message.content] for message in messages], *rest])[:32]


_WRITTEN: TypeAdapter[Written] = TypeAdapter(Written)
_CHOSEN: TypeAdapter[tuple[float, ...]] = TypeAdapter(tuple[float, ...])
_FITS: TypeAdapter[bool] = TypeAdapter(bool)
