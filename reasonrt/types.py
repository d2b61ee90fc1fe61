"""The nouns that everything else is written in. Frozen values, standard library only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from reasonrt.answers import find_answer
from reasonrt.errors import RequestError, shown
from reasonrt.thinking import split


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise RequestError(f"{rule}, got {shown(value)}")


class FinishReason(StrEnum):
    """Why a generation or a whole request ended."""

    STOP = "stop"  # the model ended, or met a stop token
    LENGTH = "length"  # the token limit
    DEADLINE = "deadline"  # the wall clock
    CALLS = "calls"  # the limit on engine calls
    BUDGET = "budget"  # the limit on generated tokens


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


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
        structure: what the text must be, in vLLM's words: one of `json` (a schema), `json_object`, `regex`, `choice`
            and `grammar`; for an engine with `Capability.STRUCTURE`. Empty is any text.
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
    structure: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require(1 <= self.max_tokens <= 1_000_000, "max_tokens must be in [1, 1000000]", self.max_tokens)
        _require(0.0 <= self.temperature <= 2.0, "temperature must be in [0, 2]", self.temperature)
        _require(0.0 < self.top_p <= 1.0, "top_p must be in (0, 1]", self.top_p)
        _require(0 <= self.top_k <= 1_000_000, "top_k must be in [0, 1000000]", self.top_k)
        _require(0.0 <= self.min_p <= 1.0, "min_p must be in [0, 1]", self.min_p)
        _require(self.seed is None or abs(self.seed) < 2**63, "seed must fit into 64 bits", self.seed)
        _require(0 <= self.top_logprobs <= 20, "top_logprobs must be in [0, 20]", self.top_logprobs)


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
        logprobs, top_logprobs: as in `TokenDelta`; empty when they were not asked for.
        scores: what routers and probes said of it, by name.
    """

    text: str
    token_ids: tuple[int, ...]
    author: str
    is_complete: bool = True
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


THE_RUNTIMES = Limits()
"""In the place of limits of its own: a request takes those of the runtime that it runs on."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a request is about: of any length, and never tokenized whole."""

    text: str
    name: str = ""


class Prompts:
    """One request's conversations as token ids: the chat template is applied once for each vocabulary."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[Message, ...]], tuple[int, ...]] = {}

    def token_ids(self, tokenizer: "Tokenizer", messages: tuple[Message, ...]) -> tuple[int, ...]:
        """What `tokenizer.chat(messages)` gives, asked for once."""
        key = tokenizer.fingerprint, messages
        if key not in self._known:
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
        thinking_tokens: of the thinking, at most; it is then closed, and the answer asked for. At 0 there is none.
        structure: as in `Sampling`, of the answer; the thinking is free.
        top_k, min_p: as in `Sampling`; a policy that does not draw by them alone refuses them.
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
    thinking_tokens: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    structure: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages or not self.messages[-1].content.strip():
            raise RequestError("the prompt is empty; give a question")
        Sampling(
            self.limits.max_tokens, self.temperature, self.top_p, self.seed, top_k=self.top_k, min_p=self.min_p
        )  # the same bounds hold here
        _require((self.thinking_tokens or 0) >= 0, "thinking_tokens must be at least 0", self.thinking_tokens)

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
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    top_logprobs: tuple[tuple[float, ...], ...] = ()


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
class Completion:
    """The end of a request: all that was committed, before it and in it, and what it cost.

    Attributes:
        details: what the policy found out about the request.
        prompt_opens_thinking: the chat template has written `<think>`, so that the text begins inside the thinking.
        warnings: as in `Stop`.
    """

    steps: tuple[Step, ...]
    finish_reason: FinishReason
    usage: Usage
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    prompt_opens_thinking: bool = False
    warnings: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def reasoning(self) -> str:
        """The thinking, without its tags; empty for a model that does not mark it."""
        return split(self.text, self.prompt_opens_thinking).reasoning

    @property
    def content(self) -> str:
        """The text after the thinking; empty where the text ends inside it."""
        return split(self.text, self.prompt_opens_thinking).content.rstrip()

    @property
    def answer(self) -> str | None:
        r"""What stands in the last `\boxed{}` of the content, or after `####`, or its last number; None without any."""
        return find_answer(self.content)

    @property
    def generated_tokens(self) -> int:
        return sum(engine.generated for engine in self.usage.values())


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


PolicyEvent = Step | Stop
Event = Step | Completion
