"""Answers on the wire: events become choices and chunks, completions become usage. HTTP's words begin here."""

import re
import time
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import STOP_TEXT, Choice, Shown
from reasonrt.serve.wire.responses import (
    Answer,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionDetails,
    Delta,
    OwnOfAnswer,
    OwnOfChoice,
    PromptDetails,
    StepOfChunk,
    TextChoice,
    TextChunkChoice,
    TextCompletion,
    TextCompletionChunk,
    TracedStep,
    Usage,
)
from reasonrt.types import FinishReason, total_usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_CUT_OFF = frozenset({FinishReason.LENGTH, FinishReason.DEADLINE, FinishReason.CALLS, FinishReason.BUDGET})


class ReplyFormat:
    """One HTTP answer: its id, and how choices look in it.

    Args:
        kind: `chat` or `text`, for the two endpoints.
        reasoning_fields: under which names the reasoning is sent.
    """

    def __init__(self, kind: Literal["chat", "text"], job: Job, reasoning_fields: Sequence[str]) -> None:
        self._is_chat, self._job = kind == "chat", job
        self._names = tuple(reasoning_fields) if job.shows_reasoning else ()
        self.id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The body of an answer that is not streamed."""
        envelope = {"id": self.id, "created": self._created, "model": self._job.model} | self._end(choices)
        if self._is_chat:
            chats = [
                ChatChoice(
                    index=choice.index,
                    message=AssistantMessage(**{"role": "assistant", "content": ""} | self._texts(choice.shown)),
                    finish_reason=finish_reason(choice),
                    logprobs=None,
                    reasonrt=self._own(choice),
                )
                for choice in choices
            ]
            return ChatCompletion(object="chat.completion", choices=chats, **envelope).to_json()
        texts = [
            TextChoice(
                index=choice.index,
                finish_reason=finish_reason(choice),
                logprobs=None,
                reasonrt=self._own(choice),
                **{"text": ""} | self._texts(choice.shown),
            )
            for choice in choices
        ]
        return TextCompletion(object="text_completion", choices=texts, **envelope).to_json()

    def first(self, choice: Choice) -> bytes:
        """The chunk that opens a choice; a plain completion has none."""
        return self._chunk(choice, {"role": "assistant", "content": ""}) if self._is_chat else b""

    def delta(self, choice: Choice, new: Shown) -> bytes:
        """The chunk for what a step adds; nothing, when it adds nothing to see."""
        texts = self._texts(new)
        own = StepOfChunk(step=_traced(choice, -1)) if self._job.has_trace else None
        return self._chunk(choice, texts, own) if texts or own else b""

    def last(self, choice: Choice, new: Shown) -> bytes:
        """The chunk that closes a choice, with what had been held back."""
        return self._chunk(choice, self._texts(new), own_fields(choice), finish_reason(choice))

    def usage_chunk(self, choices: Sequence[Choice]) -> bytes:
        """The last chunk, without choices: what the whole answer has cost."""
        return to_event(self._new_chunk(**self._end(choices)))

    def _texts(self, shown: Shown) -> dict[str, str]:
        texts = dict.fromkeys(self._names, shown.reasoning) if shown.reasoning else {}
        if shown.content:
            texts["content" if self._is_chat else "text"] = shown.content
        return texts

    def _own(self, choice: Choice) -> OwnOfChoice:
        own = own_fields(choice)
        if self._job.has_trace:
            own.trace = [_traced(choice, place) for place in range(len(choice.steps))]
        return own

    def _chunk(
        self,
        choice: Choice,
        texts: dict[str, str],
        own: StepOfChunk | OwnOfChoice | None = None,
        finish_reason: Literal["stop", "length"] | None = None,
    ) -> bytes:
        present: dict[str, Any] = {} if own is None else {"reasonrt": own}
        rendered: ChunkChoice | TextChunkChoice
        if self._is_chat:
            delta = Delta(**texts)
            rendered = ChunkChoice(
                index=choice.index, delta=delta, finish_reason=finish_reason, logprobs=None, **present
            )
        else:
            texts = texts if "text" in texts else texts | {"text": ""}
            rendered = TextChunkChoice(
                index=choice.index, finish_reason=finish_reason, logprobs=None, **texts, **present
            )
        chunk = self._envelope
        chunk.choices = [rendered]
        if self._job.has_running_usage:
            chunk.usage = _totals(choice.accepted.prompt_tokens, choice.committed_tokens)
        return to_event(chunk)

    @cached_property
    def _envelope(self) -> Any:
        """The chunk of this answer; it is sent again and again, with other choices: what they share is checked once."""
        return self._new_chunk(**({"usage": None} if self._job.has_usage_chunk else {}))

    def _new_chunk(self, **present: Any) -> ChatCompletionChunk | TextCompletionChunk:
        kind = ChatCompletionChunk if self._is_chat else TextCompletionChunk
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        return kind(id=self.id, object=name, created=self._created, model=self._job.model, choices=[], **present)

    def _end(self, choices: Sequence[Choice]) -> dict[str, Usage | OwnOfAnswer]:
        request = self._job.request
        engines = total_usage(choice.completion.usage for choice in choices)
        own = OwnOfAnswer(policy=request.policy, options=dict(request.options), usage=dict(engines))
        if self._job.ignored:
            own.ignored = list(self._job.ignored)
        return {"usage": usage(choices, self._job.num_prompts), "reasonrt": own}


def to_event(answer: Answer) -> bytes:
    """One event of a stream."""
    return b"data: " + answer.to_json() + b"\n\n"


def finish_reason(choice: Choice) -> Literal["stop", "length"]:
    """OpenAI's word; an answer that is not there was cut off, whoever ended it, unless by a stop text of the caller."""
    is_empty = not choice.shown.content and choice.shown.stop_text is None
    return "length" if is_empty or choice.completion.finish_reason in _CUT_OFF else "stop"


