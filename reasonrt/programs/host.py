"""What a candidate's programs may ask of the host: searches in the context, sub-questions, and the answer.

One `Host` for each candidate. It counts what the candidate asks for, notes what of the context was read, and checks
evidence; limits stand here, outside of the sandbox.
"""

import reprlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from reasonrt.errors import RequestError
from reasonrt.programs.context import MOST_HITS, Context, Coverage, Hit, SearchError, Span
from reasonrt.programs.sandbox.base import CellStopped, HostCall, ProgramError
from reasonrt.programs.subcalls import Kind, Question, Reply, SubCalls
from reasonrt.programs.trials import Evidence

AskBelow = Callable[[str, str], Awaitable[str]]
"""From a question and a text to the answer of a run of its own."""

_DETAIL_CHARACTERS = 120
_EVIDENCE_CHARACTERS = 8192  # of a span; who points at more has pointed at nothing
_MOST_FOUND = 3  # places that are shown for an answer that stands in the context word for word
_SEARCHED_PROMPTS = 256  # in each of which the context is looked for
_SPAN_KEYS = ("document", "start", "end")


@dataclass(frozen=True, slots=True)
class Final:
    """An answer that a program has given.

    Attributes:
        variable: the name of the variable that holds it, to be read once the cell has ended.
    """

    answer: Any = None
    evidence: Any = None
    variable: str = ""


