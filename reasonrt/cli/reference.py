"""The page of all keys of the configuration, made from its models."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from reasonrt.config import Config, DiffusionConfig, LimitsConfig, PluginConfig, RemoteConfig, ToolConfig, VllmConfig
from reasonrt.options import allowed_in_words
from reasonrt.serve.config import BoundsConfig, ConnectionsConfig, Preset, ReplicaConfig, ServeConfig
from reasonrt.types import Limits

_HEAD = """# All keys of the configuration

`reasonrt config reference` prints this page; `reasonrt config show` prints what is in effect. The file is
`reasonrt.yaml`, or what `--config` names; without one, the models that ship are served. A key that is not known is an
error. Wherever a model is named, it is a folder, the id of a model on the Hugging Face hub, or `zoo:NAME`.
"""
_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The file", "", Config),
    ("`engines.ROLE`, kind `vllm` (the default)", "", VllmConfig),
    ("`engines.ROLE`, kind `diffusion`", "", DiffusionConfig),
    ("`engines.ROLE`, kind `remote`", "", RemoteConfig),
    ("`engines.ROLE`, kind `plugin`", "", PluginConfig),
    ("`tools.NAME`", "", ToolConfig),
    ("`limits`", "Of a request that brings none of its own.", LimitsConfig),
    ("`serve`", "", ServeConfig),
    ("`serve.bounds`", "", BoundsConfig),
    ("`serve.connections`", "", ConnectionsConfig),
    ("`serve.efforts.EFFORT`", "", Preset),
    ("`serve.replicas`", "", ReplicaConfig),
)


def reference() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *(line for section in _SECTIONS for line in _section(*section))])


def _section(title: str, note: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{note or _first_sentence(model)}\n"
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    schema = model.model_json_schema()
    told = _attributes(_DESCRIBED[model]()) if model in _DESCRIBED else {}
    for name, each in schema["properties"].items():
        value = _value(each, schema.get("$defs", {}))
        default = "required" if name in schema.get("required", ()) else _default(each)
        yield f"| `{name}` | {value} | {default} | {_cell(each.get('description') or told.get(name, ''))} |"
    yield ""


def _vllm() -> type:
    from reasonrt.engines.vllm_settings import VllmSettings

    return VllmSettings


def _diffusion() -> type:
    from reasonrt.engines.diffusion import DiffusionSettings

    return DiffusionSettings


_DESCRIBED: Mapping[type[BaseModel], Any] = {
    VllmConfig: _vllm,
    DiffusionConfig: _diffusion,
    LimitsConfig: lambda: Limits,
}
"""Classes whose docstrings say what the fields of a model mean."""


def _attributes(described: type) -> dict[str, str]:
    """What the section `Attributes` of a docstring says of each."""
    _, _, section = inspect.cleandoc(described.__doc__ or "").partition("Attributes:\n")
    items = re.split(r"^ {4}(?=\w+(?:, \w+)*:)", section, flags=re.MULTILINE)[1:]
    pairs = (item.partition(":")[::2] for item in items)
    return {name: " ".join(text.split()) for names, text in pairs for name in names.split(", ")}


def _first_sentence(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split()).partition(" The fields after")[0]


def _value(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return "a mapping"
    if "anyOf" in schema:
        parts = (_value(part, known) for part in schema["anyOf"])
        return " or ".join(dict.fromkeys("none" if part == "null" else part for part in parts))
    words = allowed_in_words(schema)
    return _cell(words or {"object": "a mapping", "array": "a list"}.get(str(schema.get("type")), "text"))


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema or isinstance(value := schema["default"], dict):
        return ""
    return f"`{json.dumps(value)}`" if value is not None else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
