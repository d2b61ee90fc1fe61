"""The port to language models: token ids in, token ids out.

Policies, routers and the runtime know engines by these protocols only. The contract, tested for every engine by
`tests/engines/test_contract.py`:

* `generate` yields deltas whose ids are the generation in order; the last one carries the finish reason.
* `generate_whole`, which an engine may leave out, yields each of several generations once, when it has ended.
* Closing the stream aborts the work in the engine within one step; `generated_tokens` is exact after it.
* `read` costs one forward pass and is normalized over the whole vocabulary.
* `verify` costs one forward pass. Greedy, it says what a `generate` that writes token by token would have written; at a
  temperature, what it might have: draws from the same distribution, which have seen nothing of the draft.
* Calls with different values of `cache_salt` share nothing of the prefix cache.
* A dead engine raises `EngineError` and comes back by itself; what it can never do raises `CapabilityError`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, Self, runtime_checkable

from reasonrt.errors import CapabilityError, RequestError
from reasonrt.pace import Pace
from reasonrt.types import (
    GREEDY,
    EngineUsage,
    Event,
    FunctionTool,
    ParsedAnswer,
    PolicyEvent,
    Request,
    Sampling,
    TokenDelta,
    Tokenizer,
)


class Capability(StrEnum):
    """What an engine may or may not be able to do."""

    LOGPROBS = "logprobs"
    READ = "read"
    SCORE = "score"
    VERIFY = "verify"
    VERIFY_SAMPLED = "verify_sampled"  # at temperatures above 0 as well
    STRUCTURE = "structure"  # holds a text to a schema, a choice, an expression or a grammar
    TOOLS = "tools"  # tells calls of tools from the text of an answer; see `CallsTools`
    TOKEN_IDS = "token_ids"  # noqa: S105 (not that kind of token); gives ids; without it, generations come as text


@dataclass(frozen=True, slots=True)
class Verified:
    """What an engine would have written in the place of a draft.

    Attributes:
        token_ids: the draft's up to the first that the engine would not have written, or has not drawn, and its own in
            place of that one; all of them, at least one, where it agrees with all.
        cached_tokens: tokens of prompt and draft that its passes read from the prefix cache.
        passes: forward passes that it took, at least one.
        logprobs, top_logprobs, top_token_ids: as in `TokenDelta`, of each token of the whole draft as this engine sees
            it, when `Sampling` asks for them.
        own_logprob: of the last of `token_ids`, when it asks for `logprobs`.
    """

    token_ids: tuple[int, ...]
    cached_tokens: int = 0
    passes: int = 1
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    top_token_ids: tuple[tuple[int, ...], ...] = ()
    own_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine expects after a prompt.

    Attributes:
        logprobs: of each candidate as the next token, in the candidates' order; natural logarithms.
        cached_tokens: prompt tokens read from the prefix cache, as far as the engine has said.
    """

    logprobs: tuple[float, ...]
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward or router model says of a prompt.

    Attributes:
        value: its scalar head, read at the last token.
        cached_tokens: prompt tokens read from the prefix cache, as far as the engine has said.
    """

    value: float
    cached_tokens: int = 0


class TokenStream(Protocol):
    """One running generation."""

    @property
    def generated_tokens(self) -> int:
        """Tokens that the engine made for it so far, whether or not they were consumed; exact once closed."""

    @property
    def passes(self) -> int:
        """Forward passes that brought these tokens: one for each, unless the engine itself speculates or denoises.

        Exact once closed.
        """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> TokenDelta: ...

    async def aclose(self) -> None:
        """Abort what is left. Idempotent."""


class WholeStream(Protocol):
    """Generations of one prompt, of which each is one delta: all of its tokens, and why it ended.

    They come with their index, in the order in which they end.
    """

    @property
    def generated_tokens(self) -> int:
        """Tokens that the engine made for all of them so far, as far as it has said; exact once closed."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that all of them together read from the prefix cache; exact once closed."""

    @property
    def passes(self) -> int:
        """As in `TokenStream`, of all of them together."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> tuple[int, TokenDelta]: ...

    async def aclose(self) -> None:
        """Abort what is left. Idempotent."""


def canvas_positions(stream: TokenStream | WholeStream) -> int:
    """Positions of blocks of masked tokens, over all passes of `stream` so far; exact once closed.

    A stream of an engine that writes blocks has this as its property `canvas_positions`; for others it is 0.
    """
    return int(getattr(stream, "canvas_positions", 0))


class Engine(Protocol):
    """A model that can be asked for tokens. One instance serves many requests concurrently."""

    @property
    def name(self) -> str:
        """The author of its steps; no two engines of a runtime share one."""

    @property
    def fingerprint(self) -> str:
        """Equal for engines that compute the same: the same model with the same settings, as far as these matter.

        Certificates and evaluation journals are bound to it.
        """

    @property
    def model_fingerprint(self) -> str:
        """Equal for engines that run the same model with the same tokenizer, in whatever number format.

        Learned routers are bound to it.
        """

    @property
    def max_model_len(self) -> int:
        """Prompt and generation together never exceed so many tokens."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> Self:
        """Load the model and warm it up. Idempotent.

        An engine whose attribute `starts_beside_others` is true may start while others do.
        """

    async def aclose(self) -> None:
        """Free everything. Idempotent."""

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> TokenStream:
        """Start to write after the prompt.

        Raises (from the stream):
            RequestError: prompt and max_tokens do not fit into max_model_len.
            EngineError: the engine died.
        """

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        """How likely each candidate is as the next token."""

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        """What the engine itself would write token by token where a draft has written `drafted_ids`.

        At a temperature above 0 it draws at each place from what `generate` would draw from there, by sample and match
        (see `kernels.speculative_verify`). The random numbers depend on the seed and the place in the text alone: with
        one seed it agrees with itself, whatever the draft. A draft that was written with the same seed may share them;
        give another one.

        Args:
            sampling: of it, `temperature`, `top_p` and `seed`; without a seed, each call draws otherwise. And
                `logprobs` and `top_logprobs`, for those of the draft.

        Raises:
            CapabilityError: a temperature above 0, without `Capability.VERIFY_SAMPLED`.
        """

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        """The scalar head of a reward or router model, read at the last token."""