class Host:
    """Answers the calls of one candidate.

    Args:
        sub_calls: of the run.
        max_sub_calls: sub-questions that this candidate may ask.
        ask_below: where a run may search programs for a part of its context.

    Attributes:
        final: the last answer that a cell has given, until it is taken.
        notes: what the model is to be told after the cell, a line each.
        calls: of the cell that runs, for the trace.
    """

    def __init__(
        self, context: Context, sub_calls: SubCalls, max_sub_calls: int, ask_below: AskBelow | None = None
    ) -> None:
        self._context, self._sub_calls, self._max_sub_calls = context, sub_calls, max_sub_calls
        self._ask_below = ask_below
        self._refusals = 0
        self._probabilities: list[float] = []
        self.coverage = Coverage(context)
        self.num_sub_calls = self.num_sub_tokens = 0
        self.final: Final | None = None
        self.notes: list[str] = []
        self.calls: list[dict[str, str]] = []
        self.variables: list[str] = []  # that cells have assigned, in order
        self._functions: dict[str, Callable[..., Awaitable[Any]]] = {
            "grep": self.grep,
            "chunk": self.chunk,
            "peek": self.peek,
            "llm_query": self.llm_query,
            "llm_query_batched": self.llm_query_batched,
            "_llm_query_each": self.llm_query_each,
            "map_llm": self.map_llm,
            "filter_llm": self.filter_llm,
            "vote": self.vote,
            "final": self.give,
            "FINAL": self.give,
            "FINAL_VAR": self.give_variable,
            "SHOW_VARS": self.show_variables,
        }
        if ask_below is not None:
            self._functions["rlm_query"] = self.rlm_query

    def fork(self) -> "Host":
        """The host of a candidate that continues from where this one is."""
        forked = Host(self._context, self._sub_calls, self._max_sub_calls, self._ask_below)
        forked.coverage = deepcopy(self.coverage, {id(self._context): self._context})
        forked.num_sub_calls, forked._refusals = self.num_sub_calls, self._refusals
        forked.num_sub_tokens = self.num_sub_tokens
        forked.variables = list(self.variables)
        forked._probabilities = list(self._probabilities)
        return forked

    @property
    def is_spent(self) -> bool:
        """Whether it went on asking after it had been told that no sub-question is left."""
        return self._refusals > 1

    @property
    def agreement(self) -> float | None:
        """Mean probability of the sub-answers that were read as choices; None without any."""
        return sum(self._probabilities) / len(self._probabilities) if self._probabilities else None

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(self._functions)

    async def __call__(self, call: HostCall) -> Any:
        """Answer a call; the sandbox's `Host`.

        Raises:
            ProgramError: for the program, which may catch it.
            CellStopped: the cell goes on although it was told that nothing is left.
        """
        if self.is_spent:
            raise CellStopped("it went on asking sub-questions after the last one was spent")
        detail = ", ".join([*map(_short, call.args), *(f"{name}={_short(each)}" for name, each in call.kwargs.items())])
        if len(self.calls) < 200:  # a trace is to be read
            self.calls.append({"name": call.name, "detail": detail[:_DETAIL_CHARACTERS]})
        try:
            return await self._functions[call.name](*call.args, **call.kwargs)
        except TypeError as error:  # of the call itself: the functions below check what they are given
            raise ProgramError(str(error).replace("Host.", ""), "TypeError") from None

    async def grep(
        self, pattern: Any, document: Any = None, max_hits: Any = 1000, ignore_case: Any = False
    ) -> list[dict[str, Any]]:
        """Matches of a regular expression, each with the line that it is in."""
        pattern, index = _text(pattern, "pattern"), self._document(document)
        most = _count(max_hits, "max_hits")
        try:
            hits = await self._context.grep(pattern, document=index, max_hits=most, ignore_case=bool(ignore_case))
        except SearchError as error:
            raise ProgramError(str(error), "ValueError") from None
        if len(hits) == MOST_HITS < most:
            self.notes.append(f"grep gives no more than {MOST_HITS:,} matches; there may be more")
        for hit in hits:
            self.coverage.add(hit.span)
        return [_hit_value(hit) for hit in hits]

    async def chunk(self, max_characters: Any = 8000, document: Any = None) -> list[dict[str, int]]:
        """Spans that cover the context, or one document."""
        spans = self._context.chunks(_count(max_characters, "max_characters"), self._document(document))
        return [_span_value(span) for span in spans]

    async def peek(self, span: Any, before: Any = 0, after: Any = 0) -> str:
        """The text of a span, and so many characters about it."""
        place = self._span(span)
        place = Span(place.document, place.start - _count(before, "before", 0), place.end + _count(after, "after", 0))
        self.coverage.add(place)
        return self._context.text(place)

    async def llm_query(self, prompt: Any) -> str:
        """The answer of the model that answers sub-questions."""
        (reply,) = await self._ask_each([prompt])
        if reply.error:
            raise ProgramError(f"llm_query: {reply.error}")
        return str(reply.value)

    async def llm_query_batched(self, prompts: Any) -> list[Any]:
        """An answer for each prompt, None in the place of one that failed."""
        return self._values(await self._ask_each(_list(prompts, "prompts")))

    async def llm_query_each(self, prompts: Any) -> list[Any]:
        """As `llm_query_batched`, where a program asked one after the other: fails as the first one fails."""
        replies = await self._ask_each(_list(prompts, "prompts"))
        if failed := [reply.error for reply in replies if reply.error]:
            raise ProgramError(f"llm_query: {failed[0]}")
        return [reply.value for reply in replies]

    async def map_llm(self, instruction: Any, items: Any, schema: Any = None) -> list[Any]:
        """The answer to an instruction about each item, a text or a span; None in the place of one that failed."""
        kind, labels = _schema(schema)
        return self._values(await self._ask(self._questions(instruction, items, kind, labels)))

    async def filter_llm(self, instruction: Any, items: Any) -> list[Any]:
        """The items for which the answer is yes; one that failed is left out."""
        replies = await self._ask(self._questions(instruction, items, "bool", ()))
        values = self._values(replies)
        return [item for item, value in zip(items, values, strict=True) if value]

    async def vote(self, values: Any) -> Any:
        """The most frequent value, the first of equals; None counts for nothing."""
        counts = Counter(repr(value) for value in _list(values, "values") if value is not None)
        if not counts:
            return None
        winner = counts.most_common(1)[0][0]
        return next(value for value in values if repr(value) == winner)

    async def rlm_query(self, question: Any, text: Any) -> str:
        """The answer of a run of its own, for a text that is too long to be read at once."""
        if self._ask_below is None:
            raise AssertionError("it is offered where there is one")
        self._reserve(1)
        self.coverage.add_text(_text(text, "text"))
        try:
            return await self._ask_below(_text(question, "question"), _text(text, "text"))
        except RequestError as error:
            raise ProgramError(f"rlm_query: {error}"[:400]) from None

    async def give(self, answer: Any, evidence: Any = None) -> None:
        """The answer; it counts once the cell has ended well."""
        self.final = Final(answer, evidence)

    async def give_variable(self, name: Any) -> None:
        """The answer is what a variable holds when the cell ends."""
        self.final = Final(variable=_text(name, "name"))

    async def show_variables(self) -> str:
        """The names of the variables that programs have set."""
        return ", ".join(dict.fromkeys(self.variables)) or "none"

    def evidence_for(self, answer: str, claimed: Any) -> tuple[tuple[Evidence, ...], int]:
        """The spans that a program claims as evidence and that hold, and how many do not.

        A claim is a quote, which must stand in the context word for word, or a span, which must say what it claims to
        say; one of many pages does not hold. Without any claim, the places where the answer itself stands are the
        evidence.
        """
        found: list[Evidence] = []
        num_refuted = 0
        claims = claimed if isinstance(claimed, list | tuple) else [] if claimed is None else [claimed]
        for claim in claims[:64]:
            if evidence := self._verified(claim):
                found.append(evidence)
            else:
                num_refuted += 1
        if not claims and len(answer.strip()) > 2 and (span := self._context.find(answer.strip())):
            found.append(self._evidence(span))
        return tuple(dict.fromkeys(found)), num_refuted

    def _verified(self, claim: Any) -> Evidence | None:
        if isinstance(claim, str):
            found = self._context.find(claim.strip()) if len(claim) <= _EVIDENCE_CHARACTERS else None
            return self._evidence(found) if found else None
        try:
            span = self._span(claim)
        except ProgramError:
            return None
        length = len(self._context.documents[span.document].text)
        span = Span(span.document, max(0, span.start), min(span.end, length))
        if span.end - span.start > _EVIDENCE_CHARACTERS:
            return None
        says = self._context.text(span)
        claims = claim.get("text", says)
        return self._evidence(span) if says and claims == says else None

    def _evidence(self, span: Span) -> Evidence:
        return Evidence(span.document, span.start, span.end, self._context.text(span))

    async def _ask_each(self, prompts: Sequence[Any]) -> list[Reply]:
        """Prompts of the program's own making: what of the first of them is a piece of the context was read."""
        texts = [_text(prompt, "a prompt") for prompt in prompts]
        num_before = self.num_sub_calls
        self._reserve(len(texts))
        for text in texts[: max(0, _SEARCHED_PROMPTS - num_before)]:
            self.coverage.add_text(text)
        return await self._ask([Question(text) for text in texts])

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Sub-questions that are reserved."""
        replies = await self._sub_calls.ask(questions)
        self.num_sub_tokens += sum(reply.num_tokens for reply in replies)
        self._probabilities += [reply.probability for reply in replies if reply.probability is not None]
        return replies

    def _reserve(self, num_calls: int) -> None:
        self._check_left(num_calls)
        self.num_sub_calls += num_calls

    def _check_left(self, num_calls: int) -> None:
        left = self._max_sub_calls - self.num_sub_calls
        if num_calls > left:
            self._refusals += 1
            raise ProgramError(
                f"{num_calls:,} sub-questions are asked for and {left:,} are left; ask fewer, about larger pieces, or "
                "give your answer"
            )

    def _questions(self, instruction: Any, items: Any, kind: Kind, labels: tuple[str, ...]) -> list[Question]:
        """Sub-questions, reserved."""
        instruction, items = _text(instruction, "instruction"), _list(items, "items")
        self._check_left(len(items))  # before anything is made of them
        questions = [Question(self._item(item), instruction, kind, labels) for item in items]
        self._reserve(len(questions))
        return questions

    def _item(self, item: Any) -> str:
        if isinstance(item, Mapping) and all(key in item for key in _SPAN_KEYS):
            span = self._span(item)
            self.coverage.add(span)
            return self._context.text(span)
        return _text(item, "an item, if it is no span,")

    def _values(self, replies: Sequence[Reply]) -> list[Any]:
        if failed := [reply.error for reply in replies if reply.error]:
            self.notes.append(f"{len(failed)} of {len(replies)} sub-questions failed and are None: {failed[0]}")
        return [reply.value for reply in replies]

    def _span(self, value: Any) -> Span:
        if not isinstance(value, Mapping) or not all(_is_index(value.get(key)) for key in _SPAN_KEYS):
            raise ProgramError(f"a span has document, start and end, got {_short(value)}", "TypeError")
        document, start, end = (value[key] for key in _SPAN_KEYS)
        if not 0 <= document < len(self._context.documents):
            raise ProgramError(f"there is no document {document}", "IndexError")
        return Span(document, start, end)

    def _document(self, value: Any) -> int | None:
        if value is None:
            return None
        if not _is_index(value) or not 0 <= value < len(self._context.documents):
            last = len(self._context.documents) - 1
            raise ProgramError(f"document is the place of one, from 0 to {last}, got {_short(value)}", "IndexError")
        return int(value)


def _schema(schema: Any) -> tuple[Kind, tuple[str, ...]]:
    name = getattr(schema, "name", schema)  # a type arrives as a stand-in that has its name
    kinds: Mapping[Any, Kind] = {
        None: "text", "text": "text", "str": "text", "number": "number", "int": "number", "float": "number",
        "bool": "bool",
    }  # fmt: skip
    if isinstance(name, str | None) and name in kinds:
        return kinds[name], ()
    if isinstance(schema, list | tuple) and schema and all(isinstance(label, str) and label for label in schema):
        labels = tuple(dict.fromkeys(schema))
        return "choice", labels
    raise ProgramError(f'schema is a list of labels, "number", "bool" or None, got {_short(schema)}', "TypeError")


def _hit_value(hit: Hit) -> dict[str, Any]:
    return {**_span_value(hit.span), "line": hit.line, "text": hit.text, "match": hit.match}


def _span_value(span: Span) -> dict[str, int]:
    return {"document": span.document, "start": span.start, "end": span.end}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ProgramError(f"{name} must be a str, got {_short(value)}", "TypeError")
    return value


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ProgramError(f"{name} must be a list, got {_short(value)}", "TypeError")
    return value


def _count(value: Any, name: str, least: int = 1) -> int:
    if not _is_index(value) or value < least:
        raise ProgramError(f"{name} must be a whole number of at least {least}, got {_short(value)}", "TypeError")
    return int(value)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # bounded, however large the value is
    return text if len(text) <= 60 else text[:57] + "..."
