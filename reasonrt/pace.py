"""How fast an engine has been of late, and so how long a generation will take.

Two numbers, each an average in which what is older counts less: seconds per new token, and seconds to the first
token as a straight line over the prompt tokens that the prefix cache did not hold.
"""

import time
from collections.abc import Callable

from reasonrt.types import TokenDelta

_HALF_LIFE_TOKENS = 512  # of the decoding speed: moments under load, seconds for a single generation
_HALF_LIFE_STARTS = 16  # of the time to the first token, in generations
_SHRINK = 0.1  # how far apart prompt lengths must be, in units of their mean, before their slope counts as known


class Pace:
    """The speed of one engine, shared by all requests that run on it.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.running = 0  # generations now open
        self._decode_s = self._decoded_tokens = 0.0
        self._starts = self._start_s = self._missing = self._missing_squared = self._missing_start_s = 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """Of one generation, between its deltas; None before any two."""
        return self._decode_s / self._decoded_tokens if self._decoded_tokens else None

    @property
    def first_token_s(self) -> float | None:
        """From submission to the first delta, queueing included, whatever the cache held; None before any."""
        return self._start_s / self._starts if self._starts else None

    @property
    def prefill_s_per_token(self) -> float:
        """What a prompt token outside of the prefix cache adds to the first token; 0 before any."""
        return self._line()[1]

    def seconds(self, new_tokens: float, missing_tokens: int = 0) -> float | None:
        """How long a generation will take; None before anything was measured.

        Args:
            new_tokens: to be generated.
            missing_tokens: of its prompt, those that the prefix cache will not hold.
        """
        if not self._starts:
            return None
        constant_s, slope_s = self._line()
        return constant_s + slope_s * missing_tokens + self._step_s() * max(0.0, new_tokens - 1)

    def watch(self, prompt_tokens: int) -> "Watch":
        """The stopwatch for one generation."""
        return Watch(self, prompt_tokens)

    def started(self, seconds: float, missing_tokens: int) -> None:
        """A first token came after `seconds`."""
        keep = 0.5 ** (1 / _HALF_LIFE_STARTS)
        self._starts = keep * self._starts + 1
        self._start_s = keep * self._start_s + seconds
        self._missing = keep * self._missing + missing_tokens
        self._missing_squared = keep * self._missing_squared + missing_tokens**2
        self._missing_start_s = keep * self._missing_start_s + missing_tokens * seconds

    def decoded(self, seconds: float, tokens: int) -> None:
        """So many further tokens of one generation took `seconds`; tokens >= 1."""
        keep = 0.5 ** (tokens / _HALF_LIFE_TOKENS)
        self._decode_s = keep * self._decode_s + seconds
        self._decoded_tokens = keep * self._decoded_tokens + tokens

    def _step_s(self) -> float:
        known = self.seconds_per_token
        return known if known is not None else self.first_token_s or 0.0  # a step is no slower than prompt and step

    def _line(self) -> tuple[float, float]:
        """(seconds to the first token with nothing missing, seconds per missing token), neither negative.

        Least squares, drawn towards the line that takes one decoding step with nothing missing: prompts of one
        length alone say nothing of the slope.
        """
        if not self._starts:
            return 0.0, 0.0
        mean_s, mean_missing = self._start_s / self._starts, self._missing / self._starts
        if mean_missing <= 0:
            return mean_s, 0.0
        variance = max(0.0, self._missing_squared / self._starts - mean_missing**2)
        covariance = self._missing_start_s / self._starts - mean_missing * mean_s
        prior, weight = max(0.0, mean_s - self._step_s()) / mean_missing, (_SHRINK * mean_missing) ** 2
        slope = (covariance + weight * prior) / (variance + weight)
        slope = min(max(0.0, slope), mean_s / mean_missing)
        return max(0.0, mean_s - slope * mean_missing), slope


class Watch:
    """Tells `Pace` of one generation. Any order of calls is safe."""

    def __init__(self, pace: Pace, prompt_tokens: int) -> None:
        self._pace, self._prompt_tokens = pace, prompt_tokens
        self._is_open = self._is_over = False
        self._asked_s = 0.0
        self._came_s: float | None = None

    def asked(self) -> None:
        """The next delta is waited for from now on; the first time, the generation is submitted."""
        self._asked_s = self._pace.clock()
        if not self._is_open and not self._is_over:
            self._is_open = True
            self._pace.running += 1

    def came(self, delta: TokenDelta) -> None:
        """It is here."""
        now, before, tokens = self._pace.clock(), self._came_s, len(delta.token_ids)
        if tokens:
            if before is None:
                self._pace.started(now - self._asked_s, max(0, self._prompt_tokens - delta.cached_tokens))
            # a delta that was ready before it was asked for does not tell when it came
            elif now - self._asked_s >= self._asked_s - before:
                self._pace.decoded(now - before, tokens)
            self._came_s = now
        if delta.finish_reason:
            self.ended()

    def ended(self) -> None:
        """The generation is over or given up. Idempotent."""
        if self._is_open and not self._is_over:
            self._pace.running -= 1
        self._is_over = True
