"""One candidate: a model writes programs, turn by turn, until one of them gives an answer.

An answer is what a program has given by a call of the host (`final`) or in the variable `answer`, in a cell that has
run to its end. Words of the model never end a run, and neither does anything that a program prints.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from reasonrt.errors import EngineError
from reasonrt.programs import protocol
from reasonrt.programs.budget import Spent
from reasonrt.programs.host import Final, Host
from reasonrt.programs.language import names_bound, prepare
from reasonrt.programs.model import Model, PromptTooLong
from reasonrt.programs.sandbox.base import Cell, Ending, Session
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.types import Message

SCAFFOLD = ("context", "documents")
"""Variables that a program reads and may not bind. `answer` it may: that is how the protocol gives an answer."""

_ANSWER_CHARACTERS = 1 << 16
_FORCED_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Rules:
    """How candidates of one run work.

    Attributes:
        nonce: of the lines that frame what programs print.
        max_turns: messages of the model.
        turn_tokens: of one message.
        observation_characters: of what programs print that the model is shown, for each program.
        temperature: of all candidates but a greedy one.
        asks_confidence: after each step.
        code_first: each message begins with a block of code; without it, only one after a message that held none.
        backend: of the sandbox, which decides what its language lacks.
    """

    nonce: str
    max_turns: int
    turn_tokens: int
    observation_characters: int
    temperature: float
    asks_confidence: bool
    code_first: bool
    backend: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the model, and what came of it.

    Attributes:
        text: the message, up to the end of its first block of code.
        code: what was run, after rewriting; None without a block.
        ending: of the cell; empty without one.
        observation: what the model was shown.
        notes: what was rewritten, and what the host had to say.
        calls: of the host.
        confidence: of the model in the work so far; None where it was not asked.
        seconds: of execution.
    """

    text: str
    num_tokens: int
    observation: str
    code: str | None = None
    ending: str = ""
    notes: tuple[str, ...] = ()
    calls: tuple[dict[str, str], ...] = ()
    confidence: float | None = None
    logprob_tail: float | None = None
    seconds: float = 0.0


@dataclass
class Work:
    """A candidate's conversation and what is known of it; a copy of it is where a fork begins."""

    messages: list[Message]
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    final: Final | None = None

    def copy(self) -> "Work":
        return Work(list(self.messages), list(self.turns), self.answer, self.final)

    def compact(self) -> None:
        """Leave out what earlier programs printed, but not what the host said of them: that a session was lost, say."""
        for place in range(3, len(self.messages) - 3, 2):
            said = self.messages[place].content.partition("\n")[0]
            self.messages[place] = Message("user", f"{said}\n(What it printed is left out.)")

    @property
    def is_stuck(self) -> bool:
        """Whether the last message is word for word an earlier one."""
        return any(turn.text == self.turns[-1].text for turn in self.turns[:-1])

    @property
    def has_run(self) -> bool:
        """Whether any cell has ended well, or with an exception."""
        return any(turn.ending in (Ending.DONE, Ending.RAISED) for turn in self.turns)


