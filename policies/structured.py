"""An answer that one engine writes: the policy thinks as ever, and what it would have written after that is not taken.

The engine continues from there. Where the answer has a structure, it draws only tokens that the structure allows. A
text without thinking is all answer.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from reasonrt.policies.answering import answered
from reasonrt.policies.single import Single
from reasonrt.ports import Capability, Engine, Engines, Policy, is_known
from reasonrt.thinking import Split, opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, write_steps


def answering_role(policy: Policy) -> str:
    """Of the engine whose answer it would be: the target where there is one."""
    return "target" if "target" in policy.engines else policy.engines[-1]


def can_hold_structure(policy: Policy, engines: Mapping[str, Engine]) -> bool:
    """Whether the answer of `policy` can be held to a structure; `engines` by role."""
    return _answers_with(Capability.STRUCTURE, policy, engines)


def can_call_tools(policy: Policy, engines: Mapping[str, Engine]) -> bool:
    """Whether the answer of `policy` can hold calls of tools; `engines` by role."""
    return _answers_with(Capability.TOOLS, policy, engines)


def _answers_with(capability: Capability, policy: Policy, engines: Mapping[str, Engine]) -> bool:
    if policy.reads_context or not policy.engines:
        return False
    engine = engines[answering_role(policy)]
    return capability in engine.capabilities or not is_known(engine)  # of a server that was not asked yet


def is_written_apart(policy: Policy, request: Request) -> bool:
    """Whether the answer is one that `structured` writes: calls of tools have one author."""
    return bool(request.structure or (request.tools and not policy.has_one_author))


async def structured(
    policy: Policy, request: Request, engines: Engines, *, is_finished: bool = False
) -> AsyncGenerator[PolicyEvent, None]:
    """As `answered`, with an answer that one engine writes, under `request.structure`.

    What is committed of an answer is not continued where it has a structure. A policy that holds its own answers to one
    is asked for the whole.
    """
    engine, steps, free = engines[answering_role(policy)], list(request.committed), replace(request, structure={})
    prompt = request.prompt(engine.tokenizer)
    is_open = opens_thinking(engine.tokenizer.decode, prompt)
    text = "".join(step.text for step in steps)
    parts = split(text, is_open)
    if parts.content and (is_finished or request.structure):
        # a structure has no memory of what another run has written
        yield Stop(FinishReason.STOP if is_finished else FinishReason.LENGTH)
        return
    if request.structure and policy.holds_structure and not is_finished:
        async with aclosing(policy.solve(request, engines)) as events:
            async for event in events:
                yield event
        return
    if not parts.content and (not parts.num_reasoning_characters or parts.is_thinking):
        async with aclosing(answered(policy, free, engines, is_finished=is_finished)) as events:
            async for event in events:
                if isinstance(event, Stop):
                    if parts.is_thinking or event.reason is not FinishReason.STOP:
                        yield event
                        return
                    break
                parts = split(text + event.text, is_open)
                kept = event if parts.is_thinking else _thinking_of(event, text, parts, engines)
                if kept is not event:
                    request.tell_discarded(event, "answer", len(kept.token_ids) if kept else 0)
                if kept is not None:
                    text += kept.text
                    steps.append(kept)
                    yield kept
                if not parts.is_thinking:
                    break
    rest = replace(request, committed=tuple(steps))
    if not request.structure:
        async with aclosing(answered(Single(answering_role(policy)), rest, engines)) as events:
            async for event in events:
                yield event
        return
    transcript = Transcript.of(rest, engines)
    if not transcript.room(engine) or transcript.num_tokens >= request.limits.max_tokens:
        yield Stop(FinishReason.LENGTH)
        return
    sampling = sampling_for(request, transcript, engine, structure=request.structure)
    async with aclosing(write_steps(engine, transcript, sampling)) as written:
        async for item in written:
            yield Stop(item) if isinstance(item, FinishReason) else item


def _thinking_of(step: Step, before: str, parts: Split, engines: Mapping[str, Engine]) -> Step | None:
    """The part of `step` that is thinking, its end included; None where it is all answer."""
    length = parts.num_reasoning_characters - len(before)
    if length <= 0:
        return None
    author = next((engine for engine in engines.values() if engine.name == step.author), None)
    if author is None or (not step.text[length:].strip() and step.token_ids[-1] not in author.tokenizer.eos_token_ids):
        return step
    decode, ids = author.tokenizer.decode, step.token_ids
    count = next((n for n in range(1, len(ids) + 1) if len(decode(ids[:n])) >= length), len(ids))
    return step.beginning(count, decode(ids[:count]), is_complete=True)
