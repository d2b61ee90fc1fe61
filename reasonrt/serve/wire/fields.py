"""What becomes of each field that OpenAI defines and we do not serve: the one table, shown in `docs/serving.md`.

Fields that are served are those of the models in `serve/wire/requests.py`. A field in neither place is unknown, and
refused.
"""

from typing import Any

NO_EFFECT = {
    "metadata": "nothing is stored that it could be attached to",
    "parallel_tool_calls": "there are no tool calls",
    "prompt_cache_options": "the prefix cache is always on",
    "prompt_cache_retention": "the prefix cache evicts what was used longest ago",
    "safety_identifier": "requests are told apart by their API key",
    "user": "requests are told apart by their API key",
}
"""Accepted, and nothing that the caller could notice depends on it."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "only text is served"),
    "best_of": ((1,), "use n, or the policy self_consistency"),
    "chat_template": ((), "the model's own template is used; one of the caller's would run code here"),
    "chat_template_kwargs": (({},), "the model's own template is used as it stands"),
    "echo": ((False,), "only what is written is returned"),
    "frequency_penalty": ((0,), "it would change what routers and certificates were calibrated on"),
    "function_call": (("none", "auto"), "tools are not served"),
    "functions": (([],), "tools are not served"),
    "logit_bias": (({},), "token ids mean different things to the models of a policy"),
    "logprobs": ((False,), "several models may write; reasonrt.trace returns each step's mean log-probability"),
    "modalities": ((["text"],), "only text is served"),
    "moderation": ((), "nothing is moderated here"),
    "prediction": ((), "the draft model predicts: use a policy that speculates"),
    "presence_penalty": ((0,), "it would change what routers and certificates were calibrated on"),
    "response_format": (({"type": "text"},), "steps are free text"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "store": ((False,), "nothing is stored"),
    "suffix": (("",), "text is only written at the end"),
    "tool_choice": (("none", "auto"), "tools are not served"),
    "tools": (([],), "tools are not served"),
    "top_logprobs": ((0,), "several models may write; reasonrt.trace returns each step's mean log-probability"),
    "verbosity": (("medium",), "the models know no such setting"),
    "web_search_options": ((), "there is no web search"),
}
"""Refused with this reason, unless null or one of the values that ask for nothing."""


def as_markdown() -> str:
    """Both tables, for the documentation."""
    rows = ["| field | | why |", "|---|---|---|"]
    rows += [f"| `{name}` | no effect | {reason} |" for name, reason in NO_EFFECT.items()]
    for name, (neutral, reason) in REFUSED.items():
        unless = " or ".join(f"`{_as_json(value)}`" for value in neutral)
        rows.append(f"| `{name}` | refused{', unless ' + unless if unless else ''} | {reason} |")
    return "\n".join(rows)


def _as_json(value: object) -> str:
    return str(value).replace("'", '"') if isinstance(value, dict | list) else f"{value}".lower() or '""'
