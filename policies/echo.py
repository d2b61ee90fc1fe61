"""A prompt that comes back, with the log-probability of each of its tokens: what log-likelihood tasks ask for.

The prompt is read as it stands, without a chat template, in one pass; what is written after it continues it.
"""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from reasonrt.ports import Engines, Policy, RequestEngine
from reasonrt.transcript import Transcript
from reasonrt.types import GREEDY, FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for

PROMPT = "prompt"
"""The author of the prompt: no engine has generated it."""


def can_echo(policy: Policy) -> bool:
    """Whether one engine alone writes what the policy commits, so that there is one likelihood of a prompt."""
    return policy.has_one_author and policy.commits_as_it_goes


async def echoed(policy: Policy, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
    """The prompt as a step of its own, and what the engine of `policy` writes after it as another.

    The first token of a prompt has the log-probability NaN: nothing stands before it.
    """
    engine = engines[policy.engines[0]]
    prompt = request.prompts.token_ids(engine.tokenizer, request.messages)
    if not request.committed:
        yield await _read(engine, prompt, request.logprobs)
    rest = replace(request, committed=request.committed[1:])  # the prompt stands in the transcript already
    transcript = Transcript.of(rest, engines)
    left = min(request.limits.max_tokens - len(prompt) - transcript.num_tokens, transcript.room(engine))
    if left <= 0:
        yield Stop(FinishReason.LENGTH)
        return
    sampling = sampling_for(rest, transcript, engine, max_tokens=left)
    async with aclosing(engine.generate_whole(list(transcript.token_ids(engine)), [sampling])) as stream:
        _, whole = await anext(stream)
    yield Step(
        engine.tokenizer.decode(whole.token_ids),
        whole.token_ids,
        engine.name,
        True,
        whole.logprobs,
        whole.top_logprobs,
        top_token_ids=whole.top_token_ids,
    )
    yield Stop(whole.finish_reason or FinishReason.STOP)


async def _read(engine: RequestEngine, prompt: Sequence[int], highest: int | None) -> Step:
    step = Step(engine.tokenizer.decode(prompt), tuple(prompt), PROMPT)
    if highest is None:
        return step
    if len(prompt) == 1:
        return replace(step, logprobs=(math.nan,), top_logprobs=((),), top_token_ids=((),))
    sampling = replace(GREEDY, logprobs=True, top_logprobs=highest)
    seen = await engine.verify(prompt[:1], prompt[1:], sampling)
    tops = ((), *seen.top_logprobs) if highest else (), ((), *seen.top_token_ids) if highest else ()
    return replace(step, logprobs=(math.nan, *seen.logprobs), top_logprobs=tops[0], top_token_ids=tops[1])
