"""What a request on the wire asks of this server: which policy, with which options, within which bounds."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from reasonrt.errors import ConfigError, ReasonRTError, RequestError
from reasonrt.plugins import FAILURES, reason_of
from reasonrt.policies.options import parse_policy
from reasonrt.policies.registry import CONTROLS, policy_names, refuse_operator_options
from reasonrt.policies.structured import can_call_tools, can_hold_structure
from reasonrt.runtime import Prepared, Runtime
from reasonrt.serve.config import Effort, ServeConfig
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.requests import CompletionRequest, Generation
from reasonrt.types import Document, Message, Penalties, Prompts, Request, Tokenizer
from reasonrt.writing import seed_of

_log = logging.getLogger(__name__)
AUTO = "auto"
"""The model id under which `reasoning_effort` chooses the policy; without one, and in the middle, that of this name."""

_DEFAULT_EFFORT: Effort = "medium"
_MOST_NAMED, _NAME_CHARACTERS = 32, 64  # of the fields that are not known

_PARAMETERS = ("max_completion_tokens", "max_tokens", "n", "seed", "stop", "temperature", "top_p")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for.

    Attributes:
        choices: one request each; they differ by their seeds.
        streams: generations that one choice runs concurrently on one engine.
        stop: the answer ends before the first of these; the reasoning is not searched.
        session: equal for the requests of one conversation, so that they find the same prefix cache.
        num_prompts: so many conversations are answered, each by as many of the choices, one after another.
        is_reasoning_apart: the reasoning has fields of its own; else it stands in the answer, in its tags.
        ignored: paths of fields that are not known here.
    """

    choices: tuple[Prepared, ...]
    streams: int
    model: str
    stop: tuple[str, ...]
    session: str
    is_stream: bool
    has_usage_chunk: bool
    has_running_usage: bool
    has_trace: bool
    num_prompts: int = 1
    shows_reasoning: bool = True
    is_reasoning_apart: bool = True
    ignored: tuple[str, ...] = ()

    @property
    def request(self) -> Request:
        """That of the first choice."""
        return self.choices[0].request


