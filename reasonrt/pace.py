"""How fast an engine has been of late, and so how long a generation will take.

Averages for which what is older counts less: seconds per new token, and seconds to the first token as a straight line
over the prompt tokens that the prefix cache did not hold. Beside them, how fast the fastest generations were: those
that did not wait for other engines on the same device.
"""

import time
from collections.abc import Callable

from reasonrt.types import TokenDelta

_HALF_LIFE_TOKENS = 512  # of the decoding speed: moments under load, seconds for a single generation
_HALF_LIFE_STARTS = 16  # of the time to the first token, in generations
_DOUBLING_GENERATIONS = 64  # in which the fastest is taken for twice as slow, unless one is as fast again
_LEAST_TOKENS = 8  # of a generation that tells how fast generations are
_SHRINK = 0.1  # how far apart points must be, in units of their mean, before their slope counts as known


class Pace:
    """The speed of one engine, shared by all requests that run on it.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.running = 0  # generations now open
        self._decoding, self._starting = _Line(), _Line()
        self._fastest: dict[int, tuple[int, float]] = {}  # by the power of two of the generations that ran

    @property
    def seconds_per_token(self) -> float | None:
        """Of one generation, between its deltas; None before any two."""
        return self._decoding.mean_y if self._decoding.weight else None

    @property
    def undisturbed(self) -> tuple[float, float] | None:
        """`seconds_per_token` of the fastest generations of late, as a straight line over the generations that ran
        concurrently: (constant, slope). None before any was long enough to tell."""
        if not self._fastest:
            return None
        line = _Line()
        for running, seconds in self._fastest.values():
            line.add(1.0, 1.0, running, seconds)
        return line.fit(0.0)

    @property
    def first_token_s(self) -> float | None:
        """From submission to the first delta, queueing included, whatever the cache held; None before any."""
        return self._starting.mean_y if self._starting.weight else None

    @property
    def prefill_s_per_token(self) -> float:
        """What a prompt token outside of the prefix cache adds to the first token; 0 before any."""
        return self._start_line()[1]

    def seconds(self, new_tokens: float, missing_tokens: int = 0) -> float | None:
        """How long a generation will take; None before anything was measured.

        Args:
            new_tokens: to be generated.
            missing_tokens: of its prompt, those that the prefix cache will not hold.
        """
        if not self._starting.weight:
            return None
        constant_s, slope_s = self._start_line()
        return constant_s + slope_s * missing_tokens + self._step_s() * max(0.0, new_tokens - 1)

    def watch(self, prompt_tokens: int) -> "Watch":
        """The stopwatch for one generation."""
        return Watch(self, prompt_tokens)

    def started(self, seconds: float, missing_tokens: int) -> None:
        """A first token came after `seconds`."""
        self._starting.add(0.5 ** (1 / _HALF_LIFE_STARTS), 1.0, missing_tokens, seconds)

    def decoded(self, seconds: float, tokens: int) -> None:
        """So many further tokens of one generation took `seconds`; tokens >= 1."""
        self._decoding.add(0.5 ** (tokens / _HALF_LIFE_TOKENS), tokens, 1.0, seconds / tokens)

    def generated(self, seconds: float, tokens: int) -> None:
        """A whole generation took so long, or as far as it came; tokens >= 1."""
        running = max(1, self.running)
        now, known = (running, seconds / tokens), self._fastest.get(running.bit_length())
        if known is not None:  # machines become slower as well
            now = min(now, (known[0], known[1] * 2 ** (1 / _DOUBLING_GENERATIONS)), key=lambda each: each[1])
        self._fastest[running.bit_length()] = now

    def _step_s(self) -> float:
        known = self.seconds_per_token
        return known if known is not None else self.first_token_s or 0.0  # a step is no slower than prompt and step

    def _start_line(self) -> tuple[float, float]:
        """(seconds to the first token with nothing missing, seconds per missing token), neither negative.

        Where prompts of one length alone say nothing of the slope, it is that of a line that takes one decoding step
        with nothing missing.
        """
        line = self._starting
        if not line.weight or line.mean_x <= 0:
            return (line.mean_y if line.weight else 0.0), 0.0
        return line.fit(max(0.0, line.mean_y - self._step_s()) / line.mean_x)


class _Line:
    """The straight line through points of which older ones count less: least squares, drawn towards a slope."""

    def __init__(self) -> None:
        self.weight = self._x = self._xx = self._y = self._xy = 0.0

    @property
    def mean_x(self) -> float:
        return self._x / self.weight

    @property
    def mean_y(self) -> float:
        return self._y / self.weight

    def add(self, keep: float, weight: float, x: float, y: float) -> None:
        """One more point; all before it keep that share of their weights."""
        self.weight = keep * self.weight + weight
        self._x = keep * self._x + weight * x
        self._xx = keep * self._xx + weight * x**2
        self._y = keep * self._y + weight * y
        self._xy = keep * self._xy + weight * x * y

    def fit(self, prior_slope: float) -> tuple[float, float]:
        """(constant, slope), neither negative; needs a point, and a positive mean of x.

        Args:
            prior_slope: what it is where the points say nothing of it.
        """
        variance = max(0.0, self._xx / self.weight - self.mean_x**2)
        covariance = self._xy / self.weight - self.mean_x * self.mean_y
        shrinking = (_SHRINK * self.mean_x) ** 2
        slope = (covariance + shrinking * prior_slope) / (variance + shrinking)
        slope = min(max(0.0, slope), self.mean_y / self.mean_x)
        return max(0.0, self.mean_y - slope * self.mean_x), slope


class Watch:
    """Tells `Pace` of one generation. Any order of calls is safe."""

    def __init__(self, pace: Pace, prompt_tokens: int) -> None:
        self._pace, self._prompt_tokens = pace, prompt_tokens
        self._is_open = self._is_over = False
        self._asked_s = 0.0
        self._came_s: float | None = None
        self._first_s, self._tokens = 0.0, 0  # of what came after the first

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
                self._first_s = now
                self._pace.started(now - self._asked_s, max(0, self._prompt_tokens - delta.cached_tokens))
            # a delta that was ready before it was asked for does not tell when it came
            elif now - self._asked_s >= self._asked_s - before:
                self._pace.decoded(now - before, tokens)
            self._tokens += tokens if before is not None else 0
            self._came_s = now
        if delta.finish_reason:
            self.ended()

    def ended(self) -> None:
        """The generation is over or given up. Idempotent."""
        if self._is_open and not self._is_over:
            if self._tokens >= _LEAST_TOKENS and self._came_s is not None:
                self._pace.generated(self._came_s - self._first_s, self._tokens)
            self._pace.running -= 1
        self._is_over = True
