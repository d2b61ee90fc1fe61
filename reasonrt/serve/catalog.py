"""What a request on the wire asks of this server: which policy, with which options, within which bounds."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from reasonrt.errors import RequestError
from reasonrt.policies.registry import build_policy, policy_names
from reasonrt.policies.self_consistency import SelfConsistency
from reasonrt.policies.stopping.policy import Stopping
from reasonrt.ports import Policy
from reasonrt.serve.config import Effort, ServeConfig
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.requests import SEEDS, ChatRequest, CompletionRequest
from reasonrt.types import Limits, Message, Request

AUTO = "auto"
"""The model id under which `reasoning_effort` chooses the policy."""

_DEFAULT_EFFORT: Effort = "medium"
_FILE_OPTIONS = frozenset({"file", "path", "folder", "certificate"})
_FILE_ENDINGS = ("_file", "_path", "_folder", "_certificate")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for.

    Attributes:
        requests: one per choice; they differ by their seeds.
        places: that it takes; self-consistency writes `k` samples for each choice.
        stop: the answer ends before the first of these; the reasoning is not searched.
        session: equal for the requests of one conversation, so that they find the same prefix cache.
    """

    requests: tuple[Request, ...]
    places: int
    model: str
    stop: tuple[str, ...]
    session: str
    is_stream: bool
    has_usage_chunk: bool
    has_running_usage: bool
    has_trace: bool


class Catalog:
    """The model ids of one server: `auto`, and each policy whose engines are there.

    Args:
        roles: of the engines.
        limits: of a request that asks for none.
        defaults: policy to options that hold where a request says nothing else.
    """

    def __init__(
        self, roles: Iterable[str], limits: Limits, config: ServeConfig, defaults: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._roles, self._limits, self._config, self._defaults = frozenset(roles), limits, config, defaults
        self.policies = [name for name in policy_names() if self._is_served(name)]

    @property
    def model_ids(self) -> list[str]:
        return [AUTO, *self.policies]

    def has(self, model: str) -> bool:
        return model.partition("@")[0] in self.model_ids

    def to_job(self, body: ChatRequest | CompletionRequest, cache_salt: str = "") -> Job:
        """`body` in our words.

        Args:
            cache_salt: of whoever asks; their prefix cache is theirs alone.

        Raises:
            ApiError: a value over a bound of this server, or a model that it does not have.
            RequestError: options that the policy does not take.
        """
        policy, options = self._choose(body)
        built = self._build(policy, options)
        if missing := sorted(set(built.engines) - self._roles):
            raise ApiError(400, f"no engine has the role {missing[0]!r} on this server", "reasonrt.options")
        writer = built.inner if isinstance(built, Stopping) else built
        if body.temperature is not None and "temperature" not in options and hasattr(writer, "temperature"):
            options["temperature"] = body.temperature  # its own, where it has one
        bounds, own, usual = self._config.bounds, body.reasonrt, self._limits
        num_choices = _within(bounds.n, "n", body.n, 1)
        limits = Limits(
            _within(bounds.max_tokens, "max_tokens", body.token_limit(), usual.max_tokens),
            _within(bounds.deadline_s, "reasonrt.deadline_s", own.deadline_s, usual.deadline_s),
            _within(bounds.engine_calls, "reasonrt.max_engine_calls", own.max_engine_calls, usual.max_engine_calls),
        )
        messages = body.to_messages()
        first = Request(
            messages, policy, options, limits, body.temperature or 0.0, body.top_p, body.seed, cache_salt=cache_salt
        )
        return Job(
            tuple(replace(first, seed=_nth_seed(body.seed, index)) for index in range(num_choices)),
            num_choices * (writer.k if isinstance(writer, SelfConsistency) else 1),
            body.model,
            (body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
            body.prompt_cache_key or _conversation(messages),
            body.stream,
            body.stream_options.include_usage,
            body.stream_options.continuous_usage_stats,
            own.trace,
        )

    def _choose(self, body: ChatRequest | CompletionRequest) -> tuple[str, dict[str, Any]]:
        name, _, suffix = body.model.partition("@")
        own = body.reasonrt
        if name == AUTO and own.policy is None:
            preset = self._config.efforts.get(body.reasoning_effort or _DEFAULT_EFFORT)
            if preset is None:
                raise ApiError(400, "this server has no preset for it", "reasoning_effort")
            name, options = preset.policy, dict(preset.options)
        else:
            if body.reasoning_effort is not None:
                raise ApiError(400, f"it chooses the policy of model {AUTO!r}; here one is named", "reasoning_effort")
            if own.policy not in (None, name) and name != AUTO:
                raise ApiError(400, f"model names another policy; send model {AUTO!r} with it", "reasonrt.policy")
            name, options = own.policy or name, {}
        if name not in self.policies:
            known = ", ".join(self.model_ids)
            raise ApiError(404, f"there is no model {name!r}; there are {known}", "model", "model_not_found")
        asked = _parse_options(suffix) | own.options | ({} if own.risk is None else {"risk": own.risk})
        _require_no_files(asked)
        return name, options | asked

    def _build(self, policy: str, options: Mapping[str, Any]) -> Policy:
        return build_policy(policy, {**self._defaults.get(policy, {}), **options})

    def _is_served(self, policy: str) -> bool:
        try:
            return set(self._build(policy, {}).engines) <= self._roles
        except RequestError:  # it has options without a default
            return True


def _parse_options(suffix: str) -> dict[str, Any]:
    """`max_target_share=0.3,k=5` as options; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for pair in filter(None, suffix.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ApiError(400, "after @ come options, NAME=VALUE,NAME=VALUE", "model")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _require_no_files(value: Any) -> None:
    """No file of this machine is read because a request names it; the configuration may name some."""
    if isinstance(value, dict):
        for name in value:
            if name in _FILE_OPTIONS or name.endswith(_FILE_ENDINGS):
                raise ApiError(400, f"option {name!r} names a file; only the configuration may", "reasonrt")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _require_no_files(part)


def _within(bound: Number, name: str, value: Number | None, usual: Number | None) -> Number:
    """What was asked for or, if nothing was, what is `usual` as far as the bound lets it."""
    if value is None:
        return bound if usual is None else min(usual, bound)
    if value > bound:
        raise ApiError(400, f"{name} must be at most {bound} on this server, got {value}", name)
    return value


def _nth_seed(seed: int | None, index: int) -> int | None:
    return None if seed is None else (seed + index) % SEEDS if index else seed


def _conversation(messages: Sequence[Message]) -> str:
    """What stands up to the first words of the user stands for all of it: later turns begin with that."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages))
    beginning = json.dumps([[message.role, message.content] for message in messages[: first + 1]])
    return hashlib.blake2b(beginning.encode(), digest_size=8).hexdigest()
