"""The nouns that everything else is written in. Frozen values, standard library only."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from reasonrt.answers import find_answer
from reasonrt.errors import RequestError, shown
from reasonrt.thinking import split


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise RequestError(f"{rule}, got {shown(value)}")


def _is_deeper(value: Any, most: int) -> bool:
    """Whether JSON is nested more than `most` deep."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(most <= 0 or _is_deeper(part, most - 1) for part in parts if isinstance(part, Mapping | list | tuple))


def _is_finite(value: Any) -> bool:
    """Whether each number in it is, as JSON knows no other, and no server is sent one."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, float) and not math.isfinite(part):
            return False
        waiting += part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    return True


class FinishReason(StrEnum):
    """Why a generation or a whole request ended."""

    STOP = "stop"  # the model ended, or met a stop token
    LENGTH = "length"  # the token limit
    DEADLINE = "deadline"  # the wall clock
    CALLS = "calls"  # the limit on engine calls
    BUDGET = "budget"  # the limit on generated tokens


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a tool to be run.

    Attributes:
        id: what the tool's result refers to.
        name: the tool's.
        arguments: a JSON object, as text.
    """

    id: str
    name: str
    arguments: str


_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MOST_SCHEMA_DEPTH = 32
TOOL_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A tool that the model may ask for, and that the caller runs.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; none of `auto`, `none` and `required`.
        description: for the model.
        parameters: a JSON schema of the arguments, nested at most 32 deep.
        is_strict: the arguments are held to the schema, where the engine can hold a text to one.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    is_strict: bool = False

    def __post_init__(self) -> None:
        is_name = _TOOL_NAME.fullmatch(self.name) is not None and self.name not in TOOL_CHOICES
        _require(is_name, "the name of a tool must be at most 128 of a-z, A-Z, 0-9, _, . and -", self.name)
        is_flat = not _is_deeper(self.parameters, _MOST_SCHEMA_DEPTH)
        _require(is_flat, f"the parameters of a tool must be nested at most {_MOST_SCHEMA_DEPTH} deep", self.name)
        _require(_is_finite(self.parameters), "numbers in the parameters of a tool must be finite", self.parameters)

    def to_json(self) -> dict[str, Any]:
        """As chat templates and OpenAI have it."""
        described = {"description": self.description} if self.description else {}
        parameters = dict(self.parameters) or {"type": "object", "properties": {}}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": parameters}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: such as `user`, or `tool` for what a tool has returned.
        tool_calls: of an assistant.
        tool_call_id: of a tool's message: the call that it answers.
        name: of who speaks, or of the tool.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What makes a token less probable that is there already, as vLLM reckons: within one generation of an engine.

    Attributes:
        presence: taken off the logit of each token that was generated, in [-2, 2].
        frequency: the same, times how often it was, in [-2, 2].
        repetition: divides the logit of each token of prompt and generation where it is positive, and multiplies it
            where it is negative, in (0, 10]; 1 does nothing.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        _require(abs(self.presence) <= 2, "presence_penalty must be in [-2, 2]", self.presence)
        _require(abs(self.frequency) <= 2, "frequency_penalty must be in [-2, 2]", self.frequency)
        _require(0 < self.repetition <= 10, "repetition_penalty must be in (0, 10]", self.repetition)


