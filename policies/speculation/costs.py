"""The cost model of speculation: what draft and target take for a problem, from their speeds and what each has to do.

A forward pass that writes a token for each of n problems, and reads k, takes an engine `pass_s + n * write_s + k *
read_s`, whoever asked for it. So a problem costs its share of the passes that hold a part of it, and each token that
is written or read. A token that is read is one of many in a row, without a sampler or a cache of its own to visit,
and costs less. Alone, with n concurrent problems, the target's passes are shared by n. With a draft they are shared
by fewer, since some of the n are with the draft. That, and the draft's own work on the same device, is what
speculation has to earn back.

With one problem at a time, and passes that cost the same whatever they hold, this is the formula of the literature:
S = 1 / (c + rho + (1 - a)), with c the draft's time per token over the target's, rho the router's and a the accepted
share.
"""

from dataclasses import dataclass

from reasonrt.errors import CalibrationError

_ROUNDS = 30  # rounds of the search for how many problems are with either engine; it settles within ten


@dataclass(frozen=True, slots=True)
class Speed:
    """What one engine takes for a pass and for a token, in seconds.

    Attributes:
        pass_s: of a forward pass, whatever it holds.
        write_s: more for each problem that it writes a token for.
        read_s: more for each token that it reads.
    """

    pass_s: float
    write_s: float = 0.0
    read_s: float = 0.0

    def __post_init__(self) -> None:
        parts = (self.pass_s, self.write_s, self.read_s)
        if not (all(part >= 0 for part in parts) and self.pass_s + self.write_s > 0):
            got = ", ".join(f"{part:g}" for part in parts)
            raise CalibrationError(f"seconds per pass and token must not be negative, nor writing free; got {got}")


@dataclass(frozen=True, slots=True)
class Work:
    """What one engine does for one problem, on average.

    Attributes:
        passes: forward passes that write a token of it, one after the other.
        read: tokens that are read: of a prompt, or to be verified, where the prefix cache does not hold them.
    """

    passes: float
    read: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.passes + other.passes, self.read + other.read)

    def __mul__(self, by: float) -> "Work":
        return Work(self.passes * by, self.read * by)

    def seconds(self, speed: Speed, batch: float) -> float:
        """The seconds of the engine that this work takes, when a pass holds `batch` problems."""
        return self.passes * (speed.pass_s / batch + speed.write_s) + self.read * speed.read_s


NO_WORK = Work(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Parts:
    """The measured parts of one pair at one concurrency.

    Attributes:
        alone: what the target does for a problem by itself.
        drafted, targeted: what either does for it when they share the work, thrown-away work included.
        waits_s: per problem, what it waits for other than the engines: routers, hand-overs.
        at_once: concurrent problems, on average; >= 1.
        is_shared: both engines compute on the same cores or the same GPU.
    """

    draft: Speed
    target: Speed
    alone: Work
    drafted: Work
    targeted: Work
    waits_s: float = 0.0
    at_once: float = 1.0
    is_shared: bool = True


def predicted_speedup(parts: Parts) -> float:
    """How many times as fast as the target alone the pair is predicted to be."""
    return parts.alone.seconds(parts.target, parts.at_once) / seconds_per_problem(parts)


def seconds_per_problem(parts: Parts) -> float:
    """Seconds per problem. Problems are with either engine in proportion to the time that they spend in its passes."""
    pair = ((parts.drafted, parts.draft), (parts.targeted, parts.target))
    batches = (max(1.0, parts.at_once / 2),) * 2
    for _ in range(_ROUNDS):
        spent = [batch * work.seconds(speed, batch) for batch, (work, speed) in zip(batches, pair, strict=True)]
        first, second = (max(1.0, parts.at_once * each / sum(spent)) for each in spent)
        batches = ((batches[0] + first) / 2, (batches[1] + second) / 2)
    busy = [work.seconds(speed, batch) for batch, (work, speed) in zip(batches, pair, strict=True)]
    if parts.is_shared:
        return sum(busy) + parts.waits_s / parts.at_once
    in_turn = sum(batch * each for batch, each in zip(batches, busy, strict=True)) + parts.waits_s
    return max(*busy, in_turn / parts.at_once)


def planned(
    draft: Speed,
    target: Speed,
    accepted_share: float,
    *,
    tokens: float,
    prompt_tokens: float,
    step_tokens: float = 16.0,
    is_verified: bool = True,
    at_once: float = 1.0,
    is_shared: bool = True,
) -> Parts:
    """The parts of a pair that has not run yet.

    Args:
        accepted_share: of the tokens, those in steps that the target is not asked about, in [0, 1].
        tokens: of a solution.
        prompt_tokens: of its question.
        step_tokens: of a step.
        is_verified: the target reads the other steps, puts its own token at one place, and reads the rest once more;
            otherwise it writes them itself.
    """
    if not (0 <= accepted_share <= 1 and tokens > 0 and step_tokens > 0):
        raise CalibrationError(
            f"accepted_share must be in [0, 1], tokens and step_tokens positive; got {accepted_share:g}, {tokens:g} "
            f"and {step_tokens:g}"
        )
    rejected_tokens = (1.0 - accepted_share) * tokens
    rejected_steps = rejected_tokens / step_tokens
    # a problem of which nothing is rejected is not read; one of which anything is, is read to its end
    is_read = 1.0 - accepted_share ** (tokens / step_tokens)
    if is_verified:  # from the middle of a step on, on average, it is drafted and read again
        again = rejected_tokens / 2
        drafted = Work(tokens + again, prompt_tokens)
        targeted = Work(2 * rejected_steps, is_read * (prompt_tokens + tokens) + again)
    else:  # either reads what the other has written
        drafted = Work(tokens, prompt_tokens + rejected_tokens)
        targeted = Work(rejected_tokens, is_read * (prompt_tokens + tokens - rejected_tokens))
    alone = Work(tokens, prompt_tokens)
    return Parts(draft, target, alone, drafted, targeted, at_once=at_once, is_shared=is_shared)


def token_level_work(passes: float, read: float, tokens_ahead: int) -> tuple[Work, Work]:
    """What the draft and the target do for a problem where the target's engine speculates by itself.

    Args:
        passes: of the target; each reads as many drafted tokens as are ahead.
        read: tokens of the prompt.
    """
    return Work(passes * tokens_ahead, read), Work(passes, read + passes * tokens_ahead)
