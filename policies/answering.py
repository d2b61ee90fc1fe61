"""A policy's text, with an answer in it: thinking that does not end by itself is closed, and the answer asked for.

Some models end their text inside the thinking, or immediately after it; some are led into it by their chat template,
and answer without it. The text then holds no answer. The same policy continues it, after a step that closes the
thinking and that no engine has written. The same is done at the token at which a limit of the thinking is met.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from reasonrt.ports import Engine, Engines, Policy
from reasonrt.thinking import CLOSING, END_THINK, THINK, Split, closing_text, opens_thinking, split
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop

LEAD = "Final answer:"
"""What the answer is asked for with where the thinking is closed already."""

_MOST_CLOSINGS = 2  # some open the thinking again


async def answered(
    policy: Policy, request: Request, engines: Engines, *, is_finished: bool = False
) -> AsyncGenerator[PolicyEvent, None]:
    """As `policy.solve`, with an answer wherever the limits leave room for one.

    The details of the `Stop` say why the thinking was `closed`: at its `end` or at its `limit`. A policy that holds its
    own answers to the limit is asked for the whole.

    Args:
        is_finished: what is committed is all that the engines had to write.
    """
    if request.thinking_tokens is not None and policy.holds_structure and not is_finished:
        async with aclosing(policy.solve(request, engines)) as events:
            async for event in events:
                yield event
        return
    text, most = _Text(policy, request, engines), request.limits.max_tokens
    details: dict[str, Any] = {}
    warnings: dict[str, str] = {}
    closed: dict[str, str] = {}
    engines.at_limit(lambda: closed)
    while True:
        limit = text.limit
        if is_finished or text.num_tokens >= limit < most:
            reason = FinishReason.STOP if is_finished else FinishReason.LENGTH
        else:
            reason = FinishReason.STOP
            async with aclosing(policy.solve(text.request(), engines)) as events:
                async for event in events:
                    if isinstance(event, Stop):
                        reason, details = event.reason, {**details, **event.details}
                        warnings |= event.warnings
                        break
                    if text.num_tokens + len(event.token_ids) > limit < most:
                        reason = FinishReason.LENGTH
                        request.tell_discarded(event, "limit")
                        break
                    if text.opens_again(event):
                        request.tell_discarded(event, "reopened")
                        break
                    text.add(event)
                    yield event
        is_finished = False
        is_limited = reason is FinishReason.LENGTH and limit < most
        if reason is not FinishReason.STOP and not is_limited:
            yield Stop(reason, details, warnings)
            return
        closing = text.closing(is_limited=is_limited)
        if closing is None and not is_limited:
            yield Stop(FinishReason.LENGTH if text.ends_with_question else reason, details, warnings)
            return
        if closing is not None:
            if text.num_tokens + len(closing.token_ids) >= most:
                yield Stop(FinishReason.LENGTH, details, warnings)
                return
            closed.setdefault("closed", "limit" if is_limited else "end")
            details |= closed
            text.add(closing)
            yield closing


class _Text:
    """What is committed of a request, and what of it is thinking."""

    def __init__(self, policy: Policy, request: Request, engines: Mapping[str, Engine]) -> None:
        self._request, self._steps, self._text = request, list[Step](), ""
        self._ends = {engine.name: engine.tokenizer.eos_token_ids for engine in engines.values()}
        self._tokenizer = engines[policy.engines[0]].tokenizer if policy.engines else None
        self.num_tokens = self._num_closings = 0
        self._is_limited, self._tag_tokens = request.thinking_tokens is not None, 0
        for step in request.committed:
            self.add(step)

    def add(self, step: Step) -> None:
        self._steps.append(step)
        self._text += step.text
        self.num_tokens += len(step.token_ids)
        self._num_closings += step.author == CLOSING
        self._is_limited = self._is_limited and step.author != CLOSING

    @property
    def limit(self) -> int:
        """So many tokens may be written, before the thinking is to be looked at."""
        most, thinking = self._request.limits.max_tokens, self._request.thinking_tokens
        return most if thinking is None or not self._is_limited else min(most, thinking + self._tag_tokens)

    def request(self) -> Request:
        """What asks the policy to continue, up to the limit; no step but a text's last ends with an end token."""
        request = self._request
        if len(self._steps) == len(request.committed) and request.thinking_tokens is None:
            return request
        steps = tuple(map(self._without_end, self._steps))
        dropped = self.num_tokens - sum(len(step.token_ids) for step in steps)
        limits = replace(request.limits, max_tokens=max(1, self.limit - dropped))
        return replace(request, committed=steps, limits=limits, thinking_tokens=None)

    def opens_again(self, step: Step) -> bool:
        """Whether `step` opens the thinking that was closed before it."""
        was_closed = self._steps and self._steps[-1].author == CLOSING and self._num_closings < _MOST_CLOSINGS
        is_written = step.author in self._ends  # and no answer that a program has computed
        return bool(was_closed) and is_written and step.text.lstrip().startswith(THINK)

    def closing(self, *, is_limited: bool) -> Step | None:
        """The step to continue after; None where an answer is there or has begun, or nothing helps."""
        last = self._steps[-1].author if self._steps else CLOSING
        if self._tokenizer is None or last not in (*self._ends, CLOSING):  # no engine has written it, or continues it
            return None
        parts, wanted = self._split(), ""
        if is_limited:
            begun, tag_tokens = self._text.strip(), len(self._tokenizer.encode(THINK))
            self._is_limited = bool(begun) and THINK.startswith(begun) and not self._tag_tokens
            if self._is_limited:  # within the tag
                self._tag_tokens = tag_tokens
            elif parts.is_thinking:
                wanted = closing_text(self._text)
            elif not begun and tag_tokens == 1:  # a thinking model, not begun yet
                wanted = f"{THINK}\n\n{END_THINK}\n\n"
        elif not parts.content.strip() and parts.num_reasoning_characters + parts.is_thinking > 0:
            wanted = closing_text(self._text) if parts.is_thinking else f"\n\n{LEAD}"
        if not wanted or self._num_closings >= _MOST_CLOSINGS:
            return None
        return Step(wanted, tuple(self._tokenizer.encode(wanted)), CLOSING, wanted.endswith("\n\n"))

    @property
    def ends_with_question(self) -> bool:
        """Whether the answer was asked for, and nothing came of it."""
        return self._num_closings > 0 and self._split().content.strip() == LEAD

    def _split(self) -> Split:
        if self._tokenizer is None:
            return split(self._text)
        prompt = self._request.prompt(self._tokenizer)
        return split(self._text, opens_thinking(self._tokenizer.decode, prompt))

    def _without_end(self, step: Step) -> Step:
        ends = self._ends.get(step.author, frozenset())
        if not step.token_ids or step.token_ids[-1] not in ends:
            return step
        return step.beginning(len(step.token_ids) - 1, step.text, is_complete=step.is_complete)
