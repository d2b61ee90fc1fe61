"""Options as dataclasses: their annotations are the whole check.

An option's annotation says its type and, by `Annotated[float, Field(ge=0, le=1)]`, its range. Values are checked as
JSON: "no" is not false, 1.0 is not 1, and what is not named is refused.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from reasonrt.errors import CalibrationError, RequestError, in_one_line, shown

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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
        raise RequestError(f"unknown option {shown(unknown[0])}; {name} knows {', '.join(sorted(known)) or 'none'}")
    try:
        value: T = _adapter(loose).validate_json(to_json(dict(options), inf_nan_mode="constants"))
    except ValidationError as error:
        raise RequestError(f"{name}: {_in_one_line(error, kind)}") from None
    except CalibrationError as error:  # of a value inside, such as a rule
        raise RequestError(f"{name}: {error}") from None
    except PydanticSerializationError as error:
        raise RequestError(f"{name}: an option is a JSON value; {in_one_line(str(error))}") from None
    return value


@cache
def option_names(kind: type) -> tuple[str, ...]:
    """The options that a dataclass takes, in its order."""
    return tuple(field.name for field in fields(kind) if field.init)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    if "__pydantic_config__" not in vars(kind):  # pydantic reads it there, and takes it from nowhere else
        kind.__pydantic_config__ = _STRICT
    return TypeAdapter(kind)


def _in_one_line(error: ValidationError, kind: type) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if not path:
        return str(first["msg"]).removeprefix("Value error, ")
    allowed = allowed_in_words(_adapter(kind).json_schema()["properties"].get(path[0], {}))
    if len(path) == 1 and first["type"] == "missing":
        return f"option {path[0]!r} is missing"
    if allowed and first["type"] != "value_error":
        where = path[0] if len(path) == 1 or first["type"] != "extra_forbidden" else ""
        if where:
            return f"{where} must be {allowed}, got {shown(first['input'])}"
    # not pydantic's own words
    where = in_one_line(".".join(part for part in path if part.isidentifier() or part.isdecimal()))
    message = in_one_line(str(first["msg"]), 200).removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where}: {message[:1].lower()}{message[1:]}, got {shown(first['input'])}"


_KINDS = {"boolean": "true or false", "string": "text", "null": "null", "array": "a list", "object": "a mapping"}


def allowed_in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words; empty where it takes more than a few."""
    if "anyOf" in schema:
        parts = [allowed_in_words(part) for part in schema["anyOf"]]
        return " or ".join(parts) if all(parts) else ""
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kind = schema.get("type")
    if kind not in ("number", "integer"):
        is_plain = kind in ("boolean", "string", "null") or (kind == "array" and "items" in schema)
        is_plain = is_plain or bool(schema.get("additionalProperties"))
        return _KINDS[str(kind)] if is_plain else ""
    noun = "a whole number" if kind == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{noun} in [{_number(low)}, {_number(high)}]"
    above = schema.get("exclusiveMinimum")
    if above is not None and high is not None:
        return f"{noun} in ({_number(above)}, {_number(high)}]"
    bounds = {"at least": low, "above": above, "at most": high}
    return " ".join([noun, *(f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None)])


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"
