"""The committed steps as routers learned from them: whole ones.

A kept beginning, a correction and the rest after it are committed as parts (`Step.is_complete`).
"""

from collections.abc import Iterable
from dataclasses import replace

from reasonrt.types import Step


def whole_steps(steps: Iterable[Step], draft: str) -> list[Step]:
    """The parts of each step put together. Where any is not the draft's, the step is the target's, whose
    log-probabilities are left out: they are there for some requests alone."""
    whole: list[Step] = []
    for step in steps:
        if whole and not whole[-1].is_complete:
            begun = whole.pop()
            step = replace(
                step,
                text=begun.text + step.text,
                token_ids=begun.token_ids + step.token_ids,
                author=step.author if begun.author == draft else begun.author,
                logprobs=begun.logprobs + step.logprobs,
                top_logprobs=begun.top_logprobs + step.top_logprobs,
                top_token_ids=begun.top_token_ids + step.top_token_ids,
            )
        if step.author != draft:
            step = replace(step, logprobs=(), top_logprobs=(), top_token_ids=())
        whole.append(step)
    return whole
