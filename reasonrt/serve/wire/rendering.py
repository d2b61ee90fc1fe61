"""Answers on the wire: events become choices and chunks, completions become usage. HTTP's words begin here."""

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isnan
from typing import Any, Literal, Protocol

from reasonrt.masking import without_folders
from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import STOP_TEXT, Choice, Shown, Token
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.responses import (
    Answer,
    AssistantMessage,
    CalledFunction,
    CallOfTool,
    CallOfToolDelta,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChunkChoice,
    CompletionDetails,
    Delta,
    OwnOfAnswer,
    OwnOfChoice,
    OwnOfChunk,
    PromptDetails,
    TextChoice,
    TextChunkChoice,
    TextCompletion,
    TextCompletionChunk,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
    TracedStep,
    Usage,
)
from reasonrt.thinking import END_THINK, THINK
from reasonrt.types import FinishReason, ToolCall, total_usage

_DONE = b"data: [DONE]\n\n"
_NEVER = -9999.0  # OpenAI's word for minus infinity, which JSON has none for

_CUT_OFF = frozenset({FinishReason.LENGTH, FinishReason.DEADLINE, FinishReason.CALLS, FinishReason.BUDGET})


class Layout(Protocol):
    """One HTTP answer: how its choices look in it, whole or as a stream."""

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The body of an answer that is not streamed."""

    def first(self, choice: Choice) -> bytes:
        """What opens a choice."""

    def delta(self, choice: Choice, new: Shown) -> bytes:
        """What a step adds; nothing, when it adds nothing to see."""

    def event(self, choice: Choice) -> bytes:
        """What a traced request has told last, beside its steps."""

    def last(self, choice: Choice, new: Shown) -> bytes:
        """What closes a choice, with what had been held back."""

    def end(self, choices: Sequence[Choice]) -> bytes:
        """What ends a stream."""

    def keep_alive(self) -> bytes:
        """What keeps a silent stream open."""

    def failed(self, error: ApiError) -> bytes:
        """What ends a stream that breaks off."""


class ReplyFormat:
    """The answer to a chat or a plain completion: its id, and how choices look in it.

    Args:
        kind: `chat` or `text`, for the two endpoints.
        reasoning_fields: under which names the reasoning is sent.
    """

    def __init__(self, kind: Literal["chat", "text"], job: Job, reasoning_fields: Sequence[str]) -> None:
        self._is_chat, self._job = kind == "chat", job
        self._names = tuple(reasoning_fields) if job.shows_reasoning and job.is_reasoning_apart else ()
        self.id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The body of an answer that is not streamed."""
        envelope = {"id": self.id, "created": self._created, "model": self._job.model} | self._end(choices)
        if self._is_chat:
            chats = [
                ChatChoice(
                    index=choice.index,
                    message=self._message(choice),
                    finish_reason=finish_reason(choice),
                    logprobs=self._logprobs(choice, choice.shown, is_whole=True),
                    reasonrt=self._own(choice),
                )
                for choice in choices
            ]
            return ChatCompletion(object="chat.completion", choices=chats, **envelope).to_json()
        texts = [
            TextChoice(
                index=choice.index,
                finish_reason=finish_reason(choice),
                logprobs=self._logprobs(choice, choice.shown, is_whole=True),
                reasonrt=self._own(choice),
                **{"text": ""} | self._texts(choice.shown, choice.shown),
            )
            for choice in choices
        ]
        return TextCompletion(object="text_completion", choices=texts, **envelope).to_json()

    def first(self, choice: Choice) -> bytes:
        """The chunk that opens a choice; a plain completion has none."""
        return self._chunk(choice, Shown(), {"role": "assistant", "content": ""}) if self._is_chat else b""

    def delta(self, choice: Choice, new: Shown) -> bytes:
        """The chunk for what a step adds; nothing, when it adds nothing to see."""
        texts = self._texts(new, choice.shown)
        own = OwnOfChunk(step=TracedStep.of(choice.steps[-1], choice.step_seconds[-1])) if self._job.has_trace else None
        return self._chunk(choice, new, texts, own) if texts or own or self._told(new) else b""

    def event(self, choice: Choice) -> bytes:
        """The chunk for what was reported last."""
        return self._chunk(choice, Shown(), {}, OwnOfChunk(event=choice.reports[-1]))

    def last(self, choice: Choice, new: Shown) -> bytes:
        """The chunk that closes a choice, with what had been held back; calls of tools have one before it."""
        texts, called = self._texts(new, choice.shown), b""
        if new.tool_calls:
            calls = [
                CallOfToolDelta(index=index, **_called(call).model_dump()) for index, call in enumerate(new.tool_calls)
            ]
            called, texts, new = self._chunk(choice, new, texts | {"tool_calls": calls}), {}, Shown()
        return called + self._chunk(choice, new, texts, own_fields(choice), finish_reason(choice))

    def end(self, choices: Sequence[Choice]) -> bytes:
        """Where it was asked for, a chunk without choices: what the whole answer has cost."""
        told = to_event(self._new_chunk(**self._end(choices))) if self._job.has_usage_chunk else b""
        return told + _DONE

    def keep_alive(self) -> bytes:
        return b": keep-alive\n\n"

    def failed(self, error: ApiError) -> bytes:
        return to_event(error.body()) + _DONE

    def _message(self, choice: Choice) -> AssistantMessage:
        shown, ends_with_calls = choice.shown, finish_reason(choice) == "tool_calls"
        present: dict[str, Any] = {"role": "assistant", "content": None if ends_with_calls else ""}
        calls = {"tool_calls": list(map(_called, shown.tool_calls))} if shown.tool_calls else {}
        return AssistantMessage(**present | self._texts(shown, shown) | calls)

    def _texts(self, new: Shown, shown: Shown) -> dict[str, Any]:
        """What to send of `new`, with which `shown` is all that was sent."""
        content = new.content if self._job.is_reasoning_apart else self._together(new, shown)
        texts: dict[str, Any] = dict.fromkeys(self._names, new.reasoning) if new.reasoning else {}
        if content:
            texts["content" if self._is_chat else "text"] = content
        return texts

    @staticmethod
    def _together(new: Shown, shown: Shown) -> str:
        """The reasoning in its tags, and the answer after it."""
        opening = f"{THINK}\n" if new.reasoning and new.reasoning == shown.reasoning else ""
        is_answer = new.content == shown.content and (new.content or new.tool_calls)
        closing = f"\n{END_THINK}\n\n" if shown.reasoning and is_answer else ""
        return f"{opening}{new.reasoning}{closing}{new.content}"

    def _own(self, choice: Choice) -> OwnOfChoice:
        own = own_fields(choice)
        if self._job.has_trace:
            own.trace = list(map(TracedStep.of, choice.steps, choice.step_seconds))
            own.events = choice.reports
        if self._job.request.logprobs is not None:
            own.authors = [token.author for token in self._told(choice.shown)]
        return own

    def _told(self, shown: Shown) -> list[Token]:
        """The tokens whose log-probabilities are sent: of a chat also those of a reasoning that is."""
        has_all = self._is_chat and self._job.shows_reasoning
        return [token for token in shown.tokens if has_all or token.is_answer]

    def _logprobs(self, choice: Choice, shown: Shown, *, is_whole: bool = False) -> Any:
        """What is sent of them; None where nobody has asked, and in a chunk without tokens."""
        highest, tokens = self._job.request.logprobs, self._told(shown)
        if highest is None or not (tokens or is_whole):
            return None
        return chat_logprobs(tokens, highest) if self._is_chat else text_logprobs(tokens, highest, choice.content_begin)

    def _chunk(
        self,
        choice: Choice,
        new: Shown,
        texts: dict[str, Any],
        own: OwnOfChunk | OwnOfChoice | None = None,
        finish_reason: Literal["stop", "length", "tool_calls"] | None = None,
    ) -> bytes:
        logprobs: Any = self._logprobs(choice, new)
        if logprobs is not None:
            own = own or OwnOfChunk()
            own.authors = [token.author for token in self._told(new)]
        present: dict[str, Any] = {} if own is None else {"reasonrt": own}
        rendered: ChunkChoice | TextChunkChoice
        if self._is_chat:
            delta = Delta(**texts)
            rendered = ChunkChoice(
                index=choice.index, delta=delta, finish_reason=finish_reason, logprobs=logprobs, **present
            )
        else:
            texts = texts if "text" in texts else texts | {"text": ""}
            rendered = TextChunkChoice(
                index=choice.index, finish_reason=finish_reason, logprobs=logprobs, **texts, **present
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


def chat_logprobs(tokens: Sequence[Token], highest: int) -> ChatLogprobs:
    """As chats have them, with so many of the highest ones at each place."""
    return ChatLogprobs.model_construct(
        content=[
            TokenLogprob(
                **_token_logprob(token.text, token.logprob),
                top_logprobs=[_token_logprob(*each) for each in token.top[:highest]],
            )
            for token in tokens
        ]
    )


def text_logprobs(tokens: Sequence[Token], highest: int, begin: int) -> TextLogprobs:
    """As plain completions have them: the token's own is always among the highest ones.

    Args:
        begin: of what was committed, so many characters stand before the text.
    """
    return TextLogprobs(
        text_offset=[max(0, token.begin - begin) for token in tokens],
        token_logprobs=[None if isnan(token.logprob) else _finite(token.logprob) for token in tokens],
        tokens=[token.text for token in tokens],
        top_logprobs=[None if isnan(token.logprob) else _by_text(token, highest) for token in tokens],
    )


def _token_logprob(text: str, logprob: float) -> TopLogprob:
    return TopLogprob(token=text, logprob=_finite(logprob), bytes=list(text.encode(errors="replace")))


def _by_text(token: Token, highest: int) -> dict[str, float]:
    found = {token.text: _finite(token.logprob)}
    for text, logprob in token.top[:highest]:  # some tokens read alike
        found[text] = max(_finite(logprob), found.get(text, _NEVER))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, _NEVER)


def _called(call: ToolCall) -> CallOfTool:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return CallOfTool(id=call.id, type="function", function=function)


def finish_reason(choice: Choice) -> Literal["stop", "length", "tool_calls"]:
    """OpenAI's word; an answer that is not there was cut off, whoever ended it, unless by a stop text of the caller."""
    if choice.shown.tool_calls:
        return "length" if choice.completion.finish_reason in _CUT_OFF else "tool_calls"
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
    warnings = {name: without_folders(why) for name, why in ended.warnings.items()}  # the log has them whole
    present: dict[str, Any] = {"warnings": warnings} if warnings else {}
    details = _without_folders(ended.details)
    return OwnOfChoice(finish_reason=reason, seconds=round(ended.seconds, 6), details=details, **present)


def _without_folders(details: Mapping[str, Any]) -> dict[str, Any]:
    """With the names of files alone in what says why something did not take place; the rest may be a caller's text."""
    return {
        name: _without_folders(part)
        if isinstance(part, Mapping)
        else without_folders(part)
        if name == "fallback" and isinstance(part, str)
        else part
        for name, part in details.items()
    }


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
