"""Answers on the wire: events become choices and chunks, completions become usage. HTTP's words begin here."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic_core import to_json

from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.catalog import Job
from reasonrt.serve.parting import Parts, num_reasoning_characters, part
from reasonrt.serve.resume import total_usage
from reasonrt.types import Completion, FinishReason, Step

_CUT_OFF = frozenset({FinishReason.LENGTH, FinishReason.DEADLINE, FinishReason.CALLS})
STOP_TEXT = "stop_text"
"""The key in a completion's details under which the stop text stands that ended it."""


class Choice:
    """One solution on its way: what has come, and what of it has been sent."""

    completion: Completion  # from the end on

    def __init__(self, index: int, job: Job) -> None:
        self.index, self._job = index, job
        self._text = ""
        self._sent = Parts()
        self._began = time.perf_counter()
        self._is_thinking = False
        self.prompt_tokens = self.committed_tokens = 0
        self.trace: list[dict[str, Any]] = []

    def accept(self, accepted: Accepted) -> None:
        self.prompt_tokens, self._is_thinking = accepted.prompt_tokens, accepted.is_thinking

    def add(self, event: Step | Completion) -> Parts:
        """Take an event in; what of its text is new and can be shown."""
        if isinstance(event, Completion):
            self.completion = event
        else:
            self._text += event.text
            self.committed_tokens += len(event.token_ids)
            if self._job.has_trace:
                self.trace.append(_traced(event, time.perf_counter() - self._began))
        known = part(self._text, self._is_thinking, self._job.stop, isinstance(event, Completion))
        sent, self._sent = self._sent, known
        return Parts(known.reasoning[len(sent.reasoning) :], known.content[len(sent.content) :], known.stop)

    @property
    def parts(self) -> Parts:
        """All that was shown."""
        return self._sent

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "length" if self.completion.finish_reason in _CUT_OFF else "stop"

    def own_fields(self) -> dict[str, Any]:
        """What OpenAI has no words for, of this choice."""
        ended = self.completion
        reason = "stop_text" if STOP_TEXT in ended.details else ended.finish_reason
        return {"finish_reason": reason, "seconds": round(ended.seconds, 6), "details": dict(ended.details)}

    def reasoning_tokens(self) -> int:
        left = num_reasoning_characters(self._text, self._is_thinking)
        num_tokens = 0.0
        for step in self.completion.steps:
            num_tokens += len(step.token_ids) * min(left, len(step.text)) / max(1, len(step.text))
            left -= min(left, len(step.text))
        return round(num_tokens)


def _traced(step: Step, seconds: float) -> dict[str, Any]:
    known = sum(step.logprobs) / len(step.logprobs) if step.logprobs else None
    return {
        "author": step.author,
        "text": step.text,
        "tokens": len(step.token_ids),
        "is_complete": step.is_complete,
        "mean_logprob": known,
        "scores": dict(step.scores),
        "seconds": round(seconds, 6),
    }


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's `usage`.

    `completion_tokens` counts what any engine generated, as OpenAI counts rejected predictions. `cached_tokens` is
    there when one call read the prompt: of several calls, each reads the prompt and what was written since.
    """
    engines = total_usage(choice.completion.usage for choice in choices)
    prompt_tokens = choices[0].prompt_tokens
    generated = sum(engine.generated for engine in engines.values())
    details = {"reasoning_tokens": sum(choice.reasoning_tokens() for choice in choices)}
    if "draft" in engines and len(engines) > 1:
        draft = engines["draft"]
        details["accepted_prediction_tokens"] = draft.generated - draft.discarded
        details["rejected_prediction_tokens"] = draft.discarded - draft.probe
    totals = _totals(prompt_tokens, generated) | {"completion_tokens_details": details}
    if sum(engine.calls for engine in engines.values()) == 1:
        totals["prompt_tokens_details"] = {"cached_tokens": sum(engine.cached for engine in engines.values())}
    return totals


def _totals(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


class ReplyFormat:
    """One HTTP answer: its id, and how choices look in it.

    Args:
        kind: `chat` or `text`, for the two endpoints.
        reasoning_fields: under which names the reasoning is sent.
    """

    def __init__(self, kind: Literal["chat", "text"], job: Job, reasoning_fields: Sequence[str]) -> None:
        self._is_chat, self._job, self._names = kind == "chat", job, tuple(reasoning_fields)
        self.id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The body of an answer that is not streamed."""
        rendered = []
        for choice in choices:
            own = choice.own_fields() | ({"trace": choice.trace} if self._job.has_trace else {})
            shown = self._shown(choice.parts)
            body = {"message": {"role": "assistant", "content": ""} | shown} if self._is_chat else {"text": ""} | shown
            ended = {"finish_reason": choice.finish_reason, "logprobs": None, "reasonrt": own}
            rendered.append({"index": choice.index, **body, **ended})
        kind = "chat.completion" if self._is_chat else "text_completion"
        return _json(self._envelope(kind, rendered) | self._usage(choices))

    def first(self, choice: Choice) -> bytes:
        """The chunk that opens a choice."""
        delta = {"role": "assistant", "content": ""} if self._is_chat else {}
        return self._chunk(choice, delta, None) if delta else b""

    def delta(self, choice: Choice, new: Parts) -> bytes:
        """The chunk for what a step adds; nothing, when it adds nothing to see."""
        shown = self._shown(new)
        own = {"step": choice.trace[-1]} if self._job.has_trace else None
        return self._chunk(choice, shown, own) if shown or own else b""

    def last(self, choice: Choice, new: Parts) -> bytes:
        """The chunk that closes a choice, with what had been held back."""
        return self._chunk(choice, self._shown(new), choice.own_fields(), choice.finish_reason)

    def usage_chunk(self, choices: Sequence[Choice]) -> bytes:
        return _event(self._envelope(self._chunk_kind, []) | self._usage(choices))

    def _shown(self, parts: Parts) -> dict[str, str]:
        shown = dict.fromkeys(self._names, parts.reasoning) if parts.reasoning else {}
        if parts.content:
            shown["content" if self._is_chat else "text"] = parts.content
        return shown

    def _chunk(
        self, choice: Choice, shown: dict[str, str], own: dict[str, Any] | None, finish_reason: str | None = None
    ) -> bytes:
        body = {"delta": shown} if self._is_chat else {"text": ""} | shown
        rendered = {"index": choice.index, **body, "finish_reason": finish_reason, "logprobs": None}
        if own is not None:
            rendered["reasonrt"] = own
        chunk = self._envelope(self._chunk_kind, [rendered])
        if self._job.has_running_usage:
            chunk["usage"] = _totals(choice.prompt_tokens, choice.committed_tokens)
        elif self._job.has_usage_chunk:
            chunk["usage"] = None
        return _event(chunk)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._job.model,
            "choices": choices,
        }

    def _usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        request = self._job.request
        engines = total_usage(choice.completion.usage for choice in choices)
        own = {"policy": request.policy, "options": dict(request.options), "usage": engines}
        return {"usage": usage(choices), "reasonrt": own}


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    return _event(body)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    return to_json(value, fallback=str, inf_nan_mode="null")