@runtime_checkable
class GeneratesWhole(Protocol):
    """What an engine has that can leave out the streaming; `engines.whole` does without it."""

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> WholeStream:
        """Write after the prompt once for each of `samplings`, at least one, where nobody needs tokens as they come.

        Raises (from the stream): as `generate` does, for any of them; the others are then aborted.
        """


@runtime_checkable
class CallsTools(Protocol):
    """What an engine with `Capability.TOOLS` has: it knows how its model writes calls of tools."""

    @property
    def call_marks(self) -> tuple[str, ...]:
        """What a call begins with in the text of an answer; empty where it may begin anywhere."""

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        """Tell the calls in an answer from its text.

        Args:
            answer: what the engine has written after its thinking.
            choice: as in `Request.tool_choice`; the answer was then written under the structure of these calls.
        """

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What holds an answer to what was asked for, as in `Sampling.structure`; empty where any text will do.

        Args:
            choice, is_parallel: as `Request.tool_choice` and `parallel_tool_calls`.
            structure: of an answer that calls nothing.

        Raises:
            CapabilityError: nothing can hold this model's calls to it.
            RequestError: a schema that cannot be held.
        """


def calling(engine: Engine) -> CallsTools:
    """The engine, as one that calls tools.

    Raises:
        CapabilityError: it does not.
    """
    if isinstance(engine, CallsTools):
        return engine
    raise CapabilityError(f"engine {engine.name!r} tells no calls of tools from text")


@runtime_checkable
class ChecksDecoding(Protocol):
    """What an engine has that writes by schedules: it says before it is asked what it would refuse."""

    def check_decoding(self, decoding: Mapping[str, Any]) -> None:
        """Look at what `Sampling.decoding` would hold; the engine need not be started.

        Raises:
            RequestError: an option that is not known, a value that is not allowed, or what this model cannot do.
        """


@runtime_checkable
class ChecksStructure(Protocol):
    """What an engine has that holds texts to some kinds of structure alone: it says so before it is asked."""

    def check_structure(self, structure: Mapping[str, Any]) -> None:
        """Look at what `Sampling.structure` would hold.

        Raises:
            RequestError: a kind that it cannot hold a text to.
        """


@runtime_checkable
class LearnsCapabilities(Protocol):
    """What an engine has that finds out at its start what it can do, which may be nothing beyond writing."""

    @property
    def is_known(self) -> bool:
        """Whether it has found out."""


def is_known(engine: Engine) -> bool:
    """Whether `engine.capabilities` are what it can do; else it may turn out to have any."""
    return engine.is_known if isinstance(engine, LearnsCapabilities) else bool(engine.capabilities)


@runtime_checkable
class ChecksHealth(Protocol):
    """What an engine has that computes in another process, which may hang where it could have died."""

    async def check_health(self, within_s: float) -> None:
        """Return when the other process has answered, however much work it has; one that is starting counts as well.

        One that has not answered in time is killed: what runs in it fails as after a death, and is resumed.

        Args:
            within_s: seconds; longer than any single pass takes.

        Raises:
            EngineError: it did not answer, and was killed.
        """


def refuse_decoding(engine_name: str, *samplings: Sampling) -> None:
    """For an engine that writes token by token and knows no other schedule.

    Raises:
        CapabilityError: a sampling names one in `decoding`.
    """
    for sampling in samplings:
        if sampling.decoding:
            name = str(next(iter(sampling.decoding)))
            raise CapabilityError(f"engine {engine_name!r} writes token by token; leave decoding {name[:64]!r} out")


class RequestEngine(Engine, GeneratesWhole, CallsTools, Protocol):
    """An engine as the runtime hands it to a policy: what it is asked counts for one request."""

    @property
    def pace(self) -> Pace:
        """Its recent speed, over all requests."""

    def usage(self, committed_tokens: int) -> EngineUsage:
        """What the request has spent on it so far, of which so many tokens are part of the committed text."""


class OperatorOnly:
    """Marks an option that only the configuration and code in this process may set, not a request over HTTP."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return handler(schema) | {"readOnly": True}  # in the words of OpenAPI

    def __repr__(self) -> str:
        return "OPERATOR_ONLY"


