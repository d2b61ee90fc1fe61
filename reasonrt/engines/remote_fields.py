"""Fields of a completion that not every server takes.

Most servers leave out in silence what they do not know. One that refuses it is asked at the start about each field by
itself, and a field that it refuses is then left out of every request: `COSTS` says what is lost by that.
"""

from collections.abc import Collection, Mapping
from typing import Any

from reasonrt.types import Sampling

COSTS: Mapping[str, str] = {
    "top_k": "all tokens are drawn from",
    "min_p": "improbable tokens are drawn, too",
    "presence_penalty": "tokens that are there are as probable as others",
    "frequency_penalty": "tokens that are there often are as probable as others",
    "repetition_penalty": "the server's own holds",
    "seed": "what is drawn differs each time",
    "stop_token_ids": "what it writes beyond the end of a step is thrown away",
    "cache_salt": "callers share its prefix cache",
    "stream_options": "tokens are counted here",
    "n": "samples are asked for one by one",
    "stream_interval": "",
    "skip_special_tokens": "",
    "return_token_ids": "",  # what is lost by these is told by what the engine cannot do
    "return_tokens_as_token_ids": "",
    "logprobs": "",
    "logprob_token_ids": "",
}
"""What is lost by a field that is left out, in words that an operator understands; empty for nothing."""

_BESIDE = {"logprob_token_ids": ("logprobs",)}  # without which a field means nothing


def chosen(sampling: Sampling) -> list[str]:
    """Fields that change what is drawn and that a request asks for: they cannot be left out."""
    penalties = sampling.penalties
    asked = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": penalties.presence,
        "frequency_penalty": penalties.frequency,
        "repetition_penalty": penalties.repetition - 1,
    }
    return [name for name, value in asked.items() if value]


def required(body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a completion without which there is none."""
    return {name: value for name, value in body.items() if name not in COSTS}


def alone(body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By the name of each optional field of a completion, the completion with that one alone."""
    needed = required(body)
    return {
        name: needed | {each: body[each] for each in (*_BESIDE.get(name, ()), name)} for name in COSTS if name in body
    }


def told(refused: Collection[str]) -> list[str]:
    """What the fields that a server refuses cost, one line for each that costs something."""
    return [f"takes no {name}: {cost}" for name, cost in COSTS.items() if name in refused and cost]