NO_PENALTIES = Penalties()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws tokens.

    Attributes:
        max_tokens: at most so many new tokens, >= 1.
        temperature: 0 is greedy.
        top_p: mass of the tokens drawn from, in (0, 1].
        seed: makes a drawn generation reproducible on the same engine.
        stop_token_ids: generation ends with, and includes, the first of these.
        logprobs: whether each token comes with its log-probability.
        top_logprobs: how many of the highest log-probabilities come with each token, in [0, 20].
        decoding: the engine's own schedule, such as how a block of masked tokens becomes text; the engine checks it
            and refuses what it does not know.
        top_k: so many of the most probable tokens are drawn from; 0 is all.
        min_p: tokens with less than this share of the highest probability are left out, in [0, 1].
        penalties: on tokens that are there already.
        structure: what the text must be, in vLLM's words: one of `json` (a schema), `json_object`, `regex`, `choice`,
            `grammar` and `structural_tag`; for an engine with `Capability.STRUCTURE`. Empty is any text.
        passes: whether an engine that writes blocks of masked tokens tells of each of its passes, in `TokenDelta`.
        by_step: nobody acts on a token before a step may end with it: an engine may keep what it has written up to such
            a token, or for a few dozen tokens, and give it as one delta.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: bool = False
    top_logprobs: int = 0
    decoding: Mapping[str, Any] = field(default_factory=dict, hash=False)
    top_k: int = 0
    min_p: float = 0.0
    penalties: Penalties = NO_PENALTIES
    structure: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passes: bool = False
    by_step: bool = False

    def __post_init__(self) -> None:
        _require(1 <= self.max_tokens <= 1_000_000, "max_tokens must be in [1, 1000000]", self.max_tokens)
        _require(0.0 <= self.temperature <= 2.0, "temperature must be in [0, 2]", self.temperature)
        _require(0.0 < self.top_p <= 1.0, "top_p must be in (0, 1]", self.top_p)
        _require(0 <= self.top_k <= 1_000_000, "top_k must be in [0, 1000000]", self.top_k)
        _require(0.0 <= self.min_p <= 1.0, "min_p must be in [0, 1]", self.min_p)
        _require(self.seed is None or abs(self.seed) < 2**63, "seed must fit into 64 bits", self.seed)
        _require(0 <= self.top_logprobs <= 20, "top_logprobs must be in [0, 20]", self.top_logprobs)
        _require(_is_finite(self.structure), "numbers in a structure must be finite", self.structure)


GREEDY = Sampling(1)
"""For what is asked of an engine without a length of its own, such as a verification."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may use, its sub-requests included; the runtime enforces each of them.

    Attributes:
        max_tokens: tokens of the committed text, >= 1.
        deadline_s: seconds from the start of `solve`; None is no deadline.
        max_engine_calls: generations, reads, verifications and scores together, >= 1.
        max_generated_tokens: what all engines generate together, thrown away or not; None is no limit.
        max_depth: how deep sub-requests may be nested, >= 0.
        max_sub_requests: how many sub-requests may run concurrently, >= 1; more wait.
    """

    max_tokens: int = 768
    deadline_s: float | None = None
    max_engine_calls: int = 4096
    max_generated_tokens: int | None = None
    max_depth: int = 1
    max_sub_requests: int = 64

    def __post_init__(self) -> None:
        _require(1 <= self.max_tokens <= 1_000_000, "max_tokens must be in [1, 1000000]", self.max_tokens)
        _require(self.deadline_s is None or self.deadline_s > 0, "deadline_s must be positive", self.deadline_s)
        _require(self.max_engine_calls >= 1, "max_engine_calls must be at least 1", self.max_engine_calls)
        budget = self.max_generated_tokens
        _require(budget is None or budget >= 1, "max_generated_tokens must be at least 1", budget)
        _require(self.max_depth >= 0, "max_depth must be at least 0", self.max_depth)
        _require(self.max_sub_requests >= 1, "max_sub_requests must be at least 1", self.max_sub_requests)


@dataclass(frozen=True, slots=True)
class Step:
    """Committed text between two boundaries.

    Attributes:
        text: with the boundary that closes it.
        token_ids: in the author's vocabulary.
        author: the name of the engine that wrote it.
        is_complete: False for text that a limit cut off, or that another engine carries on.
        logprobs, top_logprobs, top_token_ids: as in `TokenDelta`; empty when they were not asked for.
        scores: what routers and probes said of it, by name.
    """

    text: str
    token_ids: tuple[int, ...]
    author: str
    is_complete: bool = True
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    top_token_ids: tuple[tuple[int, ...], ...] = ()

    def beginning(self, length: int, text: str, *, is_complete: bool) -> "Step":
        """Its first `length` tokens, which read `text`."""
        return replace(
            self,
            text=text,
            token_ids=self.token_ids[:length],
            is_complete=is_complete,
            logprobs=self.logprobs[:length],
            top_logprobs=self.top_logprobs[:length],
            top_token_ids=self.top_token_ids[:length],
        )

    @property
    def mean_logprob(self) -> float | None:
        """Of its tokens; None where nobody asked for their log-probabilities."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None


THE_RUNTIMES = Limits()
"""In the place of limits of its own: a request takes those of the runtime that it runs on."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a request is about: of any length, and never tokenized whole."""

    text: str
    name: str = ""