OPERATOR_ONLY: Final = OperatorOnly()
"""For annotations: `Annotated[str, OPERATOR_ONLY]`."""


class Tool(Protocol):
    """What a policy uses beside engines, such as a sandbox; a runtime starts and closes it as it does engines."""

    async def start(self) -> Self:
        """Make it ready. Idempotent."""

    async def aclose(self) -> None:
        """Free everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a request may still use, of its own limits and of those of each request that asked for it.

    A policy that looks at it ends by itself, with the best that it has, before the runtime ends it.

    Attributes:
        deadline: in the time of `time.monotonic`, which is also that of the event loop; None is no deadline.
        engine_calls: >= 0.
        generated_tokens: of all engines together, >= 0; None is no limit.
        depth: how deep sub-requests of this one may be nested, >= 0; at 0, `Engines.solve` refuses them.
    """

    deadline: float | None
    engine_calls: int
    generated_tokens: int | None
    depth: int


class Engines(Mapping[str, RequestEngine], ABC):
    """What a policy works with in one request: engines by role, tools by name, and other policies."""

    @property
    @abstractmethod
    def allowance(self) -> Allowance:
        """What the request may use from now on; what runs concurrently in it draws from the same."""

    @property
    @abstractmethod
    def tools(self) -> Mapping[str, Any]:
        """The tools that the policy named, by name."""

    def at_limit(
        self, details: Callable[[], Mapping[str, Any]], warnings: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        """Where a limit ends the request, and so there is no `Stop`, what these then give are its details and warnings.

        Of several, all that they give, the last one's where they tell of the same.
        """

    @property
    def told(self) -> Mapping[str, Any]:
        """What the functions of `at_limit` give now as details.

        A policy is asked again where its own text continues, after its thinking was closed for instance: at its start,
        this is what it has told of its work before.
        """
        return {}

    @abstractmethod
    def solve(self, request: Request) -> AsyncGenerator[Event, None]:
        """Ask another policy. What it uses is taken from the limits of the request that asks, and counted there.

        Raises:
            RequestError: it cannot be served as it stands, or sub-requests are nested too deep.
        """


class Policy(Protocol):
    """Solves a request. Everything above the engines that differs between two ways of reasoning is in here.

    A policy is built per request from the request's options, so it may keep state. It must say which `engines` it
    asks, be made by `from_options` and `solve`; the rest has defaults, also for a class that does not inherit from this
    one. `reasonrt.testing.check_policy` tells what a policy gets wrong.
    """

    @property
    def engines(self) -> tuple[str, ...]:
        """The roles of the engines that it asks; `solve` gets them under these."""
        raise NotImplementedError

    @property
    def optional_engines(self) -> tuple[str, ...]:
        """Roles that it makes use of where there are such engines."""
        return ()

    @property
    def replaceable_engines(self) -> tuple[str, ...]:
        """Of `engines`, those without which it continues: a prompt need not fit into their contexts."""
        return ()

    @property
    def tools(self) -> tuple[str, ...]:
        """The names of the tools that it uses."""
        return ()

    @property
    def num_streams(self) -> int:
        """How many generations it runs concurrently on one engine, at most; a server reserves a place for each."""
        return 1

    @property
    def commits_as_it_goes(self) -> bool:
        """Whether it has just written what it commits, so that stopping it saves the rest."""
        return True

    @property
    def has_one_author(self) -> bool:
        """Whether one engine draws each token, by the request's sampling alone: with `top_k`, `min_p` and penalties."""
        return False

    @property
    def gives_logprobs(self) -> bool:
        """Whether the steps of its engines have log-probabilities where `Request.logprobs` asks for them."""
        return False

    @property
    def holds_structure(self) -> bool:
        """Whether it holds its own answers, of which it takes one, to `Request.structure` and `thinking_tokens`."""
        return False

    @property
    def reads_context(self) -> bool:
        """Whether it reads `Request.context`; one that does not refuses a request that has some."""
        return False

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was built with, defaults included; certificates and journals are bound to it."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else dict(vars(self))

    @classmethod
    def option_types(cls) -> tuple[type, ...]:
        """The dataclasses whose fields are its options; a class that tells none may take options that nobody lists."""
        return ()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Raises: RequestError: an unknown option, or a value that is not allowed."""
        ...

    def check(self, engines: Mapping[str, Engine]) -> None:
        """Look at the files that its options name, when a runtime starts that has it configured.

        Args:
            engines: started, by role.

        Raises:
            ConfigError: a file cannot be read, or was made for other models.
        """
        return  # with a docstring alone, type checkers take it for a method that every policy must have

    def accept(self, request: Request, engines: Mapping[str, Engine]) -> None:
        """Refuse, before anything runs, a request that this policy cannot serve.

        Raises:
            RequestError: why, and what to do instead.
        """
        if request.context and not self.reads_context:
            raise RequestError(f"policy {request.policy!r} reads no context beside the messages; put it into them")

    def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        """Yield steps as they are committed and, last, a `Stop`. Closing the iterator closes all that it has open."""
        raise NotImplementedError
