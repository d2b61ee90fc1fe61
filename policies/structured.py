"""An answer that has a given structure: the policy thinks as ever, and one engine then writes the answer under it.

What the policy would have written after its thinking is not taken: the engine continues from there, and draws only
tokens that the structure allows. A text without thinking is all answer.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from reasonrt.policies.answering import answered
from reasonrt.ports import Capability, Engine, Engines, Policy
from reasonrt.thinking import Split, opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, write_steps


def answering_role(policy: Policy) -> str:
    """Of the engine whose answer it would be: the target where there is one."""
    return "target" if "target" in policy.engines else policy.engines[0]


def can_hold_structure(policy: Policy, engines: Mapping[str, Engine]) -> bool:
    """Whether the answer of `policy` can be held to a structure; `engines` by role."""
    if policy.reads_context or not policy.engines:
        return False
    return Capability.STRUCTURE in engines[answering_role(policy)].capabilities


async def structured(
    policy: Policy, request: Request, engines: Engines, *, is_finished: bool = False
) -> AsyncGenerator[PolicyEvent, None]:
    """As `answered`, with an answer that has `request.structure`; what is committed of an answer is not continued."""
    engine, steps, free = engines[answering_role(policy)], list(request.committed), replace(request, structure={})
    prompt = request.prompts.token_ids(engine.tokenizer, request.messages)
    is_open = opens_thinking(engine.tokenizer.decode, prompt)
    text = "".join(step.text for step in steps)
    parts = split(text, is_open)
    if parts.content:
        # a structure has no memory of what another run has written
        yield Stop(FinishReason.STOP if is_finished else FinishReason.LENGTH)
        return
    if not parts.num_reasoning_characters or parts.is_thinking:
        async with aclosing(answered(policy, free, engines, is_finished=is_finished)) as events:
            async for event in events:
                if isinstance(event, Stop):
                    if parts.is_thinking or event.reason is not FinishReason.STOP:
                        yield event
                        return
                    break
                parts = split(text + event.text, is_open)
                kept = event if parts.is_thinking else _thinking_of(event, text, parts, engines)
                if kept is not None:
                    text += kept.text
                    steps.append(kept)
                    yield kept
                if not parts.is_thinking:
                    break
    transcript = Transcript.of(replace(request, committed=tuple(steps)), engines)
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
    return Step(decode(ids[:count]), ids[:count], step.author, True, step.logprobs[:count], step.top_logprobs[:count])