class PromptIds(list[int]):
    """Token ids of a conversation and of what an answer to it has begun with, for engines that are sent messages.

    Attributes:
        messages, tools: the conversation.
        num_tokens: how many of the ids are the conversation's.
    """

    def __init__(
        self,
        token_ids: Iterable[int],
        messages: Sequence[Message],
        tools: Sequence[FunctionTool] = (),
        num_tokens: int | None = None,
    ) -> None:
        super().__init__(token_ids)
        self.messages, self.tools = tuple(messages), tuple(tools)
        self.num_tokens = len(self) if num_tokens is None else num_tokens

    @property
    def begun(self) -> list[int]:
        """Of the answer."""
        return self[self.num_tokens :]

    def copy(self) -> "PromptIds":
        return PromptIds(self, self.messages, self.tools, self.num_tokens)


class Prompts:
    """One request's conversations as token ids: the chat template is applied once for each vocabulary.

    Args:
        given: these ids in the place of any conversation.
    """

    def __init__(self, given: Sequence[int] = ()) -> None:
        self._given = tuple(given)
        self.are_given = bool(given)
        self._known: dict[tuple[str, tuple[Message, ...], tuple[FunctionTool, ...]], tuple[int, ...]] = {}

    def token_ids(
        self, tokenizer: "Tokenizer", messages: tuple[Message, ...], tools: tuple[FunctionTool, ...] = ()
    ) -> tuple[int, ...]:
        """What `tokenizer.chat` gives, or `chat_with_tools` where there are any, asked for once."""
        if self._given:
            return self._given
        key = tokenizer.fingerprint, messages, tools
        if key not in self._known:
            if tools and isinstance(tokenizer, ShowsTools):
                self._known[key] = tuple(tokenizer.chat_with_tools(messages, tools))
            else:
                self._known[key] = tuple(tokenizer.chat(messages))
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Request:
    """A question, the policy that is to solve it, and what it may cost.

    Attributes:
        messages: the conversation so far, the question last.
        policy: its name.
        options: the policy's own settings; unknown ones are refused.
        limits: what it may use; by default what the runtime allows.
        committed: steps of the answer that are there already; the policy continues after them.
        cache_salt: requests with different ones share nothing of the engines' prefix caches.
        context: documents beside the messages, for a policy that reads them; another one refuses the request.
        prompts: the conversation as token ids, shared with every request that was made from this one.
        report: called by a policy that works long before it commits anything, with what it knows so far, by name. It
            stays in this process, and is not handed to sub-requests; None where nobody listens.
        trace: `report` is also told of all that was paid for and is not in the text, and engines are asked for the
            log-probability of each token.
        thinking_tokens: of the thinking, at most; it is then closed, and the answer asked for. At 0 there is none.
        structure: as in `Sampling`, of the answer; the thinking is free.
        top_k, min_p, penalties: as in `Sampling`; a policy that does not draw by them alone refuses them.
        logprobs: each token comes with its log-probability and so many of the highest ones at its place, in [0, 20];
            None is without. A policy that cannot give them refuses it.
        echo: the prompt is committed first, and then continued as it stands. The ids in `prompts` count, and
            `limits.max_tokens` is for both. A policy in which not one engine alone writes refuses it.
        tools: what the model may ask for, each by a name of its own. The calls are in `Completion.tool_calls`.
        tool_choice: `auto`; `none`, which leaves the tools out; `required`, or the name of a tool that must be asked
            for.
        parallel_tool_calls: whether several calls may come.
        answer_structure: of an answer without calls, where `structure` holds calls, too; None is `structure`.
    """

    messages: tuple[Message, ...]
    policy: str = "target"
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = THE_RUNTIMES
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    committed: tuple[Step, ...] = ()
    cache_salt: str = ""
    context: tuple[Document, ...] = ()
    prompts: Prompts = field(default_factory=Prompts, repr=False, compare=False)
    report: Callable[[Mapping[str, Any]], None] | None = field(default=None, repr=False, compare=False)
    trace: bool = field(default=False, compare=False)
    thinking_tokens: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    penalties: Penalties = NO_PENALTIES
    structure: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    echo: bool = False
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    answer_structure: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = self.messages[-1] if self.messages else Message("", "")
        if last.role != "tool" and not last.content.strip():  # a tool may have had nothing to say
            raise RequestError("the prompt is empty; give a question")
        Sampling(  # the same bounds hold here
            self.limits.max_tokens,
            self.temperature,
            self.top_p,
            self.seed,
            top_logprobs=self.logprobs or 0,
            top_k=self.top_k,
            min_p=self.min_p,
            structure=self.structure,
        )
        _require((self.thinking_tokens or 0) >= 0, "thinking_tokens must be at least 0", self.thinking_tokens)
        names = [tool.name for tool in self.tools]
        _require(len(set(names)) == len(names), "each tool must have a name of its own", names)
        choices = [*names, *TOOL_CHOICES] if names else TOOL_CHOICES[:2]
        _require(self.tool_choice in choices, f"tool_choice must be one of {', '.join(choices)}", self.tool_choice)

    @property
    def num_characters(self) -> int:
        """Of what is asked: the messages with their calls, and the tools."""
        calls = (call for message in self.messages for call in message.tool_calls)
        return sum(
            [
                *(len(message.content) for message in self.messages),
                *(len(call.arguments) for call in calls),
                *(len(str(tool.to_json())) for tool in self.tools),
            ]
        )

    def prompt(self, tokenizer: "Tokenizer") -> tuple[int, ...]:
        """The conversation and the tools as `tokenizer` reads them."""
        return self.prompts.token_ids(tokenizer, self.messages, self.tools)

    def tell(self, kind: str, **known: Any) -> None:
        """Report to whoever traces the request, as JSON data; nothing where nobody does."""
        if self.trace and self.report is not None:
            self.report({"kind": kind, **known})

    def tell_discarded(self, step: Step, why: str, kept_tokens: int = 0) -> None:
        """`tell` of text that an engine has generated, and of which only the first `kept_tokens` are in the answer."""
        if self.trace:
            self.tell(
                "discarded",
                why=why,
                author=step.author,
                text=step.text,
                tokens=len(step.token_ids) - kept_tokens,
                kept_tokens=kept_tokens,
                mean_logprob=step.mean_logprob,
                scores=dict(step.scores),
            )

    @classmethod
    def ask(
        cls, question: str, policy: str = "target", *, context: str | Iterable[Document] = (), **fields: Any
    ) -> "Request":
        """A request of a single user message.

        Args:
            context: a text, or documents, that the question is about.
            fields: the other fields of `Request`.
        """
        documents = (Document(context),) if isinstance(context, str) else tuple(context)
        return cls((Message("user", question),), policy, context=documents, **fields)


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What an engine generated since its last delta.

    Attributes:
        token_ids: at least one, except in a last delta that only says why it ended.
        logprobs: as long as token_ids when asked for, else empty; natural logarithms.
        finish_reason: set on the last delta.
        cached_tokens: prompt tokens read from the prefix cache, as far as the engine has said.
        top_logprobs: as long as token_ids when asked for: the highest ones at each place, in descending order.
        top_token_ids: which tokens these are; empty where a remote server names them by their texts alone.
        passes: those since the last delta, when asked for: of each, what the engine expects at the places that are
            masked before it, as (place after the prompt, token id, probability).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    top_token_ids: tuple[tuple[int, ...], ...] = ()
    passes: tuple[tuple[tuple[int, int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """A policy's last event: why it ends, and what it found out about the request.

    Attributes:
        warnings: what was asked for and did not take place, such as `speculation`, and why.
    """

    reason: FinishReason
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What one request cost on one engine, in tokens.

    Attributes:
        calls: generations, reads, verifications and scores.
        prefilled: prompt tokens computed.
        cached: prompt tokens read from the prefix cache.
        generated: new tokens, whatever became of them.
        discarded: those of `generated` that are not part of the committed text.
        probe: those of `discarded` that only answered a question of the engine's own (reads).
        passes: forward passes of the model: of a generation one for each token, the first of which also reads the
            prompt, or fewer where vLLM in this process speculates by itself; of a read or a score one, of a
            verification one or two. Not counted are the further ones in which vLLM reads a prompt that is longer than
            what it takes in at a time; what a remote server saves by its own speculation is not known. Of block
            diffusion those that denoise or commit something, which may be more than tokens.
        canvas: positions of the blocks of masked tokens over all passes of generations; 0 of an engine that writes
            token by token.
    """

    calls: int = 0
    prefilled: int = 0
    cached: int = 0
    generated: int = 0
    discarded: int = 0
    probe: int = 0
    passes: int = 0
    canvas: int = 0

    def __add__(self, other: "EngineUsage") -> "EngineUsage":
        return EngineUsage(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


Usage = Mapping[str, EngineUsage]
"""Engine name to what it spent."""


def total_usage(usages: Iterable[Usage]) -> dict[str, EngineUsage]:
    """The sum, engine by engine."""
    total: dict[str, EngineUsage] = {}
    for usage in usages:
        for name, spent in usage.items():
            total[name] = total.get(name, EngineUsage()) + spent
    return total


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer, with the calls of tools told from its text."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request: all that was committed, before it and in it, and what it cost.

    Attributes:
        details: what the policy found out about the request.
        prompt_opens_thinking: the chat template has written `<think>`, so that the text begins inside the thinking.
        warnings: as in `Stop`.
        parsed: the answer of a request with tools.
    """

    steps: tuple[Step, ...]
    finish_reason: FinishReason
    usage: Usage
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    prompt_opens_thinking: bool = False
    warnings: Mapping[str, str] = field(default_factory=dict)
    parsed: ParsedAnswer | None = None

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def reasoning(self) -> str:
        """The thinking, without its tags; empty for a model that does not mark it."""
        return split(self.text, self.prompt_opens_thinking).reasoning

    @property
    def content(self) -> str:
        """The text after the thinking, without calls of tools; empty where the text ends inside the thinking."""
        if self.parsed is not None:
            return self.parsed.content
        return split(self.text, self.prompt_opens_thinking).content.rstrip()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What the model asks for, of the tools of the request."""
        return () if self.parsed is None else self.parsed.tool_calls

    @property
    def answer(self) -> str | None:
        r"""What stands in the last `\boxed{}` of the content, or after `####`, or its last number; None without any."""
        return find_answer(self.content)

    @property
    def generated_tokens(self) -> int:
        return sum(engine.generated for engine in self.usage.values())


@dataclass(frozen=True, slots=True)
class Report:
    """What a traced request has told beside its steps: JSON data with its `kind`, see `Request.tell`."""

    known: Mapping[str, Any]


class Tokenizer(Protocol):
    """Between text and the ids of one engine.

    A text is a piece of a longer one: encoded and decoded piece by piece it is what it is as a whole. A tokenizer may
    also have a `boundary`, what ends a step (`reasonrt.boundaries`), and a `vocabulary_fingerprint`, equal where
    the ids stand for the same tokens and the same ones end a text, whatever the chat template is.
    """

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers that give the same ids for every text and chat."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def __hash__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as it stands: nothing is added, and control tokens in it are such."""

    def encode_text(self, text: str) -> list[int]:
        """As `encode`, for what people, documents and models have written: no control token comes of it."""

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant begins to write; messages are read by `encode_text`."""

    def vocabulary(self) -> Mapping[int, str]:
        """Every id and the text that it stands for, as it would read inside a sentence."""


@runtime_checkable
class ShowsTools(Protocol):
    """What a tokenizer has whose chat template may show tools to the model."""

    @property
    def knows_tools(self) -> bool:
        """Whether it does."""

    def chat_with_tools(self, messages: Sequence[Message], tools: Sequence[FunctionTool]) -> list[int]:
        """As `chat`, with the tools that the model may ask for; they are read by `encode_text`, too."""


def knows_tools(tokenizer: Tokenizer) -> bool:
    """Whether it shows tools, calls and results to the model."""
    return isinstance(tokenizer, ShowsTools) and tokenizer.knows_tools


PolicyEvent = Step | Stop
Event = Step | Completion