class Candidate:
    """Writes and runs programs.

    Args:
        work: where it begins.
        session: its own; it is closed by `aclose`, with the one that has taken its place after a loss.
        renew: a session as it was at the beginning, for when one is lost.
        greedy: temperature 0.
    """

    def __init__(
        self,
        index: int,
        work: Work,
        session: Session,
        renew: Callable[[], Awaitable[Session]],
        host: Host,
        model: Model,
        rules: Rules,
        *,
        seed: int,
        greedy: bool,
    ) -> None:
        self.index, self.work, self.host = index, work, host
        self.session: Session | None = session
        self._renew, self._model, self._rules = renew, model, rules
        self._seed, self._temperature = seed, 0.0 if greedy else rules.temperature
        self._first_turn = len(work.turns)

    async def turn(self) -> bool:
        """One message, one cell; whether it has given the answer.

        Raises:
            Spent, PromptTooLong: the candidate cannot go on.
        """
        rules, work = self._rules, self.work
        write = partial(
            self._model.write,
            max_tokens=rules.turn_tokens,
            # a greedy model that repeats itself would do so for ever
            temperature=rules.temperature if work.is_stuck else self._temperature,
            seed=(self._seed + len(work.turns)) % 2**63,
            until=partial(protocol.has_block, nonce=rules.nonce),
            # a model that has not written a block is led into one
            beginning=protocol.BLOCK if rules.code_first or (work.turns and work.turns[-1].code is None) else "",
        )
        try:
            written = await write(work.messages)
        except PromptTooLong:
            work.compact()
            written = await write(work.messages)
        block = protocol.find_code(written.text, rules.nonce)
        text = written.text[: block.end].rstrip() if block.text is not None else written.text.strip()
        turn = Turn(text, written.num_tokens, "", logprob_tail=written.logprob_tail)
        if not (block.text or "").strip() or (not block.is_closed and not written.is_whole):
            turn = replace(turn, observation=protocol.NO_BLOCK)
        else:
            turn = await self._run(turn, block.text or "")
        next_turn = len(work.turns) + 2
        counted = protocol.turn_line(min(next_turn, rules.max_turns), rules.max_turns)
        # all of it together, and before anything more is asked: what has run must stand, whatever fails after it
        work.messages += [
            Message("assistant", text or "(nothing)"),
            Message("user", f"{turn.observation}\n\n{counted}"),
        ]
        work.turns.append(turn)
        if rules.asks_confidence:
            work.turns[-1] = replace(turn, confidence=await self._confidence(turn.observation))
        return work.final is not None

    async def force(self) -> None:
        """Ask for the best answer in words, where no program has given one; such an answer never counts as agreement.

        Raises:
            Spent, PromptTooLong: as `turn`.
        """
        last = self.work.messages[-1]
        messages = [*self.work.messages[:-1], Message("user", f"{last.content}\n\n{protocol.FORCED}")]
        written = await self._model.write(messages, max_tokens=_FORCED_TOKENS)
        self.work.answer = written.text.strip() or None

    async def aclose(self) -> None:
        """Give the session back. Idempotent."""
        session, self.session = self.session, None
        if session is not None:
            await session.aclose()

    def trial(self, status: Status) -> Trial:
        """What it came to, with the signals by which it is judged."""
        work, host = self.work, self.host
        if status is Status.FINAL and work.answer is None:
            raise AssertionError("a final has an answer")
        if work.answer is None and status is Status.FORCED:
            status = Status.FAILED
        evidence: tuple[Evidence, ...] = ()
        num_refuted = 0
        if work.answer is not None and work.final is not None:
            evidence, num_refuted = host.evidence_for(work.answer, work.final.evidence)
        tails = [turn.logprob_tail for turn in work.turns if turn.logprob_tail is not None]
        return Trial(
            self.index,
            status,
            work.answer if status in (Status.FINAL, Status.FORCED) else None,
            confidences=tuple(turn.confidence for turn in work.turns if turn.confidence is not None),
            num_tokens=sum(turn.num_tokens for turn in work.turns),
            logprob_tail=sum(tails) / len(tails) if tails else None,
            agreement=host.agreement,
            coverage=host.coverage.share,
            evidence=evidence,
            num_refuted=num_refuted,
            num_errors=sum(turn.ending != Ending.DONE for turn in work.turns),
            num_turns=len(work.turns),
            num_sub_calls=host.num_sub_calls,
            num_sub_tokens=host.num_sub_tokens,
        )

    @property
    def num_new_tokens(self) -> int:
        """What it wrote itself, without what it shares with others."""
        return sum(turn.num_tokens for turn in self.work.turns[self._first_turn :])

    async def _confidence(self, observation: str) -> float | None:
        """Of the model, in the work so far; None where it cannot be read."""
        asked = [*self.work.messages[:-1], Message("user", f"{observation}\n\n{protocol.CONFIDENCE}")]
        try:
            probabilities = await self._model.choose(asked, protocol.DIGITS)
        except (Spent, PromptTooLong, EngineError):
            return None  # its next message, if there is one, meets the same and says so
        return protocol.confidence_of(probabilities) if probabilities else None

    async def _run(self, turn: Turn, code: str) -> Turn:
        host, rules = self.host, self._rules
        prepared = prepare(code, (*host.functions, *SCAFFOLD), rules.backend)
        host.final, host.notes, host.calls = None, [], []
        if prepared.refused:
            cell = Cell(Ending.REFUSED, error=prepared.refused)
        else:
            if self.session is None:  # one was lost, and there was no place for another
                self.session = await self._renew()
            cell = await self.session.run(prepared.code, host)
        if cell.ending is Ending.LOST:
            await self.aclose()
            if not host.is_spent:
                with suppress(EngineError):  # without a place for another, the next program asks again
                    self.session = await self._renew()
        elif cell.ending is Ending.DONE:
            host.variables += sorted(names_bound(prepared.code) or ())
            await self._take_final()
        notes = [*prepared.notes, *host.notes]
        shown = protocol.observation(cell, notes, rules.nonce, rules.observation_characters)
        if earlier := [each.observation for each in self.work.turns if each.code == prepared.code]:
            again = protocol.observation(cell, [*notes, protocol.AGAIN], rules.nonce, rules.observation_characters)
            if shown in earlier or again in earlier:
                notes, shown = [*notes, protocol.AGAIN], again
        return replace(
            turn,
            code=prepared.code,
            observation=shown,
            ending=cell.ending.value,
            notes=tuple(notes),
            calls=tuple(host.calls),
            seconds=cell.seconds,
        )

    async def _take_final(self) -> None:
        """The answer that the cell has given, if it has given any."""
        if self.session is None:
            raise AssertionError("the candidate is closed")
        final = self.host.final
        if final is None:  # the other way of the protocol: answer["content"], answer["ready"]
            said = await self.session.value("answer")
            if isinstance(said, dict) and said.get("ready") is True:
                final = Final(said.get("content"), said.get("evidence"))
        elif final.variable:
            final = replace(final, answer=await self.session.value(final.variable))
        if final is None:
            return
        answer = as_text(final.answer)
        if answer is None:
            self.host.notes.append("The answer that was given is empty, so it does not count.")
        else:
            self.work.answer, self.work.final = answer, final


def as_text(value: Any) -> str | None:
    """An answer as a program gave it, in words; None for nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple | set | frozenset):
        parts: Sequence[Any] = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return ", ".join(filter(None, map(as_text, parts)))[:_ANSWER_CHARACTERS] or None
    return str(value).strip()[:_ANSWER_CHARACTERS] or None
