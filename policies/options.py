"""The options of a policy: a dataclass whose annotations are the whole check, and the one spelling of both.

An option's annotation says its type and, by `Annotated[float, Field(ge=0, le=1)]`, its range. Values are checked as
JSON: "no" is not false, 1.0 is not 1, and what is not named is refused. `OPERATOR_ONLY` in an annotation marks an
option that no request over HTTP may set, because it names a file or decides how much work a request makes.
"""

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from reasonrt.errors import CalibrationError, RequestError
from reasonrt.ports import OPERATOR_ONLY, Policy

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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


def read_options(kind: type[T], options: Mapping[str, Any], name: str = "") -> T:
    """A value of the dataclass `kind`, whose annotations `options` must satisfy.

    Args:
        kind: a dataclass; see this module.
        name: what a message calls it; default: the name of the class.

    Raises:
        RequestError: an option that is not known, or a value that is not allowed; the message names both and what is.
    """
    name, loose = name or kind.__name__, cast(Any, kind)
    known = option_names(loose)
    if unknown := sorted(set(map(str, options)) - set(known)):
        raise RequestError(f"unknown option {unknown[0][:64]!r}; {name} knows {', '.join(sorted(known)) or 'none'}")
    try:
        value: T = _adapter(loose).validate_json(to_json(dict(options), inf_nan_mode="constants"))
    except ValidationError as error:
        raise RequestError(f"{name}: {_in_one_line(error, kind)}") from None
    except CalibrationError as error:  # of a value inside, such as a rule
        raise RequestError(f"{name}: {error}") from None
    except PydanticSerializationError as error:
        raise RequestError(f"{name}: an option is a JSON value; {error}") from None
    return value


@cache
def option_names(kind: type) -> tuple[str, ...]:
    """The options that a dataclass takes, in its order."""
    return tuple(field.name for field in fields(kind) if field.init)


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
            raise RequestError(f"options are NAME=VALUE,NAME=VALUE, got {_short(pair)}")
        try:
            options[key.strip()] = _read_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise RequestError(f"option {key.strip()[:64]!r}: {_short(value)} is not a YAML value") from None
    return options


def format_policy(name: str, options: Mapping[str, Any]) -> str:
    """What `parse_policy` reads back as `name` and `options`."""
    pairs = (f"{key}={_as_yaml(value)}" for key, value in sorted(options.items()))
    return f"{name}@{','.join(pairs)}" if options else name


def _as_yaml(value: object) -> str:
    """Words stand by themselves; what YAML would take for something else is written as JSON."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:/-]+", value) and _read_yaml(value) == value:
        return value
    return to_json(value).decode()


class _YamlLoader(yaml.SafeLoader):
    """YAML without dates, which no option is."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a safe loader


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


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    if "__pydantic_config__" not in vars(kind):  # pydantic reads it there, and takes it from nowhere else
        kind.__pydantic_config__ = _STRICT
    return TypeAdapter(kind)


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


def _in_one_line(error: ValidationError, kind: type) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if not path:
        return str(first["msg"]).removeprefix("Value error, ")
    allowed = _allowed(_adapter(kind).json_schema()["properties"].get(path[0], {}))
    if len(path) == 1 and first["type"] == "missing":
        return f"option {path[0]!r} is missing"
    if allowed and first["type"] != "value_error":
        where = path[0] if len(path) == 1 or first["type"] != "extra_forbidden" else ""
        if where:
            return f"{where} must be {allowed}, got {_short(first['input'])}"
    where = ".".join(part for part in path if part.isidentifier() or part.isdecimal())  # not pydantic's own words
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where}: {message[:1].lower()}{message[1:]}, got {_short(first['input'])}"


_KINDS = {"boolean": "true or false", "string": "text", "null": "null", "array": "a list", "object": "a mapping"}


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words; empty where it takes more than a few."""
    if "anyOf" in schema:
        parts = [_allowed(part) for part in schema["anyOf"]]
        return " or ".join(parts) if all(parts) else ""
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kind = schema.get("type")
    if kind not in ("number", "integer"):
        is_plain = kind in ("boolean", "string", "null") or (kind == "array" and "items" in schema)
        return _KINDS[str(kind)] if is_plain else ""
    noun = "a whole number" if kind == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{noun} in [{low:g}, {high:g}]"
    above = schema.get("exclusiveMinimum")
    if above is not None and high is not None:
        return f"{noun} in ({above:g}, {high:g}]"
    bounds = {"at least": low, "above": above, "at most": high}
    return " ".join([noun, *(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
