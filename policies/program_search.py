"""`program_search`: programs that a model writes look into a context that fits no window (RLM, SRLM).

A context that fits goes to one direct call, unless told otherwise: programs lose there. Else several candidates write
programs over it, and the answer is chosen by signals of their uncertainty (`reasonrt.programs`). Nothing is committed
before the end.

Sources: Recursive Language Models, Zhang et al. (2025), arXiv 2512.24601; SRLM, Alizadeh et al. (2026), arXiv
2603.15653.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from reasonrt.errors import CalibrationError, ConfigError, RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.single import Role
from reasonrt.ports import OPERATOR_ONLY, Engine, Engines
from reasonrt.programs.budget import Budget
from reasonrt.programs.candidate import Rules
from reasonrt.programs.context import Context
from reasonrt.programs.host import AskBelow
from reasonrt.programs.journal import (
    AnotherCourse,
    Journal,
    JournaledModel,
    ReplayedModel,
    journaled_below,
    replayed_below,
)
from reasonrt.programs.model import EngineModel, PromptTooLong
from reasonrt.programs.sandbox.base import CellLimits, Sandbox
from reasonrt.programs.search import Found, Plan, Search, does_not_fit
from reasonrt.programs.selection import Strategy
from reasonrt.programs.trials import Evidence, Status
from reasonrt.programs.values import Kind, kind_of
from reasonrt.programs.weights import Weights, check_matches
from reasonrt.thinking import CLOSING, closing_text, opens_thinking
from reasonrt.transcript import Transcript
from reasonrt.types import Completion, FinishReason, Message, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, seed_of, write_steps

SANDBOX = "sandbox"
"""The name of the tool in which programs run."""

AUTHOR = "program_search"
"""Of an answer: no engine has generated its tokens, a program has computed it."""

_DIRECT_SHARE = 0.5  # of the window, where calibration has not learned where direct calls end
_FEWEST_CHARACTERS_PER_TOKEN = 8  # a text with fewer tokens than its characters / 8 is rare: no need to tokenize it
_MARGIN_S, _MARGIN_SHARE = 0.25, 0.05  # a run ends so long before its deadline, to return what it has
_ABOUT_CHARACTERS = 80  # around a span of evidence
_SEEDS = 2**62
_REASONS = {Status.DEADLINE: FinishReason.DEADLINE, Status.BUDGET: FinishReason.BUDGET}


@dataclass
class ProgramSearch(PolicyOptions):
    """Programs over a long context, several candidates, and the answer that is believed.

    Attributes:
        strategy: how one answer is chosen; by default `answer_mass` where there are weights, else `plurality`.
        k: candidates, at most.
        max_turns: programs of one candidate.
        turn_tokens: of one message with a program.
        max_sub_calls: sub-questions of one candidate.
        sub_tokens: of an answer in words to a sub-question.
        cell_s: seconds of execution of one program, without its waiting for sub-questions.
        observation_characters: of what one program prints that the model is shown.
        concurrency: generations that run concurrently, candidates and sub-questions together.
        temperature: of the candidates; the first one is greedy.
        engine: the role of the engine that writes programs.
        sub_engine: of the one that answers sub-questions; by default the same.
        answer: of what kind it is, which decides when two answers are the same.
        direct: whether a context that fits the engine goes to one direct call; under a certificate by `auto` none does.
        confidence: ask the model after each step how sure it is, and read one digit.
        code_first: let each message begin with a block of code, without a thought before it: for small models.
        stop_early: leave out the candidates that could not change the choice.
        recursion: programs may search programs for a part of the context, as deep as the request's limits allow.
        weights: the file that `reasonrt calibrate programs` has written.
        trace: return programs, observations and votes in the details.
        journal: return what a replay needs, the context included.
    """

    strategy: Literal["auto", "plurality", "srlm", "answer_mass", "rlm"] = "auto"
    k: Annotated[int, Field(ge=1, le=32)] = 8
    max_turns: Annotated[int, Field(ge=1, le=64)] = 8
    turn_tokens: Annotated[int, Field(ge=16, le=8192)] = 768
    max_sub_calls: Annotated[int, Field(ge=0, le=10_000)] = 256
    sub_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    cell_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    observation_characters: Annotated[int, Field(ge=200, le=100_000)] = 6000
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    engine: Role = "target"
    sub_engine: Role | None = None
    answer: Kind = "auto"
    direct: Literal["auto", "always", "never"] = "auto"
    confidence: bool = True
    code_first: bool = False
    stop_early: bool = True
    recursion: bool = False
    weights: Annotated[str, OPERATOR_ONLY] | None = None
    trace: bool = False
    journal: Annotated[bool, OPERATOR_ONLY] = False

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.engine, self.sub_engine or self.engine)))

    @property
    def tools(self) -> tuple[str, ...]:
        return (SANDBOX,)

    @property
    def num_streams(self) -> int:
        return self.concurrency

    @property
    def commits_as_it_goes(self) -> bool:
        return False

    @property
    def reads_context(self) -> bool:
        return True

    def check(self, engines: Mapping[str, Engine]) -> None:
        """Raises: ConfigError: the weights cannot be read, or are for another model."""
        try:
            self._read_weights(engines[self.engine])
        except CalibrationError as error:
            raise ConfigError(f"policies.program_search.weights: {error}") from None

    def accept(self, request: Request, engines: Mapping[str, Engine]) -> None:
        if not request.context and self.direct == "never":
            raise RequestError("policy 'program_search' has nothing to search: give a context, or leave direct out")
        if request.context and request.committed:
            raise RequestError("policy 'program_search' cannot continue an answer; ask anew")

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        try:
            weights = self._read_weights(engine)
        except CalibrationError as error:  # by the options of this request; those of the configuration were checked
            raise RequestError(str(error)) from None
        direct = await asyncio.to_thread(self._direct_request, request, engine, weights)
        if direct is not None:
            transcript = Transcript.of(direct, engines)
            async with aclosing(write_steps(engine, transcript, sampling_for(direct, transcript, engine))) as written:
                async for event in written:
                    yield Stop(event, {"route": "direct"}) if isinstance(event, FinishReason) else event
            return
        context = Context(request.context)
        journal = self._new_journal(request)
        budget, places = Budget(lambda: engines.allowance), asyncio.Semaphore(self.concurrency)
        sub_engine = engines[self.sub_engine or self.engine]
        writer, sub_model = (EngineModel(each, budget, places, request.top_p) for each in (engine, sub_engine))
        ask_below: AskBelow | None = partial(_ask_below, request, engines) if self._recurses(engines) else None
        sandbox: Sandbox = engines.tools[SANDBOX]
        if self.journal:
            journal.weights, journal.backend = weights.to_json() if weights else "", sandbox.backend
            journal.recurses = ask_below is not None
            ask_below = journaled_below(ask_below, journal) if ask_below else None
        plan = plan_of(self, journal, weights is not None, sandbox.backend, _inner_deadline(engines))
        search = Search(
            journal.question,
            context,
            plan,
            model=lambda index: JournaledModel(writer, journal, f"root {index}") if self.journal else writer,
            sub_model=JournaledModel(sub_model, journal, "sub") if self.journal else sub_model,
            sandbox=sandbox,
            weights=weights,
            report=request.report,
            ask_below=ask_below,
        )
        try:  # else the sandbox of each candidate is started in vain
            await writer.check_room(search.opening().messages, plan.rules.turn_tokens)
        except PromptTooLong as error:
            raise does_not_fit(error) from None
        found = await search.run()
        text, reason = _said(found)
        ids, most = engine.tokenizer.encode_text(text), request.limits.max_tokens
        if opens_thinking(engine.tokenizer.decode, request.prompt(engine.tokenizer)):  # of which this is no part
            closing = closing_text("")
            closed = Step(closing, tuple(engine.tokenizer.encode(closing)), CLOSING)
            most = max(1, most - len(closed.token_ids))
            yield closed
        if is_cut := len(ids) > most:  # the runtime would leave all of it out
            ids, reason = ids[:most], FinishReason.LENGTH
            text = engine.tokenizer.decode(ids)
        yield Step(text, tuple(ids), AUTHOR, is_complete=not is_cut)
        details = _details(found, context)
        if self.trace:
            cost = f"{found.num_tokens:,} tokens, {found.num_sub_calls:,} sub-questions"
            details["trace"] = {**found.trace.value, "usage": cost}
        if self.journal:
            journal.order, journal.was_late = list(found.order), found.was_late
            journal.trace_hash = found.trace.sha256
            details["journal"] = journal.to_value()
        yield Stop(reason, details)

    def _recurses(self, engines: Engines) -> bool:
        return self.recursion and engines.allowance.depth > 0

    def _new_journal(self, request: Request) -> Journal:
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed % _SEEDS
        # not to be guessed from outside; of a request with a seed, the same again
        nonce = secrets.token_hex(4) if request.seed is None else f"{random.Random(seed).getrandbits(32):08x}"
        return Journal(_question(request), request.context, self.settings, seed, nonce)

    def _read_weights(self, engine: Engine) -> Weights | None:
        if self.weights is None:
            return None
        weights = Weights.read(Path(self.weights))
        check_matches(weights, engine.model_fingerprint, self.k, self.stop_early)
        if weights.certificate and (route := self._beside_the_certificate):
            raise CalibrationError(
                f"the certificate is for what answer_mass believes of programs, {route} would answer otherwise; "
                "leave that out, or take weights without a certificate"
            )
        return weights

    @property
    def _beside_the_certificate(self) -> str:
        """The option that asks for answers that never abstain; "" where none does."""
        if self.direct == "always":
            return "direct=always"
        return "" if self.strategy in ("auto", "answer_mass") else f"strategy={self.strategy}"

    def _direct_request(self, request: Request, engine: Engine, weights: Weights | None) -> Request | None:
        """The request of one direct call; None where programs are to be searched."""
        if not request.context:
            return request
        if self.direct == "never" or (weights and weights.certificate):  # a direct call never abstains
            return None
        window = engine.max_model_len
        most = weights.direct_below_tokens if weights and weights.direct_below_tokens is not None else None
        most = round(window * _DIRECT_SHARE) if most is None else min(most, window)
        if self.direct == "always":
            most = window
        num_characters = sum(len(document.text) for document in request.context)
        direct = replace(request, messages=_with_context(request), context=())
        is_short = num_characters <= window * _FEWEST_CHARACTERS_PER_TOKEN
        if is_short and len(request.prompts.token_ids(engine.tokenizer, direct.messages)) < most:
            return direct
        if self.direct == "always":
            raise RequestError(f"the context does not fit engine {engine.name!r}; leave direct=always out")
        return None


def plan_of(
    options: ProgramSearch, journal: Journal, has_weights: bool, backend: str, deadline: float | None = None
) -> Plan:
    """How a run goes by these options, with the seed and nonce of its journal."""
    by_default: Strategy = "answer_mass" if has_weights else "plurality"
    strategy = by_default if options.strategy == "auto" else options.strategy
    rules = Rules(
        nonce=journal.nonce,
        max_turns=options.max_turns,
        turn_tokens=options.turn_tokens,
        observation_characters=options.observation_characters,
        temperature=options.temperature,
        asks_confidence=options.confidence,
        code_first=options.code_first,
        backend=backend,
    )
    return Plan(
        strategy=strategy,
        k=1 if strategy == "rlm" else options.k,
        rules=rules,
        max_sub_calls=options.max_sub_calls,
        sub_tokens=options.sub_tokens,
        limits=CellLimits(cell_s=options.cell_s),
        kind=kind_of(journal.question) if options.answer == "auto" else options.answer,
        seed=journal.seed,
        # the paper draws all of its candidates
        stops_early=options.stop_early and strategy != "srlm",
        deadline=deadline,
        order=None if journal.order is None else tuple(journal.order),
        was_late=journal.was_late,
    )


async def replay(journal: Journal, sandbox: Sandbox) -> Found:
    """Do a journaled run again, without any model: the sandbox computes everything anew.

    Its trace has the journal's `trace_hash`, unless this version works in another way.

    Raises:
        RequestError: the run takes another course, so that something is asked that the journal does not have.
    """
    options = ProgramSearch.from_options({name: value for name, value in journal.options.items() if name != "weights"})
    weights = Weights.from_json(journal.weights, "the journal's weights") if journal.weights else None
    journal = deepcopy(journal)  # its replies are used up
    search = Search(
        journal.question,
        Context(journal.documents),
        plan_of(options, journal, weights is not None, sandbox.backend),
        model=lambda index: ReplayedModel(journal, f"root {index}"),
        sub_model=ReplayedModel(journal, "sub"),
        sandbox=sandbox,
        weights=weights,
        ask_below=replayed_below(journal) if journal.recurses else None,
    )
    try:
        return await search.run()
    except AnotherCourse as error:
        raise RequestError(str(error)) from None


def _question(request: Request) -> str:
    """What is asked: the last message, after what was said before it."""
    *before, last = request.messages
    told = "\n".join(f"{message.role}: {message.content}" for message in before)
    return f"{told}\n\n{last.content}" if told else last.content


def _with_context(request: Request) -> tuple[Message, ...]:
    """The conversation with the documents in its last message: data first, so that a prefix cache may hold it."""
    *before, last = request.messages
    texts = [f"[{each.name}]\n{each.text}" if each.name else each.text for each in request.context]
    return (*before, Message(last.role, "\n\n".join([*texts, last.content])))


def _inner_deadline(engines: Engines) -> float | None:
    deadline = engines.allowance.deadline
    if deadline is None:
        return None
    left = deadline - asyncio.get_running_loop().time()
    return deadline - min(_MARGIN_S, left * _MARGIN_SHARE)


def _said(found: Found) -> tuple[str, FinishReason]:
    """The text of the answer, or one sentence in the place of one, and why the run has ended."""
    selection = found.selection
    reason = FinishReason.DEADLINE if found.was_late else _REASONS.get(found.status, FinishReason.STOP)
    if selection.answer is not None:
        return selection.answer, reason
    if selection.abstained:
        return "The candidates do not agree well enough for an answer.", reason
    return "No program gave an answer.", reason


def _details(found: Found, context: Context) -> dict[str, Any]:
    selection = found.selection
    chosen = next((trial for trial in found.trials if trial.index == selection.trial_index), None)
    return {
        "route": "programs",
        "strategy": selection.strategy,
        "status": found.status.value,
        "answer": selection.answer,
        "abstained": selection.abstained,
        "surviving": list(selection.surviving),
        "shares": dict(selection.shares),
        "is_forced": selection.is_forced,
        "differs_from_plurality": selection.differs_from_plurality,
        "candidates": {status.value: _count(found, status) for status in Status if _count(found, status)},
        "programs": sum(trial.num_turns for trial in found.trials),
        "tokens": found.num_tokens,
        "sub_calls": found.num_sub_calls,
        "shared_sub_calls": found.num_shared,
        "coverage": chosen.coverage if chosen else 0.0,
        "evidence": [_shown(evidence, context) for evidence in (chosen.evidence if chosen else ())],
        "trace_hash": found.trace.sha256,
    }


def _count(found: Found, status: Status) -> int:
    return sum(trial.status is status for trial in found.trials)


def _shown(evidence: Evidence, context: Context) -> dict[str, Any]:
    """A span with its file, its place, and the text around it."""
    text = context.documents[evidence.document].text
    return {
        "name": context.names[evidence.document],
        "document": evidence.document,
        "start": evidence.start,
        "end": evidence.end,
        "line": text.count("\n", 0, evidence.start) + 1,
        "text": evidence.text[:1000],
        "before": text[max(0, evidence.start - _ABOUT_CHARACTERS) : evidence.start],
        "after": text[evidence.end : evidence.end + _ABOUT_CHARACTERS],
    }


async def _ask_below(request: Request, engines: Engines, question: str, text: str) -> str:
    """The answer of a run of its own, about a part of the context.

    Raises: RequestError: there is nothing to ask, or it gave no answer.
    """
    seed = seed_of(request.seed, "below", question, text)
    below = Request.ask(question, request.policy, context=text, options=request.options, seed=seed)
    async with aclosing(engines.solve(below)) as events:
        async for event in events:
            if isinstance(event, Completion):
                if event.details.get("route") == "programs" and event.details["answer"] is None:
                    raise RequestError(event.content)
                return event.content
    raise AssertionError("solve ends with a completion")
