"""The options of a policy: a dataclass whose annotations are the whole check, and the one spelling of both.

How values are checked: `reasonrt.options`. `OPERATOR_ONLY` in an annotation marks an
option that no request over HTTP may set, because it names a file or decides how much work a request makes.
"""

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from pydantic_core import to_json

from reasonrt.errors import RequestError, shown
from reasonrt.files import parse_yaml
from reasonrt.options import option_names, read_options
from reasonrt.ports import OPERATOR_ONLY, Policy


@dataclass
class PolicyOptions(Policy):
    """Base of policies that are dataclasses of their options."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Raises: RequestError: an option that is not known, or a value that its annotation does not allow."""
        return read_options(cls, options)

    @classmethod
    def option_types(cls) -> tuple[type, ...]:
        return (cls,)


def read_together(name: str, options: Mapping[str, Any], *kinds: type) -> tuple[Any, ...]:
    """A value of each of several dataclasses, whose options stand side by side in `options`.

    Args:
        name: what a message calls them together.

    Raises:
        RequestError: an option that none of them knows, or a value that is not allowed.
    """
    names = {kind: option_names(kind) for kind in kinds}
    known = sorted({option for own in names.values() for option in own})
    if unknown := sorted(set(map(str, options)) - {*known}):
        raise RequestError(f"unknown option {shown(unknown[0])}; {name} knows {', '.join(known)}")
    return tuple(
        read_options(kind, {option: options[option] for option in own if option in options}, name)
        for kind, own in names.items()
    )


@cache
def operator_only(kind: type) -> frozenset[str]:
    """Paths of the options that only the operator may set, such as `stopping.record`."""
    return frozenset(_marked(kind))


def refuse_operator_only(kinds: tuple[type, ...], options: Mapping[str, Any]) -> None:
    """Refuse what a request may not set.

    Args:
        kinds: the dataclasses that `options` are read as, together.

    Raises:
        RequestError: names the first such option.
    """
    for path in sorted(path for kind in kinds for path in operator_only(kind)):
        value: Any = options
        for part in path.split("."):
            value = value[part] if isinstance(value, Mapping) and part in value else None
        if value is not None:
            raise RequestError(f"option {path!r} may be set by the server's configuration only; leave it out")


def settings_of(*parts: object) -> dict[str, Any]:
    """The options that dataclasses hold, defaults included, as one mapping."""
    return {name: value for part in parts if is_dataclass(part) for name, value in asdict(part).items()}  # type: ignore[arg-type]


def parse_policy(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME@key=value,key=value` as a name and its options; values are YAML, so `[1, 2]` and `{a: 1}` are one value.

    Raises:
        RequestError: a part that is not key=value, or a value that is not YAML.
    """
    name, _, rest = text.partition("@")
    return name, parse_options(rest)


def parse_options(text: str) -> dict[str, Any]:
    """`key=value,key=value` as options; see `parse_policy`."""
    options: dict[str, Any] = {}
    for pair in _pairs(text):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"options are NAME=VALUE,NAME=VALUE, got {shown(pair)}")
        try:
            options[key.strip()] = parse_yaml(value)
        except ValueError as error:
            raise RequestError(
                f"option {shown(key.strip())}: {shown(value)} is not a YAML value: {error}; correct it"
            ) from None
    return options


def format_policy(name: str, options: Mapping[str, Any]) -> str:
    """What `parse_policy` reads back as `name` and `options`."""
    pairs = (f"{key}={_as_yaml(value)}" for key, value in sorted(options.items()))
    return f"{name}@{','.join(pairs)}" if options else name


def _as_yaml(value: object) -> str:
    """Words stand by themselves; what YAML would take for something else is written as JSON."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:/-]+", value) and parse_yaml(value) == value:
        return value
    return to_json(value).decode()


def _pairs(text: str) -> Iterator[str]:
    """Split at commas outside of brackets and quotes."""
    depth, quote, begin = 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "," and depth == 0:
            yield text[begin:place]
            begin = place + 1
        else:
            depth += (character in "[{") - (character in "]}")
    if text[begin:].strip():
        yield text[begin:]


def _marked(kind: type, above: frozenset[type] = frozenset()) -> Iterator[str]:
    hints = get_type_hints(kind, include_extras=True)
    for name in option_names(kind):
        for part in _parts(hints[name]):
            if part is OPERATOR_ONLY:
                yield name
            elif isinstance(part, type) and is_dataclass(part) and part not in above:  # rules hold rules
                yield from (f"{name}.{inner}" for inner in _marked(part, above | {kind}))


def _parts(annotation: Any) -> Iterator[Any]:
    """The types and marks that an annotation is made of."""
    if get_origin(annotation) is Annotated:
        base, *marks = get_args(annotation)
        yield from _parts(base)
        yield from marks
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
