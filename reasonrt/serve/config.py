"""The key `serve` of `reasonrt.yaml`: where the endpoint listens, who may ask, and how much."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from reasonrt.errors import ConfigError, in_one_line
from reasonrt.masking import MASK, MIN_KEY_CHARACTERS, can_be_sent

KEYS_VARIABLE = "REASONRT_API_KEYS"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Preset(_Strict):
    """What one `reasoning_effort` stands for, under the model id `auto`."""

    policy: str
    options: dict[str, Any] = Field(default_factory=dict)


def _default_efforts() -> dict[Effort, Preset]:
    draft = Preset(policy="draft")
    return {
        "none": draft,
        "minimal": draft,
        "low": Preset(policy="arbitrage", options={"max_target_share": 0.2}),
        "medium": Preset(policy="auto"),
        "high": Preset(policy="target"),
        "xhigh": Preset(policy="self_consistency", options={"k": 5}),
        "max": Preset(policy="self_consistency", options={"k": 15}),
    }


class BoundsConfig(_Strict):
    """The largest values that a request may ask for, and how much may be asked concurrently."""

    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 28, description="of a request, without its context; over it: 413")
    context_bytes: int = Field(1 << 24, ge=0, le=1 << 30, description="that its context adds to that; over it: 413")
    bodies_bytes: int = Field(1 << 27, ge=1 << 20, description="of all requests that wait or run; more wait unread")
    context_documents: int = Field(4096, ge=1, le=65_536)
    context_part_characters: int = Field(
        16_384, ge=0, description="a longer part of a user's message is a document, to a policy that reads context"
    )
    max_tokens: int = Field(32_768, ge=1, le=1_000_000)
    n: int = Field(8, ge=1, le=64)
    prompts: int = Field(64, ge=1, le=1024, description="of one request to /v1/completions")
    deadline_s: float = Field(600.0, gt=0, description="of every request, waiting included; a request may ask for less")
    engine_calls: int = Field(16_384, ge=1)
    running: int = Field(64, ge=1, description="generations at a time; of several keys, one has at most three quarters")
    queued: int = Field(
        64, ge=0, description="generations that wait for that; over it: 503. Of several keys, one has at most half: 429"
    )
    queue_s: float = Field(30.0, gt=0, description="the longest wait; over it: 503")
    engine_silence_s: float = Field(20.0, gt=0, description="an engine that does not answer for so long is replaced")
    running_per_key: int | None = Field(None, ge=1, description="generations, waiting ones included; over it: 429")
    requests_per_minute_per_key: float | None = Field(None, gt=0)


class ConnectionsConfig(_Strict):
    """How many connections are open concurrently, and how long one may take.

    Over a bound, the oldest connection that has shown no key is closed, then the one that has been idle longest: those
    with a key always get in, and so does `/health`.
    """

    total: int = Field(4096, ge=16, description="fewer where RLIMIT_NOFILE is low: descriptors never run out")
    per_address: int = Field(256, ge=1, description="of those that have shown no key; of IPv6, per network of 64 bits")
    head_s: float = Field(10.0, gt=0, description="for a request up to the end of its headers, from the first byte on")
    write_s: float = Field(20.0, gt=0, description="for a caller to take what was sent; then it is closed")


class ReplicaConfig(_Strict):
    """On Ray: how many replicas, each with all engines of the configuration, and what one takes."""

    min_replicas: int = Field(1, ge=1, le=4096)
    max_replicas: int = Field(1, ge=1, le=4096)
    target_ongoing_requests: float = Field(16, gt=0, description="per replica; above it, replicas are added")
    max_ongoing_requests: int = Field(64, ge=1, description="per replica")
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    split: bool = Field(False, description="each engine in a deployment of its own, reached over Ray")
    cluster: str = Field("auto", description="auto: the one that runs, else one of our own; local: our own; HOST:PORT")
    application: str | None = Field(
        None, min_length=1, description="its name in the cluster; None: one that no other server has"
    )

    @model_validator(mode="after")
    def _are_ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas, {self.min_replicas}")
        return self


class ServeConfig(_Strict):
    """All of it. API keys may also come by the environment, `REASONRT_API_KEYS=name=key,name=key`."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0 takes a free one")
    api_keys: dict[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")], SecretStr] = Field(default_factory=dict)
    bounds: BoundsConfig = BoundsConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    efforts: dict[Effort, Preset] = Field(default_factory=_default_efforts)
    reasoning_fields: tuple[Literal["reasoning", "reasoning_content"], ...] = ("reasoning", "reasoning_content")
    strict: bool = Field(False, description="refuse fields that are not known; else the answer names them")
    keep_alive_s: float = Field(10.0, gt=0, description="a comment, when a stream has been silent for so long")
    grace_s: float = Field(30.0, ge=0, description="on shutdown, for what still runs")
    cluster_timeout_s: float = Field(20.0, gt=0, description="for a cluster to answer that replicas are to join")
    max_resumes: int = Field(5, ge=0, description="deaths of engines or replicas that one request outlives")
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    evidence_folder: Path | None = Field(
        None, description="where evidence against stopping certificates outlives the server; None: beside each of them"
    )
    certificate_keys: tuple[Path, ...] = Field(
        (), description="Ed25519 public keys (PEM): only certificates that one of these has signed are served"
    )
    tracing: bool = Field(False, description="OpenTelemetry spans; needs reasonrt[otel]")
    replicas: ReplicaConfig = ReplicaConfig()

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        keys = {name: key.get_secret_value() for name, key in self.api_keys.items()}
        for name, key in keys.items():
            key_of = f"the API key '{_shown_name(name)}'"
            if len(key) < MIN_KEY_CHARACTERS:
                raise ValueError(f"{key_of} must have at least {MIN_KEY_CHARACTERS} characters")
            if not can_be_sent(key):
                raise ValueError(f"{key_of} can never match: a header holds ASCII, and no space at an end")
        if len(set(keys.values())) < len(keys):
            raise ValueError("two names have the same API key, and the second could never match")
        if keys.keys() & set(keys.values()):
            raise ValueError("the name of an API key is an API key itself: names are printed; write NAME: KEY")
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(f"anybody who reaches {self.host} could use the engines: give api_keys, or bind 127.0.0.1")
        return self


def load_serve_config(values: Mapping[str, Any], environment: Mapping[str, str]) -> ServeConfig:
    """The key `serve` of the configuration, with the API keys of the environment.

    Raises:
        ConfigError: a key or value that is not known, or a setting that is not safe; the message says which and why.
    """
    configured = values.get("api_keys") or {}
    if not isinstance(configured, Mapping):
        raise ConfigError("serve.api_keys must hold keys by their names")
    keys = dict(configured)
    for pair in filter(None, environment.get(KEYS_VARIABLE, "").split(",")):
        name, equals, key = pair.partition("=")
        if not equals:
            raise ConfigError(f"{KEYS_VARIABLE} holds NAME=KEY,NAME=KEY; a part of it has no =")
        keys[name.strip()] = key.strip()
    try:
        return ServeConfig.model_validate({**values, "api_keys": keys})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        known = [part if str(part).isidentifier() else _shown_name(str(part)) for part in first["loc"]]
        if "api_keys" in first["loc"][:1]:
            known[1:] = [_shown_name(str(part)) for part in first["loc"][1:2]]
        message = in_one_line(first["msg"].removeprefix("Value error, "), 200)
        raise ConfigError(f"{in_one_line('.'.join(['serve', *map(str, known)]))}: {message}") from None


def _shown_name(name: str) -> str:
    """The name of a key; one that is as long as a key may be one, which stands in the wrong place."""
    return in_one_line(name) if len(name) < MIN_KEY_CHARACTERS else MASK


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost might lead anywhere."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
