"""`check_engine` passes what keeps the contract, and names the rule that an engine breaks."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, RequestError
from reasonrt.ports import Capability, Reading, Score, Verified
from reasonrt.testing import ContractError, check_engine
from reasonrt.types import GREEDY, FinishReason, FunctionTool, ParsedAnswer, Sampling, TokenDelta


def answer(prompt: str, sampling: Sampling) -> str:
    number = "".join(filter(str.isdigit, prompt))
    return f"It is {number}, by way {sampling.seed if sampling.temperature else 0}, or something like that."


class Good(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__("good", answer, max_model_len=1024, seconds_per_token=0.0005)


class _Stream:
    """A stream that passes on what `change` makes of each delta."""

    def __init__(self, inner: Any, engine: Any) -> None:
        self.inner, self.engine = inner, engine

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> TokenDelta:
        return self.engine.change(await anext(self.inner))  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self.inner.aclose()

    @property
    def generated_tokens(self) -> int:
        return int(self.inner.generated_tokens)

    @property
    def passes(self) -> int:
        return self.generated_tokens


class Changed(Good):
    stream: Any = _Stream

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        return self.stream(super().generate(prompt_token_ids, sampling, cache_salt), self)

    def change(self, delta: TokenDelta) -> TokenDelta:
        return delta


class NoEngine:
    name = "good"


class AnotherStart(Good):
    async def start(self) -> Any:
        return Good()


class NoFingerprint(Good):
    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = ""


class NoReason(Changed):
    def change(self, delta: TokenDelta) -> TokenDelta:
        return TokenDelta(delta.token_ids, delta.logprobs, None, delta.cached_tokens, delta.top_logprobs)


class EmptyDeltas(Changed):
    def change(self, delta: TokenDelta) -> TokenDelta:
        return delta if delta.finish_reason else TokenDelta(())


class CutsShort(Changed):
    """It says stop where the limit ended it."""

    def change(self, delta: TokenDelta) -> TokenDelta:
        reason = delta.finish_reason and FinishReason.STOP
        return TokenDelta(delta.token_ids, delta.logprobs, reason, delta.cached_tokens, delta.top_logprobs)


class IgnoresStops(Good):
    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        sampling = Sampling(
            sampling.max_tokens, sampling.temperature, 1.0, sampling.seed, frozenset(), sampling.logprobs
        )
        return super().generate(prompt_token_ids, sampling, cache_salt)


class AllLogprobs(Changed):
    def change(self, delta: TokenDelta) -> TokenDelta:
        return TokenDelta(delta.token_ids, (-1.0,), delta.finish_reason, delta.cached_tokens, delta.top_logprobs)


class Ascending(Changed):
    def change(self, delta: TokenDelta) -> TokenDelta:
        tops = tuple(tuple(reversed(place)) for place in delta.top_logprobs)
        return TokenDelta(delta.token_ids, delta.logprobs, delta.finish_reason, delta.cached_tokens, tops)


class LosesWhatComesLate(Changed):
    class stream(_Stream):  # noqa: N801
        late = False

        async def __anext__(self) -> TokenDelta:
            loop = asyncio.get_running_loop()
            before = getattr(self, "at", loop.time())
            self.at = loop.time()
            delta = await super().__anext__()
            if self.at - before > 0.25 and not delta.finish_reason:
                delta = await super().__anext__()
            self.at = loop.time()
            return delta


class LosesWhatIsHeld(Good):
    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        return super().reply(prompt, sampling)[sampling.by_step :]


class Moody(Good):
    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        self.replies = getattr(self, "replies", 0) + 1
        return f"{self.replies} {super().reply(prompt, sampling)}"


class NoSeed(Good):
    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        return super().reply(prompt, Sampling(sampling.max_tokens))


class OneCache(Good):
    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        return super().generate(prompt_token_ids, sampling, "shared")


class WorksOn(Changed):
    """Closing a stream leaves its work in the engine."""

    class stream(_Stream):  # noqa: N801
        async def aclose(self) -> None:
            self.is_closed = True

        async def __anext__(self) -> TokenDelta:
            if getattr(self, "is_closed", False):
                raise StopAsyncIteration
            return await super().__anext__()


class NeverCloses(Changed):
    class stream(_Stream):  # noqa: N801
        async def aclose(self) -> None:
            pass


class Mixes(Changed):
    """Two generations that run concurrently share their tokens."""

    def change(self, delta: TokenDelta) -> TokenDelta:
        return TokenDelta((3,) * len(delta.token_ids), (), delta.finish_reason) if self.running > 2 else delta


class SameToAll(Good):
    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        return f"Always the same, by way {sampling.seed or 0}."


class Unnormalized(Good):
    async def read(self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = "") -> Any:
        return Reading(tuple(0.0 for _ in candidate_ids))


class Sorted(Good):
    async def read(self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = "") -> Any:
        reading = await super().read(prompt_token_ids, candidate_ids, cache_salt)
        return replace(reading, logprobs=tuple(sorted(reading.logprobs)))


class AgreesWithAll(Good):
    async def verify(
        self, prompt_token_ids: Sequence[int], drafted_ids: Sequence[int], sampling: Any = None, cache_salt: str = ""
    ) -> Any:
        return Verified(tuple(drafted_ids))


class DrawsEarly(Good):
    """With its first token."""

    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        return f"{sampling.seed} is the way." if sampling.temperature else "A" * 12


class DrawsAnew(DrawsEarly):
    """By no seed."""

    async def verify(
        self, prompt_token_ids: Sequence[int], drafted_ids: Sequence[int], sampling: Any = GREEDY, cache_salt: str = ""
    ) -> Any:
        self.verified = getattr(self, "verified", 0) + bool(sampling.temperature)
        return await super().verify(prompt_token_ids, drafted_ids, replace(sampling, seed=self.verified), cache_salt)


class DrawsGreedily(DrawsEarly):
    """Where it verifies."""

    async def verify(
        self, prompt_token_ids: Sequence[int], drafted_ids: Sequence[int], sampling: Any = GREEDY, cache_salt: str = ""
    ) -> Any:
        return await super().verify(prompt_token_ids, drafted_ids, GREEDY, cache_salt)


class NanScore(Good):
    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        return Score(float("nan"))


class CannotAndDoes(Good):
    capabilities = frozenset(Capability) - {Capability.SCORE}


class TakesAll(Good):
    def admit(self, prompt: Sequence[int], max_tokens: int, cache_salt: str = "") -> int:
        return super().admit(prompt, 0, cache_salt) if len(prompt) < 1024 else 0


class TakesAnySchedule(Good):
    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        return super().generate(prompt_token_ids, replace(sampling, decoding={}), cache_salt)


class SaysNoNumber(Good):
    def admit(self, prompt: Sequence[int], max_tokens: int, cache_salt: str = "") -> int:
        if len(prompt) + max_tokens > self.max_model_len:
            raise RequestError("too long")
        return super().admit(prompt, max_tokens, cache_salt)


class OneTooFew(Good):
    def admit(self, prompt: Sequence[int], max_tokens: int, cache_salt: str = "") -> int:
        return super().admit(prompt, max_tokens + 1, cache_salt)


class Miscounts(Changed):
    class stream(_Stream):  # noqa: N801
        @property
        def generated_tokens(self) -> int:
            return int(self.inner.generated_tokens) + 1


class OnePass(Changed):
    class stream(_Stream):  # noqa: N801
        @property
        def passes(self) -> int:
            return 1


class WholeInAnotherWay(Good):
    def generate_whole(self, prompt_token_ids: Sequence[int], samplings: Any, cache_salt: str = "") -> Any:
        return super().generate_whole([*prompt_token_ids, 50], samplings, cache_salt)


class WholeByIndex(Good):
    """It begins with the last, and waits for each before the next begins."""

    def generate_whole(self, prompt_token_ids: Sequence[int], samplings: Any, cache_salt: str = "") -> Any:
        write = super().generate_whole
        return _InTurn([write(prompt_token_ids, [sampling], cache_salt) for sampling in samplings])


class _InTurn:
    def __init__(self, streams: Any) -> None:
        self.streams, self.index, self.is_closed = streams, len(streams), False

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        if self.is_closed or not self.index:
            raise StopAsyncIteration
        self.index -= 1
        _, whole = await anext(self.streams[self.index])
        return self.index, whole

    @property
    def generated_tokens(self) -> int:
        return sum(stream.generated_tokens for stream in self.streams)

    passes = generated_tokens

    async def aclose(self) -> None:
        self.is_closed = True
        for stream in self.streams:
            await stream.aclose()


class WholeWorksOn(Good):
    def generate_whole(self, prompt_token_ids: Sequence[int], samplings: Any, cache_salt: str = "") -> Any:
        stream = super().generate_whole(prompt_token_ids, samplings, cache_salt)

        async def aclose() -> None:
            pass

        stream.aclose = aclose  # type: ignore[method-assign]
        return stream


class OneReadingCache(Good):
    async def read(self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = "") -> Any:
        return await super().read(prompt_token_ids, candidate_ids, "shared")


class ReadsDisturb(Good):
    async def read(self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = "") -> Any:
        reading = await super().read(prompt_token_ids, candidate_ids, cache_salt)
        return replace(reading, logprobs=tuple(value - self.running for value in reading.logprobs))


class FallsOnClosing(Good):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        if self.closed > 1:
            raise RuntimeError("closed already")


class SwallowsText(Good):
    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        return ParsedAnswer("")


FAULTS: list[tuple[Any, str, str]] = [
    (NoEngine, "An engine has every property and method", "has no fingerprint"),
    (AnotherStart, "`start` loads the model", "another engine"),
    (NoFingerprint, "Fingerprints are equal", "fingerprint is ''"),
    (NoReason, "the last one carries the finish reason", "ends with None"),
    (EmptyDeltas, "the last one carries the finish reason", "tokens have come|has no token"),
    (CutsShort, "`Sampling.max_tokens`", "gives 1 tokens and stop"),
    (IgnoresStops, "`Sampling.stop_token_ids`", "with the stop token"),
    (AllLogprobs, "`TokenDelta.logprobs`: as long as", "their number is another"),
    (AllLogprobs, "empty where they were not asked for", "nobody asked for"),
    (Ascending, "in descending order", "do not descend"),
    (LosesWhatComesLate, "a consumer that falls behind", "it gets|tokens have come"),
    (ReadsDisturb, "A read and a generation that run concurrently", "the reads differ"),
    (Moody, "0 is greedy", "it writes"),
    (NoSeed, "`Sampling.seed`", "different seeds draw the same"),
    (OneCache, "share nothing of the prefix cache", "the first call with a salt has"),
    (WorksOn, "Closing the stream aborts", "the engine still works on it"),
    (NeverCloses, "Closing the stream aborts", "a closed stream gives another delta"),
    (NeverCloses, "also before the first delta", "a closed stream gives a delta"),
    (WorksOn, "leaves no work in the engine", "the engine still works on it"),
    (Mixes, "One instance serves many requests", "concurrently it writes"),
    (SameToAll, "One instance serves many requests", "answers two of the questions alike"),
    (Unnormalized, "normalized over the whole vocabulary", "add up to"),
    (Sorted, "in the candidates' order", "they are others"),
    (AgreesWithAll, "Greedy, `verify` says what a", "it says"),
    (DrawsAnew, "draws by seed and place alone", "asked about .* it draws"),
    (DrawsGreedily, "draws by seed and place alone", "of 48 draws of its own 0 are"),
    (NanScore, "`score` is the scalar head", "it is nan"),
    (CannotAndDoes, "`score` is the scalar head", "raises no CapabilityError"),
    (TakesAll, "do not fit into max_model_len", "tokens are taken"),
    (SaysNoNumber, "do not fit into max_model_len", "does not name max_model_len 1024"),
    (TakesAnySchedule, "`Sampling.decoding`", "a schedule that nobody knows"),
    (OneTooFew, "and may have as many", "RequestError"),
    (Miscounts, "yields deltas whose ids are the generation", "generated_tokens is"),
    (OnePass, "yields deltas whose ids are the generation", "passes is 1"),
    (LosesWhatIsHeld, "`Sampling.by_step`", "one by one"),
    (WholeInAnotherWay, "yields each of several generations once", "whole it writes"),
    (WholeByIndex, "in the order in which they end", "in the order .2, 1, 0."),
    (WholeWorksOn, "`WholeStream.aclose` aborts", "tokens|another one|still works"),
    (OneReadingCache, "`Reading.cached_tokens`", "the first reads with a salt"),
    (SwallowsText, "`parse_calls`", "of 'It is 7.' it makes"),
    (FallsOnClosing, "`aclose` frees everything", "closed already"),
]


async def test_engine_that_keeps_the_contract_passes() -> None:
    await check_engine(Good, is_model=False)


async def test_engine_that_can_less_and_says_so_passes() -> None:
    class Less(Good):
        capabilities = frozenset({Capability.TOKEN_IDS, Capability.LOGPROBS})

        async def score(self, prompt_token_ids: Sequence[int], *others: Any) -> Score:
            raise CapabilityError("it scores nothing")

        read: Any = score
        verify: Any = score

    await check_engine(Less, is_model=False)


async def test_script_is_no_model() -> None:
    with pytest.raises(ContractError, match="`read` gives the token that `generate` writes greedily"):
        await check_engine(Good)


@pytest.mark.parametrize(
    ("make", "rule", "seen"), FAULTS, ids=[f"{make.__name__}-{rule[:24]}" for make, rule, _ in FAULTS]
)
async def test_broken_rule_is_named(make: Any, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as raised:
        await check_engine(make, is_model=False)

    (words,) = [words for words in raised.value.broken if rule in words]
    assert re.search(seen, raised.value.broken[words])
