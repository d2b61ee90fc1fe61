"""How servers are asked to hold a text to a structure: by which fields, and how one that takes a field is known.

A server that does not know a field mostly takes it in silence. So each is tried at the start, by a word that no model
would write by itself: one that holds the text to it has understood.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_WORD = "qzx"
_OBJECT = {"type": "object", "properties": {_WORD: {"type": "integer"}}, "required": [_WORD]}
_TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": _OBJECT, "max_whitespace_cnt": 16}}


@dataclass(frozen=True, slots=True)
class Way:
    """One field of a completion.

    Attributes:
        field: its name.
        content: from what `Sampling.structure` holds to what the field holds.
    """

    field: str
    content: Callable[[Any], Any]

    def fields(self, value: Any) -> dict[str, Any]:
        return {self.field: self.content(value)}


def _in_vllm(kind: str) -> Way:
    return Way("structured_outputs", lambda value: {kind: value})


def _as_it_is(field: str) -> Way:
    return Way(field, lambda value: value)


WAYS: Mapping[str, tuple[Way, ...]] = {  # the first that works
    "json": (
        _in_vllm("json"),
        Way(
            "response_format",
            lambda schema: {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        ),
        _as_it_is("guided_json"),  # vLLM before 0.12
    ),
    "json_object": (_in_vllm("json_object"), Way("response_format", lambda _: {"type": "json_object"})),
    "regex": (_in_vllm("regex"), _as_it_is("guided_regex"), _as_it_is("regex")),  # the last one of SGLang
    "choice": (_in_vllm("choice"), _as_it_is("guided_choice")),
    "grammar": (_in_vllm("grammar"), _as_it_is("guided_grammar"), _as_it_is("ebnf")),
    "structural_tag": (_in_vllm("structural_tag"),),
}
TRIALS: Mapping[str, tuple[Any, str]] = {
    "json": (_OBJECT, f'{{"{_WORD}":'),
    "json_object": (True, "{"),
    "regex": (_WORD, _WORD),
    "choice": ([_WORD], _WORD),
    "grammar": (f'root ::= "{_WORD}"', _WORD),
    "structural_tag": (json.dumps(_TAG), f'{{"{_WORD}":'),
}
"""Of each kind of structure one that is tried, and what a text begins with that is held to it, but for white space."""

TRIAL_TOKENS = 12


def is_held(text: str, beginning: str) -> bool:
    """Whether `text`, which may be cut off, begins so."""
    written = "".join(text.split())
    return bool(written) and (written.startswith(beginning) or beginning.startswith(written))
