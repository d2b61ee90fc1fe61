"""The settings of a sandbox, the same for each backend."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import PydanticSerializationError, to_json

from reasonrt.errors import ConfigError


@with_config(ConfigDict(strict=True))
@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """How workers are kept.

    Attributes:
        unconfined: start workers without the wrapper; only where nothing can be lost.
        min_workers: kept ready.
        max_workers: sessions at the same time; the next one waits.
        checkout_s: how long it waits, in seconds.
        worker_bytes: address space of a worker; more than what its session may use.
        check: read programs with a type checker before they run (`monty` only).
    """

    unconfined: bool = False
    min_workers: Annotated[int, Field(ge=0, le=1024)] = 2
    max_workers: Annotated[int, Field(ge=1, le=1024)] = 64
    checkout_s: Annotated[float, Field(gt=0)] = 30.0
    worker_bytes: Annotated[int, Field(ge=1 << 27)] = 1 << 30
    check: bool = True


def read_settings(settings: Mapping[str, Any]) -> SandboxSettings:
    """Raises: ConfigError: a setting that is not known, or a value that it does not take."""
    known = [field.name for field in fields(SandboxSettings)]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(f"unknown setting {unknown[0][:64]!r} of a sandbox; there are {', '.join(known)}")
    try:
        return _adapter().validate_json(to_json(dict(settings)))
    except PydanticSerializationError:
        raise ConfigError("a setting of a sandbox is a JSON value") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"setting {name!r} of a sandbox: {first['msg']}, got {first['input']!r:.60}") from None


@cache
def _adapter() -> TypeAdapter[SandboxSettings]:
    return TypeAdapter(SandboxSettings)