class Catalog:
    """The model ids of one server: `auto`, and each policy whose engines and tools are there."""

    def __init__(self, runtime: Runtime, config: ServeConfig) -> None:
        self._runtime, self._config = runtime, config
        self.policies = [name for name in policy_names() if self._is_shown(name)]
        for name in self.policies:  # annotations take long to read, once: not in the first request
            refuse_operator_options(name, {})
        bounds = config.bounds
        self.most_body_bytes = bounds.body_bytes + bounds.context_bytes * any(map(self._reads_context, self.policies))
        """Of the body of a request, before it is known whether its policy reads context."""

    @property
    def model_ids(self) -> list[str]:
        return [AUTO, *(name for name in self.policies if name != AUTO)]

    def has(self, model: str) -> bool:
        return model.partition("@")[0] in self.model_ids

    def facts(self, model: str) -> dict[str, Any]:
        """What a client may want to know of a model before it asks; nothing where its options are wrong.

        Of `auto` it holds for every policy that an effort may choose.
        """
        presets = [(preset.policy, preset.options) for preset in self._config.efforts.values()]
        try:
            named = presets if model == AUTO else [parse_policy(model)]
            asked = [Request.ask("?", policy, options=options) for policy, options in named if policy in self.policies]
            prepared = [self._runtime.prepare(request) for request in asked]
        except (RequestError, ConfigError):
            return {}
        parameters = [*_PARAMETERS, *["reasoning_effort"] * (model == AUTO)]
        if all(one.policy.has_one_author for one in prepared):
            parameters += ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
        if not any(one.why_no_logprobs for one in prepared):
            parameters += ["logprobs", "top_logprobs"]
        if not any(replace(one, request=replace(one.request, logprobs=0)).why_no_echo for one in prepared):
            parameters.append("echo")
        if not any(one.policy.reads_context for one in prepared):
            parameters += ["include_reasoning", "reasoning"]
        is_known = all(engine.capabilities for one in prepared for engine in one.engines.values())
        if prepared and is_known and all(can_hold_structure(one.policy, one.engines) for one in prepared):
            parameters += ["response_format", "structured_outputs"]
        if prepared and is_known and all(can_call_tools(one.policy, one.engines) for one in prepared):
            parameters += ["tools", "tool_choice", "parallel_tool_calls"]
        lengths = [
            one.engines[role].max_model_len
            for one in prepared
            for role in set(one.policy.engines) - set(getattr(one.policy, "replaceable_engines", ()))
        ]
        return {"supported_parameters": sorted(parameters)} | ({"context_length": min(lengths)} if lengths else {})

    def to_job(self, body: Generation, cache_salt: str = "", num_bytes: int = 0) -> Job:
        """`body` in our words.

        Args:
            cache_salt: of whoever asks; their prefix cache is theirs alone.
            num_bytes: of the body as it came.

        Raises:
            ApiError: a value over a bound of this server, or a model that it does not have.
            RequestError: options that the policy does not take, or that only the configuration may set.
            ConfigError: an engine that the options name is not there.
        """
        unknown = list(body.unknown_fields())
        if unknown and self._config.strict:
            raise ApiError(400, f"{unknown[0][:_NAME_CHARACTERS]}: unknown field", unknown[0][:_NAME_CHARACTERS])
        policy, options = self._choose(body)
        body, context = self._take_context(body, policy, options, num_bytes)
        bounds, own, usual = self._config.bounds, body.reasonrt, self._runtime.limits
        num_choices = _within(bounds.n, "n", body.n, 1)
        max_tokens = _within(bounds.max_tokens, body.limit_field, body.token_limit(), usual.max_tokens)
        limits = replace(
            usual,
            max_tokens=max(1, max_tokens),
            deadline_s=_within(bounds.deadline_s, "reasonrt.deadline_s", own.deadline_s, usual.deadline_s),
            max_engine_calls=_within(
                bounds.engine_calls, "reasonrt.max_engine_calls", own.max_engine_calls, usual.max_engine_calls
            ),
        )
        conversations, echoed = body.conversations(partial(self._decode, policy, options)), list[list[int]]()
        if isinstance(body, CompletionRequest) and body.echo:
            echoed = [self._token_ids(prompt, policy, options) for prompt in body.prompts()]
            conversations = [_named(messages) for messages in conversations]
        _within(bounds.prompts, "prompt: their number", len(conversations), 1)
        first = Request(
            conversations[0],
            policy,
            options,
            limits,
            body.temperature or 0.0,
            body.top_p,
            body.seed,
            top_k=max(0, body.top_k),  # -1 is 0 in vLLM's words
            min_p=body.min_p,
            penalties=Penalties(body.presence_penalty, body.frequency_penalty, body.repetition_penalty),
            cache_salt=cache_salt,
            context=context,
            trace=own.trace,
            structure=body.structure(),
            logprobs=body.num_logprobs(),
            thinking_tokens=self._thinking_tokens(body, policy, options),
            **body.tool_fields(),
        )
        asked = [replace(first, messages=messages, prompts=Prompts()) for messages in conversations]
        if echoed:
            asked = [
                replace(one, echo=True, prompts=Prompts(ids), limits=replace(limits, max_tokens=max_tokens + len(ids)))
                for one, ids in zip(asked, echoed, strict=True)
            ]
        seeds = [_choice_seed(body.seed, index) for index in range(num_choices)]
        try:
            choices = tuple(self._runtime.prepare(replace(request, seed=seed)) for request in asked for seed in seeds)
        except ReasonRTError:
            raise
        except FAILURES as error:  # it may be code of others
            raise RequestError(f"policy {policy!r} does not take the request: {reason_of(error)}") from error
        return Job(
            choices,
            choices[0].policy.num_streams,
            body.model,
            (body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
            body.prompt_cache_key or _conversation(conversations[0]),
            body.stream,
            body.stream_options.include_usage,
            body.stream_options.continuous_usage_stats,
            own.trace,
            len(conversations),
            body.shows_reasoning,
            body.is_reasoning_apart or not body.shows_reasoning,
            tuple(name[:_NAME_CHARACTERS] for name in unknown[:_MOST_NAMED]),
        )

    def _choose(self, body: Generation) -> tuple[str, dict[str, Any]]:
        name, asked = parse_policy(body.model)
        own = body.reasonrt
        if name == AUTO and own.policy is None:
            preset = self._config.efforts.get(body.effort() or _DEFAULT_EFFORT)
            if preset is None:
                raise ApiError(400, "this server has no preset for it", "reasoning_effort")
            name, options = preset.policy, dict(preset.options)
        else:
            if body.effort() not in (None, "none"):  # which leaves out the thinking of any policy
                raise ApiError(400, f"it chooses the policy of model {AUTO!r}; here one is named", "reasoning_effort")
            if own.policy not in (None, name) and name != AUTO:
                raise ApiError(400, f"model names another policy; send model {AUTO!r} with it", "reasonrt.policy")
            name, options = own.policy or name, {}
        if name not in self.policies:
            known = ", ".join(self.model_ids)
            raise ApiError(404, f"there is no model {name[:64]!r}; there are {known}", "model", "model_not_found")
        asked |= own.options | ({} if own.risk is None else {"risk": own.risk})
        refuse_operator_options(name, asked)
        return name, options | asked

    def _take_context(
        self, body: Generation, policy: str, options: Mapping[str, Any], num_bytes: int
    ) -> tuple[Generation, tuple[Document, ...]]:
        """What remains of the body, and the documents in it; each within its bounds.

        Raises:
            ApiError: names the bound.
        """
        bounds = self._config.bounds
        is_read = self._runtime.reads_context(policy, options)
        rest, context = body.without_context(bounds.context_part_characters if is_read else None)
        if len(context) > bounds.context_documents:
            message = f"the context must have at most {bounds.context_documents} documents here, got {len(context)}"
            raise ApiError(400, message, "reasonrt.context")
        if num_bytes <= min(bounds.body_bytes, bounds.context_bytes):  # texts are no longer than they came
            return rest, context
        context_bytes = sum(len(document.text.encode()) + len(document.name.encode()) for document in context)
        if context_bytes > bounds.context_bytes:
            message = f"the context must have at most {bounds.context_bytes} bytes here, got {context_bytes}"
            raise ApiError(413, message, "reasonrt.context")
        is_large = num_bytes > bounds.body_bytes
        if is_large and context:
            is_large = len(rest.model_dump_json(exclude_defaults=True).encode()) > bounds.body_bytes
        if is_large:
            raise ApiError(413, f"without a context the body must have at most {bounds.body_bytes} bytes here")
        return rest, context

    def _thinking_tokens(self, body: Generation, policy: str, options: Mapping[str, Any]) -> int | None:
        """The limit of the thinking; with the effort `none`, models that can do without think no more."""
        limit = body.thinking_tokens()
        if limit is not None or body.effort() != "none":
            return limit
        if parse_policy(body.model)[0] != AUTO:
            return 0
        engines = self._runtime.prepare(Request.ask("?", policy, options=options)).engines.values()
        return 0 if any(getattr(engine.tokenizer, "can_skip_thinking", False) for engine in engines) else None

    def _decode(self, policy: str, options: Mapping[str, Any], token_ids: Sequence[int]) -> str:
        """Token ids of a prompt as the text that they stand for, to the policy's first engine."""
        try:
            return self._tokenizer(policy, options).decode(token_ids)
        except (ValueError, OverflowError):
            raise _no_token_id() from None

    def _token_ids(self, prompt: str | Sequence[int], policy: str, options: Mapping[str, Any]) -> list[int]:
        """A prompt that is read as it stands; control tokens that are written out in it are such."""
        tokenizer = self._tokenizer(policy, options)
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ApiError(400, "the prompt is empty; give at least one token", "prompt")
        if not tokenizer.vocabulary().keys() >= set(ids):
            raise _no_token_id()
        return ids

    def _tokenizer(self, policy: str, options: Mapping[str, Any]) -> Tokenizer:
        prepared = self._runtime.prepare(Request.ask("?", policy, options=options))
        if not prepared.policy.engines:
            raise ApiError(400, f"policy {policy} has no vocabulary of its own; send text", "prompt")
        return prepared.engines[prepared.policy.engines[0]].tokenizer

    def _reads_context(self, policy: str) -> bool:
        try:
            return self._runtime.reads_context(policy)
        except RequestError:  # it has an option without a default
            return True

    def _is_shown(self, policy: str) -> bool:
        if policy in CONTROLS and policy not in self._runtime.options:
            return False
        try:
            self._runtime.prepare(Request.ask("?", policy))
        except ConfigError:  # an engine or a tool is missing
            return False
        except RequestError:  # it has an option without a default
            return True
        except FAILURES as error:  # it may be code of others: the rest is served
            _log.warning("policy %r is left out, it cannot be prepared: %s", policy, reason_of(error))
            return False
        return True


def _within(bound: Number, name: str, value: Number | None, usual: Number | None) -> Number:
    """What was asked for or, if nothing was, what is `usual` as far as the bound lets it."""
    if value is None:
        return bound if usual is None else min(usual, bound)
    if value > bound:
        raise ApiError(400, f"{name} must be at most {bound} on this server, got {value}", name)
    return value


def _no_token_id() -> ApiError:
    return ApiError(400, "a token id is none of this model's; send text", "prompt")


def _named(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What stands for a prompt where its token ids count; some decode to nothing."""
    return tuple([replace(message, content=message.content.strip() or "(token ids)") for message in messages])


def _choice_seed(seed: int | None, index: int) -> int | None:
    return seed_of(seed, "choice", index) if index else seed  # the first is what a request for one choice gets


def _conversation(messages: Sequence[Message]) -> str:
    """What stands up to the first words of the user stands for all of it: later turns begin with that."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages))
    digest = hashlib.blake2b(digest_size=8)
    for message in messages[: first + 1]:
        content = message.content.encode(errors="surrogatepass")
        digest.update(f"{message.role} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()
