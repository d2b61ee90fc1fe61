"""One run: a look at the context, several candidates from there, and the answer that is believed.

The candidates share the beginning of their conversation, byte by byte, and the session in which the first look ran.
More of them are started while what is missing could still change the choice; the rest is cancelled. A deadline ends the
run with what is there by then, and says so.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reasonrt.errors import EngineError, RequestError
from reasonrt.programs import protocol
from reasonrt.programs.budget import Spent
from reasonrt.programs.candidate import Candidate, Rules, Turn, Work
from reasonrt.programs.context import Context
from reasonrt.programs.host import AskBelow, Host
from reasonrt.programs.journal import ANOTHER_COURSE, AnotherCourse
from reasonrt.programs.language import PROMPT
from reasonrt.programs.model import Model, PromptTooLong
from reasonrt.programs.sandbox.base import CellLimits, Sandbox, Session
from reasonrt.programs.selection import Selection, Strategy, fewest_to_settle, is_settled, select
from reasonrt.programs.subcalls import SubCalls
from reasonrt.programs.trace import Trace, trial_as_json
from reasonrt.programs.trials import Status, Trial
from reasonrt.programs.values import Kind
from reasonrt.programs.weights import Weights
from reasonrt.tasks import cancel
from reasonrt.types import Message

_GLIMPSE_CHARACTERS = 600
_SEEDS_PER_CANDIDATE = 1_000_003  # further apart than a candidate has turns


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes.

    Attributes:
        k: candidates, at most.
        rules: for each of them.
        max_sub_calls: of each.
        sub_tokens: of an answer in words to a sub-question.
        limits: of one program.
        kind: of the answer.
        seed: candidates derive theirs from it.
        stops_early: once the choice is settled; else all candidates run to their end.
        deadline: when the run must have ended, in the event loop's time.
        order: the candidates as they ended, in a run that is replayed.
        was_late: that run was ended by its deadline.
    """

    strategy: Strategy
    k: int
    rules: Rules
    max_sub_calls: int
    sub_tokens: int
    limits: CellLimits
    kind: Kind
    seed: int
    stops_early: bool = True
    deadline: float | None = None
    order: tuple[int, ...] | None = None
    was_late: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a run came to.

    Attributes:
        status: of the trial that is believed; where there is none, why: `deadline`, `budget` or `failed`.
        trials: that ended, and those that were cut off, by index.
        num_tokens: that candidates wrote, what they share counted once.
        num_sub_calls: that were asked of the model, and `num_shared` answers that were there already.
        order: the indices of the candidates, as they ended.
        was_late: the deadline has ended the run.
    """

    selection: Selection
    status: Status
    trials: tuple[Trial, ...]
    trace: Trace
    num_tokens: int
    num_sub_calls: int
    num_shared: int
    order: tuple[int, ...]
    was_late: bool


Report = Callable[[Mapping[str, Any]], None]


class Search:
    """A run on one context.

    Args:
        question: as it was asked.
        model: that writes the programs of a candidate, by its index.
        sub_model: answers sub-questions.
        weights: what calibration has learned; None before it.
        report: called as the run goes on, with what is known so far.
        ask_below: where a part of the context may get a run of its own.
    """

    def __init__(
        self,
        question: str,
        context: Context,
        plan: Plan,
        *,
        model: Callable[[int], Model],
        sub_model: Model,
        sandbox: Sandbox,
        weights: Weights | None = None,
        report: Report | None = None,
        ask_below: AskBelow | None = None,
    ) -> None:
        self._question, self._context, self._plan = question, context, plan
        self._model, self._sandbox, self._weights, self._report = model, sandbox, weights, report
        self._sub_calls = SubCalls(sub_model, plan.sub_tokens)
        self._host = Host(context, self._sub_calls, plan.max_sub_calls, ask_below)
        self._limits = plan.limits
        self._candidates: dict[int, Candidate] = {}
        self._ended: dict[int, Trial] = {}
        self._order: list[int] = []
        self._num_started = 1
        self._fork: tuple[bytes, Work, Host] | None = None
        self._engine_error: EngineError | None = None
        self._too_long: PromptTooLong | None = None
        self._began = time.perf_counter()

    async def run(self) -> Found:
        """Run candidates until the choice is settled, or the deadline.

        Raises:
            EngineError: an engine died, and no candidate has an answer.
            RequestError: the question does not fit the model.
            AnotherCourse: the run is replayed, and asks for what its journal does not have.
        """
        tasks: dict[int, asyncio.Task[Trial]] = {}
        is_late = self._plan.was_late
        try:
            async with asyncio.timeout_at(self._plan.deadline) as clock:
                await self._look(tasks)
                await self._run_candidates(tasks)
        except TimeoutError:
            if not clock.expired():
                raise
            is_late = True
        finally:
            await cancel(*tasks.values())
            await self._sub_calls.aclose()
            await asyncio.gather(*(candidate.aclose() for candidate in self._candidates.values()))
        return self._found(is_late)

    def opening(self) -> Work:
        """What each candidate begins with."""
        context, rules = self._context, self._plan.rules
        texts = [document.text for document in context.documents]
        glimpse = texts[0][:_GLIMPSE_CHARACTERS] if texts else ""
        first = protocol.opening(self._question, context.describe(), context.names, glimpse, rules.nonce)
        counted = protocol.turn_line(1, rules.max_turns)
        recursion = f"{protocol.RECURSION}\n" if "rlm_query" in self._host.functions else ""
        system = f"{protocol.SYSTEM}\n{recursion}{PROMPT[rules.backend]}"
        return Work([Message("system", system), Message("user", f"{first}\n\n{counted}")])

    async def _look(self, tasks: dict[int, asyncio.Task[Trial]]) -> None:
        """The first turn of candidate 0, which is greedy; the others continue after it, unless it was the last."""
        first = await self._begin(0)
        if self._plan.k > 1:
            is_final = await self._try_turn(first)
            if not is_final and first.session is not None and not first.host.is_spent:
                with suppress(EngineError):  # it was lost after its program had ended: the others begin anew
                    self._fork = (await first.session.dump(), first.work.copy(), first.host.fork())
        tasks[0] = asyncio.create_task(self._finish(first))

    async def _try_turn(self, candidate: Candidate) -> bool:
        try:
            return await candidate.turn()
        except (Spent, PromptTooLong, EngineError):
            return False  # it meets the same again when it continues, and says so

    async def _run_candidates(self, tasks: dict[int, asyncio.Task[Trial]]) -> None:
        plan = self._plan
        while num_left := plan.k - len(self._ended):
            if plan.order is not None and len(self._ended) == len(plan.order):
                return
            if plan.stops_early and self._is_settled(num_left):
                return
            num_more = self._fewest_to_settle(num_left) if plan.stops_early else num_left
            for index in range(len(tasks), len(self._ended) + num_more):
                tasks[index] = asyncio.create_task(self._work_on(index))
            self._num_started = len(tasks)
            await self._wait(tasks)

    async def _wait(self, tasks: dict[int, asyncio.Task[Trial]]) -> None:
        """Until one more candidate has ended: the next one of the order, where there is one."""
        order = self._plan.order
        if order is not None:
            index = order[len(self._ended)]
            if index not in tasks or index in self._ended:
                raise AnotherCourse(ANOTHER_COURSE)
            self._note(await tasks[index])
            return
        running = [task for index, task in tasks.items() if index not in self._ended]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        self._note(min((task.result() for task in done), key=lambda trial: trial.index))

    def _note(self, trial: Trial) -> None:
        self._ended[trial.index] = trial
        self._order.append(trial.index)
        self._tell()

    def _is_settled(self, num_left: int) -> bool:
        return is_settled(self._ended.values(), num_left, self._plan.strategy, self._plan.kind, self._weights)

    def _fewest_to_settle(self, num_left: int) -> int:
        plan = self._plan
        return fewest_to_settle(self._ended.values(), num_left, plan.strategy, plan.kind, self._weights)

    async def _work_on(self, index: int) -> Trial:
        try:
            candidate = await self._begin(index)
        except EngineError as error:  # no sandbox is free, for one: the others have theirs
            self._engine_error = error
            return Trial(index, Status.FAILED)
        return await self._finish(candidate)

    async def _begin(self, index: int) -> Candidate:
        work, host, session = await self._forked() or (self.opening(), self._host.fork(), await self._open())
        plan = self._plan
        seed = (plan.seed + index * _SEEDS_PER_CANDIDATE) % 2**63
        candidate = Candidate(
            index, work, session, self._renew, host, self._model(index), plan.rules, seed=seed, greedy=index == 0
        )
        self._candidates[index] = candidate
        return candidate

    async def _forked(self) -> tuple[Work, Host, Session] | None:
        """Where the first look has led; None where there is no going on from there."""
        if self._fork is None:
            return None
        state, work, host = self._fork
        try:
            session = await self._sandbox.load(state, host.functions, self._limits)
        except EngineError:
            return None  # what it ran takes another course each time; one that has no place fails again
        return work.copy(), host.fork(), session

    async def _open(self) -> Session:
        values: dict[str, Any] = {"context": self._context.as_value(), "answer": {"content": "", "ready": False}}
        if len(self._context.documents) > 1:
            values["documents"] = self._context.as_documents()
        return await self._sandbox.open(values, self._host.functions, self._limits)

    async def _renew(self) -> Session:
        if self._fork is None:
            return await self._open()
        return await self._sandbox.load(self._fork[0], self._host.functions, self._limits)

    async def _finish(self, candidate: Candidate) -> Trial:
        """A candidate's turns up to its end."""
        try:
            while candidate.work.final is None:
                if candidate.host.is_spent:
                    return candidate.trial(Status.BUDGET)
                if len(candidate.work.turns) >= self._plan.rules.max_turns:
                    if not candidate.work.has_run:
                        return candidate.trial(Status.FAILED)
                    await candidate.force()
                    return candidate.trial(Status.FORCED)
                await candidate.turn()
                self._tell()
            return candidate.trial(Status.FINAL)
        except Spent:
            return candidate.trial(Status.BUDGET)
        except PromptTooLong as error:
            if not candidate.work.turns:
                self._too_long = error
            return candidate.trial(Status.BUDGET)
        except EngineError as error:
            self._engine_error = error
            return candidate.trial(Status.FAILED)
        finally:
            await candidate.aclose()

    def _found(self, is_late: bool) -> Found:
        plan = self._plan
        selection = select(self._ended.values(), plan.strategy, plan.kind, self._weights)
        cut_off = Status.DEADLINE if is_late else Status.CANCELLED
        begun = {index: candidate.trial(cut_off) for index, candidate in self._candidates.items()}
        trials = [trial for _, trial in sorted((begun | self._ended).items())]
        if selection.trial_index is not None:
            status = next(trial.status for trial in trials if trial.index == selection.trial_index)
        else:
            status = self._why_nothing(trials, is_late)
        trace = Trace.of(
            question=self._question,
            context=self._context,
            strategy=plan.strategy,
            selection=selection,
            status=status,
            trials=[trial_as_json(trial, self._turns_of(trial)) for trial in trials],
        )
        return Found(
            selection,
            status,
            tuple(trials),
            trace,
            num_tokens=self._num_tokens(),
            num_sub_calls=self._sub_calls.num_asked,
            num_shared=self._sub_calls.num_shared,
            order=tuple(self._order),
            was_late=is_late,
        )

    def _turns_of(self, trial: Trial) -> Sequence[Turn]:
        is_whole = trial.index in self._ended and trial.index in self._candidates
        return self._candidates[trial.index].work.turns if is_whole else ()

    def _why_nothing(self, trials: Sequence[Trial], is_late: bool) -> Status:
        if is_late:
            return Status.DEADLINE
        if self._engine_error is not None:
            raise self._engine_error
        if self._too_long is not None:
            raise does_not_fit(self._too_long)
        return Status.BUDGET if any(trial.status is Status.BUDGET for trial in trials) else Status.FAILED

    def _num_tokens(self) -> int:
        shared = sum(turn.num_tokens for turn in self._fork[1].turns) if self._fork else 0
        return shared + sum(
            candidate.num_new_tokens - (shared if index == 0 else 0) for index, candidate in self._candidates.items()
        )

    def _tell(self) -> None:
        if self._report is None:
            return
        answers = Counter(trial.answer for trial in self._ended.values() if trial.answer is not None)
        self._report(
            {
                "kind": "search",
                "seconds": time.perf_counter() - self._began,
                "candidates": self._plan.k,
                "started": self._num_started,
                "ended": len(self._ended),
                "programs": sum(len(candidate.work.turns) for candidate in self._candidates.values()),
                "tokens": self._num_tokens(),
                "sub_calls": self._sub_calls.num_asked,
                "answers": dict(answers.most_common()),
            }
        )


def does_not_fit(error: PromptTooLong) -> RequestError:
    """What whoever asks a model of programs is told whose window has no room for the question."""
    return RequestError(f"the question does not fit the model that writes programs: {error}")
