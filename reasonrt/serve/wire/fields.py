"""What becomes of each known field that we do not serve: the one table, shown in `docs/serving.md`.

Fields that are served are those of the models in `serve/wire/requests.py`. A field in neither place is unknown: it is
left aside, and the answer names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CALIBRATED = "it would change what routers and certificates were calibrated on"
_ONLY_TEXT = "only text is served"
_NO_STRUCTURE = "use response_format or structured_outputs"
_OLD_TOOLS = "use tools, tool_choice and tool_calls"
_OWN_TEMPLATE = "the model's own template is used as it stands"
_NO_REASONING = "earlier reasoning is left out of the prompt, as chat templates expect"


@dataclass(frozen=True, slots=True)
class Known:
    """A field that we do not serve.

    Attributes:
        why: nothing depends on it, or it is refused.
        neutral: the values that ask for nothing, beside null; another one is refused. None: any value is taken.
    """

    why: str
    neutral: tuple[Any, ...] | None = None

    def takes(self, value: Any) -> bool:
        """Whether a request may hold `value` here."""
        return self.neutral is None or any(_is_same(value, neutral) for neutral in self.neutral)


REQUEST_FIELDS: dict[str, Known] = {
    "metadata": Known("nothing is stored that it could be attached to"),
    "priority": Known("requests are served in the order in which they come"),
    "prompt_cache_options": Known("the prefix cache is always on"),
    "prompt_cache_retention": Known("the prefix cache evicts what was used longest ago"),
    "safety_identifier": Known("requests are told apart by their API key"),
    "stream_reasoning": Known("a stream holds each step when it is committed"),
    "user": Known("requests are told apart by their API key"),
    "add_generation_prompt": Known(_OWN_TEMPLATE, (True,)),
    "allowed_token_ids": Known("token ids mean different things to the models of a policy", ()),
    "audio": Known(_ONLY_TEXT, ()),
    "bad_words": Known(_CALIBRATED, ([],)),
    "best_of": Known("use n, or the policy self_consistency", (1,)),
    "chat_template": Known("the model's own template is used; one of the caller's would run code here", ()),
    "continue_final_message": Known("the answer is a message of its own", (False,)),
    "documents": Known("put them into reasonrt.context, for a policy that reads context", ([],)),
    "extra_body": Known("put its fields beside the others, as the client library does", ({},)),
    "function_call": Known(_OLD_TOOLS, ("none", "auto")),
    "functions": Known(_OLD_TOOLS, ([],)),
    "grammar": Known(_NO_STRUCTURE, ("",)),
    "guided_choice": Known(_NO_STRUCTURE, ([],)),
    "guided_grammar": Known(_NO_STRUCTURE, ("",)),
    "guided_json": Known(_NO_STRUCTURE, ()),
    "guided_regex": Known(_NO_STRUCTURE, ("",)),
    "ignore_eos": Known("an answer ends where its model ends it; max_tokens is a limit, not a length", (False,)),
    "include_stop_str_in_output": Known("the answer ends before a stop text", (False,)),
    "length_penalty": Known("there is no beam search", (1,)),
    "logit_bias": Known("token ids mean different things to the models of a policy", ({},)),
    "min_tokens": Known("an answer ends where its model ends it", (0,)),
    "modalities": Known(_ONLY_TEXT, (["text"],)),
    "moderation": Known("nothing is moderated here", ()),
    "prediction": Known("the draft model predicts: use a policy that speculates", ()),
    "prompt_logprobs": Known("use echo and logprobs of /v1/completions", (False,)),
    "service_tier": Known("there is one tier", ("auto", "default")),
    "skip_special_tokens": Known("control tokens are never text here", (True,)),
    "stop_token_ids": Known("token ids mean different things to the models of a policy", ([],)),
    "store": Known("nothing is stored", (False,)),
    "suffix": Known("text is only written at the end", ("",)),
    "truncate_prompt_tokens": Known("a prompt that is too long is refused, and never cut", ()),
    "typical_p": Known(_CALIBRATED, (1,)),
    "use_beam_search": Known("there is no beam search", (False,)),
    "verbosity": Known("the models know no such setting", ("medium",)),
    "web_search_options": Known("there is no web search", ()),
}
"""Beside the messages or the prompt."""

CHAT_FIELDS: dict[str, Known] = REQUEST_FIELDS | {
    "echo": Known("the conversation is not returned; /v1/completions returns a prompt", (False,)),
}
"""Beside the messages."""

TEXT_FIELDS: dict[str, Known] = REQUEST_FIELDS | {
    "separate_reasoning": Known("the reasoning is always told apart from the answer", (True,)),
    "top_logprobs": Known("logprobs says how many", (0,)),
}
"""Beside the prompt."""

_STATELESS = "nothing is stored: send the whole conversation as input"

RESPONSE_FIELDS: dict[str, Known] = CHAT_FIELDS | {
    "access_programs": Known("there are none"),
    "background": Known("the answer comes with the request; stream it where it takes long", (False,)),
    "context_management": Known("nothing is left out of a conversation", ([],)),
    "conversation": Known(_STATELESS, ()),
    "image": Known(_ONLY_TEXT),
    "max_tool_calls": Known("the caller runs its tools"),
    "previous_response_id": Known(_STATELESS, ()),
    "prompt": Known("no templates are stored: send input", ()),
    "separate_reasoning": TEXT_FIELDS["separate_reasoning"],
    "truncation": Known("a prompt that is too long is refused, and never cut", ("disabled",)),
}
"""Beside the input of `/v1/responses`."""

REASONING_FIELDS: Mapping[str, Known] = {
    name: Known(_NO_REASONING) for name in ("content", "encrypted_content", "id", "status", "summary")
}
"""In an item of the type `reasoning`."""

MESSAGE_FIELDS: Mapping[str, Known] = {
    "annotations": Known("they are notes of a client or a server on the text"),
    "cache_control": Known("the prefix cache is always on"),
    "reasoning_details": Known(_NO_REASONING),
    "refusal": Known("its text is that of the message"),
    "thinking": Known(_NO_REASONING),
    "thinking_blocks": Known(_NO_REASONING),
    "audio": Known(_ONLY_TEXT, ()),
    "function_call": Known(_OLD_TOOLS, ()),
    "images": Known(_ONLY_TEXT, ([],)),
    "partial": Known("the answer is a message of its own", (False,)),
    "prefix": Known("the answer is a message of its own", (False,)),
    "type": Known("a message is a text by a role", ("message", "text")),
}
"""In a message."""

CALL_FIELDS: Mapping[str, Known] = {"index": Known("calls are in their order")}
"""In a call of a tool."""

PART_FIELDS: Mapping[str, Known] = {
    "annotations": MESSAGE_FIELDS["annotations"],
    "cache_control": MESSAGE_FIELDS["cache_control"],
    "logprobs": Known("they say nothing to a model"),
}
"""In a part of a message's content."""