def warning(job: Job) -> dict[str, str]:
    """The header that names the fields that were left aside, where there are any."""
    names = ", ".join(re.sub(r"[^\w.-]", "?", name, flags=re.ASCII) for name in job.ignored)
    return {"warning": f'299 reasonrt "not known here and ignored: {names}"'} if names else {}


def own_fields(choice: Choice) -> OwnOfChoice:
    """What OpenAI has no words for, of this choice."""
    ended = choice.completion
    reason = STOP_TEXT if STOP_TEXT in ended.details else str(ended.finish_reason)
    present: dict[str, Any] = {"warnings": dict(ended.warnings)} if ended.warnings else {}
    return OwnOfChoice(finish_reason=reason, seconds=round(ended.seconds, 6), details=dict(ended.details), **present)


def usage(choices: Sequence[Choice], num_prompts: int = 1) -> Usage:
    """OpenAI's `usage`; each of `num_prompts` counts once, whatever the number of its choices.

    `completion_tokens` counts what any engine generated, as OpenAI counts rejected predictions. `cached_tokens` is
    there when one call read the prompt: of several calls, each reads the prompt and what was written since.
    """
    engines = total_usage(choice.completion.usage for choice in choices)
    prompts = choices[:: len(choices) // num_prompts]
    prompt_tokens = sum(choice.accepted.prompt_tokens for choice in prompts)
    totals = _totals(prompt_tokens, sum(engine.generated for engine in engines.values()))
    totals.completion_tokens_details = CompletionDetails(
        reasoning_tokens=sum(choice.reasoning_tokens() for choice in choices)
    )
    if "draft" in engines and len(engines) > 1:
        draft = engines["draft"]
        totals.completion_tokens_details.accepted_prediction_tokens = draft.generated - draft.discarded
        totals.completion_tokens_details.rejected_prediction_tokens = draft.discarded - draft.probe
    if sum(engine.calls for engine in engines.values()) == 1:
        cached_tokens = sum(engine.cached for engine in engines.values())
        totals.prompt_tokens_details = PromptDetails(cached_tokens=cached_tokens)
    return totals


def _totals(prompt_tokens: int, completion_tokens: int) -> Usage:
    total = prompt_tokens + completion_tokens
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


def _traced(choice: Choice, place: int) -> TracedStep:
    step = choice.steps[place]
    return TracedStep(
        author=step.author,
        text=step.text,
        tokens=len(step.token_ids),
        is_complete=step.is_complete,
        mean_logprob=sum(step.logprobs) / len(step.logprobs) if step.logprobs else None,
        scores=dict(step.scores),
        seconds=round(choice.step_seconds[place], 6),
    )
