"""What a draft step looks like from outside: numbers that its generation yields for free.

Uncertainty of the draft's own tokens, where the step stands, and who wrote the steps before it. Nothing here
knows the task, and nothing asks a model.
"""

import math
from collections.abc import Sequence

from reasonrt.routers.history import whole_steps
from reasonrt.transcript import Transcript
from reasonrt.types import Step

TOP_LOGPROBS = 5
"""How many log-probabilities of each token the features need."""

FEATURES = (
    "length_tokens",
    "logprob_sum",
    "logprob_mean",
    "logprob_min",
    "logprob_second_min",
    "entropy_max",
    "entropy_mean",
    "entropy_first",
    "margin_min",
    "doubtful_tokens",
    "place_of_min",
    "digit_share",
    "is_repeated",
    "index",
    "question_characters",
    "committed_tokens",
    "target_share",
    "target_share_of_last_3",
    "logprob_min_before",
    "logprob_min_of_last",
    "steps_since_target",
)
"""Names, in the order of `features`. Logarithms are natural, entropies in nats, shares in [0, 1]."""

_DOUBTFUL = math.log(0.9)
_CERTAIN = 0.0  # log-probability of what nobody doubted: an empty history, a step of the target's


def features(transcript: Transcript, step: Step) -> list[float]:
    """The numbers of the draft's `step`, written with `Sampling(logprobs=True, top_logprobs=TOP_LOGPROBS)`.

    Returns:
        As long as `FEATURES`.
    """
    logprobs = step.logprobs or (_CERTAIN,)
    lowest = sorted(logprobs)[:2]
    entropies = [entropy(top) for top in step.top_logprobs] or [0.0]
    margins = [top[0] - top[1] for top in step.top_logprobs if len(top) > 1] or [0.0]
    before = whole_steps(transcript.steps, step.author)
    by_draft = [earlier.author == step.author for earlier in before]
    doubts = [min(earlier.logprobs, default=_CERTAIN) for earlier in before]
    return [
        len(step.token_ids),
        math.fsum(logprobs),
        math.fsum(logprobs) / len(logprobs),
        lowest[0],
        lowest[-1],
        max(entropies),
        math.fsum(entropies) / len(entropies),
        entropies[0],
        min(margins),
        sum(logprob < _DOUBTFUL for logprob in logprobs),
        logprobs.index(lowest[0]) / len(logprobs),
        sum(character.isdigit() for character in step.text) / max(1, len(step.text)),
        float(any(earlier.text == step.text for earlier in before)),
        len(before),
        len(transcript.messages[-1].content),
        transcript.num_tokens,
        _share_of_target(by_draft),
        _share_of_target(by_draft[-3:]),
        min(doubts, default=_CERTAIN),
        doubts[-1] if doubts else _CERTAIN,
        _since_target(by_draft),
    ]


def entropy(top_logprobs: Sequence[float]) -> float:
    """Entropy in nats of one token's distribution; what the `TOP_LOGPROBS` highest leave counts as one token.

    A request may ask for more of them, which changes no decision.
    """
    probabilities = [math.exp(logprob) for logprob in top_logprobs[:TOP_LOGPROBS]]
    rest = 1.0 - math.fsum(probabilities)
    return -math.fsum(p * math.log(p) for p in [*probabilities, rest] if p > 0.0)


def _share_of_target(by_draft: Sequence[bool]) -> float:
    return sum(not draft for draft in by_draft) / max(1, len(by_draft))


def _since_target(by_draft: Sequence[bool]) -> float:
    """Draft steps in a row up to here."""
    return next((back for back, draft in enumerate(reversed(by_draft)) if not draft), len(by_draft))