def as_markdown() -> str:
    """The tables, for the documentation."""
    tables = {
        "field": REQUEST_FIELDS,
        "field of a chat alone": _without_common(CHAT_FIELDS),
        "field of a plain completion alone": _without_common(TEXT_FIELDS),
        "field of a response alone": {
            name: known for name, known in RESPONSE_FIELDS.items() if name not in CHAT_FIELDS
        },
        "field of a message": MESSAGE_FIELDS,
        "field of a part": PART_FIELDS,
    }
    return "\n\n".join(_table(title, fields) for title, fields in tables.items())


def _without_common(fields: Mapping[str, Known]) -> dict[str, Known]:
    return {name: known for name, known in fields.items() if name not in REQUEST_FIELDS}


def _table(title: str, fields: Mapping[str, Known]) -> str:
    rows = [f"| {title} | | why |", "|---|---|---|"]
    for name, known in sorted(fields.items(), key=lambda item: (item[1].neutral is not None, item[0])):
        if known.neutral is None:
            fate = "no effect"
        else:
            unless = " or ".join(f"`{_as_json(value)}`" for value in known.neutral)
            fate = f"refused{', unless ' + unless if unless else ''}"
        rows.append(f"| `{name}` | {fate} | {known.why} |")
    return "\n".join(rows)


def _is_same(value: Any, neutral: Any) -> bool:
    """For JSON: to Python, false is 0 and true is 1."""
    return value == neutral and isinstance(value, bool) is isinstance(neutral, bool)


def _as_json(value: object) -> str:
    return str(value).replace("'", '"') if isinstance(value, dict | list) else f"{value}".lower() or '""'
