"""The key `serve` of `reasonrt.yaml`: where the endpoint listens, who may ask, and how much."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from reasonrt.errors import ConfigError

KEYS_VARIABLE = "REASONRT_API_KEYS"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

_MIN_KEY_CHARACTERS = 16


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
        "medium": Preset(policy="arbitrage"),
        "high": Preset(policy="target"),
        "xhigh": Preset(policy="self_consistency", options={"k": 5}),
        "max": Preset(policy="self_consistency", options={"k": 15}),
    }


class BoundsConfig(_Strict):
    """The largest values that a request may ask for, and how much may be asked concurrently."""

    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 28, description="of a request, without its context; over it: 413")
    context_bytes: int = Field(1 << 24, ge=0, le=1 << 30, description="that its context adds to that; over it: 413")
    context_documents: int = Field(4096, ge=1, le=65_536)
    context_part_characters: int = Field(
        16_384, ge=0, description="a longer part of a user's message is a document, to a policy that reads context"
    )
    max_tokens: int = Field(32_768, ge=1, le=1_000_000)
    n: int = Field(8, ge=1, le=64)
    prompts: int = Field(64, ge=1, le=1024, description="of one request to /v1/completions")
    deadline_s: float = Field(600.0, gt=0, description="of every request, waiting included; a request may ask for less")
    engine_calls: int = Field(16_384, ge=1)
    running: int = Field(64, ge=1, description="choices that are worked on concurrently")
    queued: int = Field(64, ge=0, description="choices that wait for that; over it: 503")
    queue_s: float = Field(30.0, gt=0, description="the longest wait; over it: 503")
    running_per_key: int | None = Field(None, ge=1, description="choices, waiting ones included; over it: 429")
    requests_per_minute_per_key: float | None = Field(None, gt=0)


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
    efforts: dict[Effort, Preset] = Field(default_factory=_default_efforts)
    reasoning_fields: tuple[Literal["reasoning", "reasoning_content"], ...] = ("reasoning", "reasoning_content")
    strict: bool = Field(False, description="refuse fields that are not known; else the answer names them")
    keep_alive_s: float = Field(10.0, gt=0, description="a comment, when a stream has been silent for so long")
    grace_s: float = Field(30.0, ge=0, description="on shutdown, for what still runs")
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
        for name, key in self.api_keys.items():
            if len(key.get_secret_value()) < _MIN_KEY_CHARACTERS:
                raise ValueError(f"the API key {name!r} must have at least {_MIN_KEY_CHARACTERS} characters")
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(f"anybody who reaches {self.host} could use the engines: give api_keys, or bind 127.0.0.1")
        return self


def load_serve_config(values: Mapping[str, Any], environment: Mapping[str, str]) -> ServeConfig:
    """The key `serve` of the configuration, with the API keys of the environment.

    Raises:
        ConfigError: a key or value that is not known, or a setting that is not safe; the message says which and why.
    """
    keys = dict(values.get("api_keys") or {})
    for pair in filter(None, environment.get(KEYS_VARIABLE, "").split(",")):
        name, equals, key = pair.partition("=")
        if not equals:
            raise ConfigError(f"{KEYS_VARIABLE} holds NAME=KEY,NAME=KEY; a part of it has no =")
        keys[name.strip()] = key.strip()
    try:
        return ServeConfig.model_validate({**values, "api_keys": keys})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(["serve", *map(str, first["loc"])])
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost might lead anywhere."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
