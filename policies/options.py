"""What a user may set of a policy."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from reasonrt.errors import RequestError


@dataclass
class PolicyOptions:
    """Base of policies that are dataclasses of their options.

    Attributes:
        commits_as_it_goes: what it commits it has just written, so that stopping it saves the rest.
    """

    commits_as_it_goes: ClassVar[bool] = True

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return ()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls) if field.init}
        if unknown := sorted(set(options) - known):
            raise RequestError(
                f"unknown option {unknown[0]!r}; {cls.__name__} knows {', '.join(sorted(known)) or 'none'}"
            )
        try:
            return cls(**options)
        except TypeError as error:
            raise RequestError(f"{cls.__name__}: {error}") from None
