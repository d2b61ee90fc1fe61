"""The contract of `reasonrt.ports.Engine`."""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from reasonrt.engines.whole import generate_whole
from reasonrt.errors import CapabilityError, RequestError
from reasonrt.plugins import require_members
from reasonrt.ports import CallsTools, Capability, Engine, TokenStream, WholeStream, calling
from reasonrt.testing.contract import Broken, Rule, require, run_rules
from reasonrt.types import FinishReason, FunctionTool, Message, ParsedAnswer, Sampling, TokenDelta

QUESTIONS = tuple(
    f"Solve the following multiplication: {number} * 73. Give only the result as your final answer."
    for number in (23, 47, 58, 91)
)
_MOST_TOKENS = 1_000_000
_PART_TOKENS = 48


@dataclass(frozen=True, slots=True)
class EngineCase:
    """A started engine, and what a check must know of it.

    Attributes:
        questions: two or more, which it answers differently, each with two tokens or more.
        end_tokens: of its answers, none is longer.
        is_model: False for an engine whose log-probabilities are not those of what it writes, such as a script.
        caches_prefixes: False for an engine that never has read a prompt before.
        speculates: True for an engine that writes several tokens in one forward pass.
        denoises: True for an engine whose passes fill blocks of masked tokens, be it after the end of its text.
        verifies_as: the decoding with which it writes token by token, as `verify` does.
    """

    engine: Engine
    questions: Sequence[str] = QUESTIONS
    end_tokens: int = 400
    is_model: bool = True
    caches_prefixes: bool = True
    speculates: bool = False
    denoises: bool = False
    verifies_as: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, index: int = 0) -> list[int]:
        return self.engine.tokenizer.chat((Message("user", self.questions[index]),))

    def long_prompt(self, num_tokens: int) -> list[int]:
        prompt = self.prompt()
        return (prompt * (num_tokens // len(prompt) + 1))[:num_tokens]

    async def write(self, prompt: list[int], sampling: Sampling) -> list[TokenDelta]:
        async with aclosing(self.engine.generate(prompt, sampling)) as stream:
            deltas = [delta async for delta in stream]
            self.require_counts(stream, len(ids_of(deltas)))
        return deltas

    async def write_whole(self, samplings: Sequence[Sampling]) -> dict[int, TokenDelta]:
        async with aclosing(generate_whole(self.engine, self.prompt(), samplings)) as stream:
            ended = [item async for item in stream]
            self.require_counts(stream, sum(len(whole.token_ids) for _, whole in ended))
        indices = [index for index, _ in ended]
        require(sorted(indices) == [*range(len(samplings))], f"of {len(samplings)} generations come those of {indices}")
        return dict(ended)

    def require_counts(self, stream: TokenStream | WholeStream, num_tokens: int) -> None:
        """The engine counts what has come."""
        counted, passes = stream.generated_tokens, stream.passes
        require(counted == num_tokens, f"generated_tokens is {counted} after {num_tokens} tokens have come")
        is_exact = passes == counted or (self.speculates and passes < counted) or (self.denoises and passes > 0)
        require(is_exact, f"passes is {passes} after {num_tokens} tokens have come")

    async def write_ids(self, sampling: Sampling, index: int = 0) -> list[int]:
        return ids_of(await self.write(self.prompt(index), sampling))

    @property
    def running(self) -> int:
        """Generations that the engine works on, where it says so, as `ScriptedEngine` does."""
        return int(getattr(self.engine, "running", 0))


async def check_engine(
    build: Callable[[], Engine],
    *,
    questions: Sequence[str] = QUESTIONS,
    end_tokens: int = 400,
    is_model: bool = True,
    caches_prefixes: bool = True,
    speculates: bool = False,
    denoises: bool = False,
    verifies_as: Mapping[str, Any] | None = None,
) -> None:
    """Try every rule of the protocol on a new engine.

    What has a default here is as in `EngineCase`.

    Args:
        build: makes the engine, not started.

    Raises:
        ContractError: names each rule that is broken.
    """
    engine = build()
    subject = f"engine {getattr(engine, 'name', engine)!r:.60}"
    await run_rules(subject, (has_every_member,), engine)
    try:
        await engine.start()
        flags = (is_model, caches_prefixes, speculates, denoises)
        case = EngineCase(engine, questions, end_tokens, *flags, verifies_as or {})
        await run_rules(subject, ENGINE_RULES, case)
    finally:
        await engine.aclose()
    await run_rules(subject, (closes_twice,), engine)


def ids_of(deltas: Sequence[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def tops_of(deltas: Sequence[TokenDelta]) -> list[tuple[float, ...]]:
    return [place for delta in deltas for place in delta.top_logprobs]


def logprobs_of(deltas: Sequence[TokenDelta]) -> list[float]:
    return [logprob for delta in deltas for logprob in delta.logprobs]


async def has_every_member(engine: Engine) -> None:
    """An engine has every property and method that the protocol names."""
    try:
        require_members(engine, Engine)
    except TypeError as error:
        raise Broken(str(error)) from None


async def closes_twice(engine: Engine) -> None:
    """`aclose` frees everything. Idempotent."""
    await engine.aclose()


async def start_is_idempotent(case: EngineCase) -> None:
    """`start` loads the model and warms it up. Idempotent."""
    require(await case.engine.start() is case.engine, "a second start gives another engine")


async def tells_what_it_computes(case: EngineCase) -> None:
    """Fingerprints are equal for engines that compute the same, and no fingerprint is empty."""
    engine = case.engine
    for name in ("fingerprint", "model_fingerprint"):
        first, second = getattr(engine, name), getattr(engine, name)
        require(first and first == second, f"{name} is {first!r}, then {second!r}")
    require(engine.tokenizer.fingerprint, "the tokenizer's fingerprint is empty")


async def deltas_are_in_order(case: EngineCase) -> None:
    """`generate` yields deltas whose ids are the generation in order; the last one carries the finish reason."""
    deltas = await case.write(case.prompt(), Sampling(case.end_tokens))
    require(deltas, "no delta came")
    require(all(delta.token_ids for delta in deltas[:-1]), "a delta that is not the last has no token")
    reasons = [delta.finish_reason for delta in deltas]
    require(not any(reasons[:-1]), f"a delta that is not the last has the finish reason {reasons}")
    require(reasons[-1] is FinishReason.STOP, f"the answer ends with {reasons[-1]} within {case.end_tokens} tokens")
    last = ids_of(deltas)[-1]
    require(last in case.engine.tokenizer.eos_token_ids, f"it ends by itself with the token {last}, no end token")


async def max_tokens_is_kept(case: EngineCase) -> None:
    """`Sampling.max_tokens`: at most so many new tokens; the generation then ends with the finish reason `length`."""
    for max_tokens in (1, 7):
        deltas = await case.write(case.prompt(), Sampling(max_tokens))
        count, reason = len(ids_of(deltas)), deltas[-1].finish_reason
        is_kept = count == max_tokens and reason is FinishReason.LENGTH
        require(is_kept, f"max_tokens {max_tokens} gives {count} tokens and {reason}")


async def stop_token_ends_it(case: EngineCase) -> None:
    """`Sampling.stop_token_ids`: the generation ends with, and includes, the first of these."""
    free = await case.write_ids(Sampling(_PART_TOKENS))
    stop = free[len(free) // 2]
    deltas = await case.write(case.prompt(), Sampling(_PART_TOKENS, stop_token_ids=frozenset({stop})))
    expected = free[: free.index(stop) + 1]
    require(ids_of(deltas) == expected, f"with the stop token {stop} it writes {ids_of(deltas)}, not {expected}")
    require(deltas[-1].finish_reason is FinishReason.STOP, f"the finish reason is {deltas[-1].finish_reason}")


async def logprobs_come_one_per_token(case: EngineCase) -> None:
    """`TokenDelta.logprobs`: as long as token_ids when asked for; natural logarithms."""
    for temperature in (0.0, 1.0):
        sampling = Sampling(_PART_TOKENS, temperature=temperature, seed=1, logprobs=True)
        deltas = await _logprobs(case, sampling)
        require(all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas), "their number is another")
        require(not tops_of(deltas), "top_logprobs come that nobody asked for")
        require(_are_logprobs(logprobs_of(deltas)), f"they are {logprobs_of(deltas)}")


async def logprobs_come_when_asked_for(case: EngineCase) -> None:
    """`TokenDelta.logprobs`, `top_logprobs`: empty where they were not asked for."""
    deltas = await case.write(case.prompt(), Sampling(_PART_TOKENS))
    require(not logprobs_of(deltas) and not tops_of(deltas), "some come that nobody asked for")


async def top_logprobs_descend(case: EngineCase) -> None:
    """`TokenDelta.top_logprobs`: the highest ones at each place, in descending order."""
    for highest, own in ((1, True), (5, False), (20, True)):
        for temperature in (0.0, 1.5):
            sampling = Sampling(_PART_TOKENS, temperature=temperature, seed=1, logprobs=own, top_logprobs=highest)
            deltas = await _logprobs(case, sampling)
            places = tops_of(deltas)
            require(
                all(len(delta.top_logprobs) == len(delta.token_ids) for delta in deltas),
                "there are more or fewer of them than tokens",
            )
            require(
                all(len(delta.logprobs) == own * len(delta.token_ids) for delta in deltas),
                f"logprobs={own} beside them gives another number of logprobs",
            )
            require(all(len(place) == highest for place in places), f"{highest} were asked for at each place")
            named = [delta.top_token_ids for delta in deltas if delta.top_token_ids]
            ids = [place for delta in named for place in delta]
            require([*map(len, ids)] in ([], [highest] * len(places)), "their ids are more or fewer than they are")
            require(all(len(set(place)) == len(place) for place in ids), "a place names a token twice")
            told = zip(ids_of(deltas), logprobs_of(deltas), places, ids, strict=False)
            require(
                all(
                    dict(zip(names, place, strict=True)).get(token, value) == value
                    for token, value, place, names in told
                ),
                "the token's own is another than the one under its id",
            )
            require(all(list(place) == sorted(place, reverse=True) for place in places), "they do not descend")
            require(all(_are_logprobs(place) for place in places), "some are no logarithms of probabilities")
            require(all(_mass(place) <= 1 + 1e-3 for place in places), "their probabilities add up to more than 1")
            for logprob, place in zip(logprobs_of(deltas), places if own else [], strict=True):
                require(
                    logprob in place or logprob <= place[-1],
                    f"the token's own, {logprob}, is none of {place} and is higher than the lowest",
                )
                is_highest = temperature or not case.is_model or logprob == place[0]
                require(is_highest, f"the greedy token's own, {logprob}, is not the highest of {place}")


async def a_late_consumer_gets_the_same(case: EngineCase) -> None:
    """`generate` gives the same to a consumer that falls behind."""
    has_logprobs = Capability.LOGPROBS in case.engine.capabilities
    sampling = Sampling(_PART_TOKENS, logprobs=has_logprobs, top_logprobs=3 * has_logprobs)
    prompt = await case.write(case.prompt(), sampling)
    async with aclosing(case.engine.generate(case.prompt(), sampling)) as stream:
        late = [await anext(stream)]
        await asyncio.sleep(0.3)
        late += [delta async for delta in stream]
    require(ids_of(late) == ids_of(prompt), f"it gets {ids_of(late)}, another {ids_of(prompt)}")
    ours, others = [logprobs_of(late), *tops_of(late)], [logprobs_of(prompt), *tops_of(prompt)]
    require(len(ours) == len(others) and all(map(_near, ours, others)), "it gets other log-probabilities")


async def tokens_put_together_are_the_same(case: EngineCase) -> None:
    """`Sampling.by_step`: an engine may put tokens together, and gives the same ones."""
    has_logprobs = Capability.LOGPROBS in case.engine.capabilities
    sampling = Sampling(_PART_TOKENS, logprobs=has_logprobs, top_logprobs=3 * has_logprobs)
    alone, together = [await case.write(case.prompt(), replace(sampling, by_step=by_step)) for by_step in (False, True)]
    require(ids_of(together) == ids_of(alone), f"it gives {ids_of(together)}, one by one {ids_of(alone)}")
    ours, others = [logprobs_of(together), *tops_of(together)], [logprobs_of(alone), *tops_of(alone)]
    require(len(ours) == len(others) and all(map(_near, ours, others)), "it gives other log-probabilities")


async def reads_leave_others_alone(case: EngineCase) -> None:
    """A read and a generation that run concurrently have the log-probabilities that each has alone."""
    if not {Capability.READ, Capability.LOGPROBS} <= case.engine.capabilities:
        return
    sampling = Sampling(_PART_TOKENS, top_logprobs=5)
    alone = tops_of(await case.write(case.prompt(), sampling))
    candidates = sorted(case.engine.tokenizer.vocabulary())[:9]
    lone = (await case.engine.read(case.prompt(), candidates)).logprobs

    async def read_often() -> list[tuple[float, ...]]:
        return [(await case.engine.read(case.prompt(), candidates)).logprobs for _ in range(8)]

    deltas, reads = await asyncio.gather(case.write(case.prompt(), sampling), read_often())
    together = tops_of(deltas)
    require(all(_near(*pair, within=0.1) for pair in zip(together[:8], alone, strict=False)), "the generation's differ")
    require(all(map(math.isfinite, sum(together, ()))), "the generation's are not finite")
    require(all(_near(read, lone, within=0.1) for read in reads), "the reads differ")


async def greedy_is_deterministic(case: EngineCase) -> None:
    """`Sampling.temperature`: 0 is greedy, and writes the same each time."""
    first, second = [await case.write_ids(Sampling(_PART_TOKENS)) for _ in range(2)]
    require(first == second, f"it writes {first}, then {second}")


async def seed_is_reproducible(case: EngineCase) -> None:
    """`Sampling.seed`: makes a drawn generation reproducible on the same engine."""
    draws = [await case.write_ids(Sampling(_PART_TOKENS, temperature=2.0, seed=seed)) for seed in (1, 2, 3, 1, 2, 3)]
    require(draws[:3] == draws[3:], "the same seed draws another text")
    require(len(set(map(tuple, draws))) == 3, "different seeds draw the same text at temperature 2")


async def salts_share_nothing(case: EngineCase) -> None:
    """Calls with different values of `cache_salt` share nothing of the prefix cache."""
    for salt in (f"{uuid.uuid4()}" for _ in range(2)):
        streams = [case.engine.generate(case.prompt() * 3, Sampling(2), salt) for _ in range(2)]
        first, second = [max([delta.cached_tokens async for delta in stream]) for stream in streams]
        require(first == 0, f"the first call with a salt has {first} cached_tokens")
        require(second > 0 or not case.caches_prefixes, "the second call with a salt has no cached_tokens")


async def closing_aborts(case: EngineCase) -> None:
    """Closing the stream aborts the work in the engine within one step; `generated_tokens` is exact after it."""
    stream = case.engine.generate(case.prompt(), Sampling(case.end_tokens))
    first = await anext(stream)
    await stream.aclose()
    counted = stream.generated_tokens
    await stream.aclose()
    await asyncio.sleep(0.1)
    later = stream.generated_tokens
    require(counted == later, f"it counts {counted} tokens when closed and {later} a while later")
    require(len(first.token_ids) <= counted, f"it counts {counted} tokens after {len(first.token_ids)} have come")
    require(counted < case.end_tokens, "it has written to the end")
    require(await _is_over(stream), "a closed stream gives another delta")
    require(case.running == 0, "the engine still works on it")


async def closing_what_never_began(case: EngineCase) -> None:
    """`TokenStream.aclose` aborts what is left. Idempotent, also before the first delta."""
    stream = case.engine.generate(case.prompt(), Sampling(_PART_TOKENS))
    await stream.aclose()
    require(stream.generated_tokens == 0, f"it counts {stream.generated_tokens} tokens that nobody asked for")
    require(await _is_over(stream), "a closed stream gives a delta")


async def a_cancelled_caller_leaves_no_work(case: EngineCase) -> None:
    """Cancelling the task that reads a stream, and closing it, leaves no work in the engine."""
    for seconds in (0.0, 0.02):
        stream = case.engine.generate(case.prompt(), Sampling(case.end_tokens))
        task = asyncio.create_task(_drain(stream))
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        require(await _is_over(stream), "the stream gives another delta")
        require(case.running == 0, "the engine still works on it")


async def whole_is_what_would_be_streamed(case: EngineCase) -> None:
    """`generate_whole`, which an engine may leave out, yields each of several generations once, when it has ended."""
    has_logprobs = Capability.LOGPROBS in case.engine.capabilities
    samplings = [
        Sampling(_PART_TOKENS),
        Sampling(7, temperature=1.0, seed=3),
        Sampling(_PART_TOKENS, logprobs=has_logprobs, top_logprobs=3 * has_logprobs),
        Sampling(case.end_tokens),
    ]
    streamed = [await case.write(case.prompt(), sampling) for sampling in samplings]
    length = 7 if case.is_model else None  # in a batch, a real model rounds otherwise
    for index, whole in (await case.write_whole(samplings)).items():
        ids, sampling = tuple(ids_of(streamed[index])), samplings[index]
        require(whole.token_ids[:length] == ids[:length], f"whole it writes {whole.token_ids}, streamed {ids}")
        reason = streamed[index][-1].finish_reason
        require(whole.finish_reason is reason, f"the finish reason is {whole.finish_reason}, streamed {reason}")
        expected = sampling.logprobs * len(whole.token_ids), bool(sampling.top_logprobs) * len(whole.token_ids)
        counts = len(whole.logprobs), len(whole.top_logprobs)
        require(counts == expected, f"there are {counts} logprobs and top_logprobs, not {expected}")


async def wholes_are_drawn_apart(case: EngineCase) -> None:
    """`generate_whole` writes once for each of the samplings, and draws each by itself."""
    temperature = 1.5  # at 1, what a small model is sure of comes out of most draws
    wholes = await case.write_whole([Sampling(case.end_tokens, temperature=temperature)] * 12)
    for whole in wholes.values():
        is_end = whole.finish_reason is FinishReason.STOP and whole.token_ids[-1] in case.engine.tokenizer.eos_token_ids
        require(is_end, f"one ends with {whole.finish_reason} within {case.end_tokens} tokens")
    texts = {whole.token_ids for whole in wholes.values()}
    require(len(texts) > 1 or not case.is_model, f"all of them are the same at temperature {temperature}")


async def wholes_come_as_they_end(case: EngineCase) -> None:
    """`WholeStream`: generations come with their index, in the order in which they end."""
    samplings = [Sampling(max_tokens) for max_tokens in (200, 1, 20)]
    async with aclosing(generate_whole(case.engine, case.prompt(), samplings)) as stream:
        order = [index async for index, _ in stream]
    require(order.index(1) < order.index(2), f"of 200, 1 and 20 tokens they come in the order {order}")


async def closing_wholes_aborts(case: EngineCase) -> None:
    """`WholeStream.aclose` aborts what is left. Idempotent, and `generated_tokens` is exact once closed."""
    samplings = [Sampling(4), Sampling(case.end_tokens), Sampling(case.end_tokens)]
    stream = generate_whole(case.engine, case.prompt(), samplings)
    index, first = await anext(stream)
    await stream.aclose()
    counted = stream.generated_tokens
    await stream.aclose()
    await asyncio.sleep(0.1)
    later = stream.generated_tokens
    require(index == 0, f"the first to end is number {index}")
    require(counted == later, f"it counts {counted} tokens when closed and {later} a while later")
    require(len(first.token_ids) <= counted < case.end_tokens, f"it counts {counted} tokens")
    require(await _is_over(stream), "closed generations give another one")
    require(case.running == 0, "the engine still works on them")
    begun = generate_whole(case.engine, case.prompt(), [Sampling(_PART_TOKENS)] * 2)
    await begun.aclose()
    require(begun.generated_tokens == 0, f"it counts {begun.generated_tokens} tokens that nobody asked for")
    require(await _is_over(begun), "closed generations give one")


async def concurrent_streams_do_not_mix(case: EngineCase) -> None:
    """One instance serves many requests concurrently, each with its own text."""
    sampling = Sampling(_PART_TOKENS)
    places = range(len(case.questions))
    alone = [await case.write_ids(sampling, index) for index in places]
    together = await asyncio.gather(*(case.write_ids(sampling, index) for index in places))
    require(len(set(map(tuple, alone))) == len(alone), "it answers two of the questions alike; give others")
    # in a batch, a real model rounds otherwise: two tokens that were equally likely may change places
    length = 8 if case.is_model else _PART_TOKENS
    is_same = all(ours[:length] == lone[:length] for ours, lone in zip(together, alone, strict=True))
    require(is_same, f"concurrently it writes {together}, one after the other {alone}")


async def read_is_normalized(case: EngineCase) -> None:
    """`read` is normalized over the whole vocabulary, and gives log-probabilities in the candidates' order."""
    if not await _can(case, Capability.READ, lambda: case.engine.read(case.prompt(), [0])):
        return
    candidates = sorted(case.engine.tokenizer.vocabulary())[:20]
    logprobs = (await case.engine.read(case.prompt(), candidates)).logprobs
    require(len(logprobs) == len(candidates), f"{len(candidates)} candidates give {len(logprobs)}")
    require(all(logprob <= 0 for logprob in logprobs) and any(map(math.isfinite, logprobs)), f"they are {logprobs}")
    require(_mass(logprobs) <= 1 + 1e-3, f"the probabilities of some tokens add up to {_mass(logprobs)}")
    backwards = (await case.engine.read(case.prompt(), [*reversed(candidates), candidates[0]])).logprobs
    require([*backwards] == [*reversed(logprobs), logprobs[0]], "the other way round they are others")


async def read_tells_what_was_cached(case: EngineCase) -> None:
    """`Reading.cached_tokens`: prompt tokens read from the prefix cache, of calls with the same `cache_salt` alone."""
    if Capability.READ not in case.engine.capabilities:
        return
    salt, prompt = str(uuid.uuid4()), case.prompt() * 3
    first, second = [(await case.engine.read(prompt, [2], salt)).cached_tokens for _ in range(2)]
    other = (await case.engine.read(prompt, [2], f"{salt} of another")).cached_tokens
    require(first == other == 0, f"the first reads with a salt tell of {first} and {other} cached tokens")
    is_told = 0 < second <= len(prompt) - (not case.denoises) or not case.caches_prefixes
    require(is_told, f"the second read with a salt tells of {second} cached tokens")


async def read_agrees_with_generate(case: EngineCase) -> None:
    """`read` gives the token that `generate` writes greedily the highest log-probability, and the same one."""
    if not case.is_model or not {Capability.READ, Capability.LOGPROBS} <= case.engine.capabilities:
        return
    (delta,) = await case.write(case.prompt(), Sampling(1, logprobs=True))
    vocabulary = sorted(case.engine.tokenizer.vocabulary())[:18]
    others = [token_id for token_id in vocabulary if token_id not in delta.token_ids]
    first, *rest = (await case.engine.read(case.prompt(), [*delta.token_ids, *others])).logprobs
    require(abs(first - delta.logprobs[0]) <= 0.02, f"it is {first} when read and {delta.logprobs[0]} when generated")
    require(first >= max(rest), f"it is {first}, another token has {max(rest)}")


async def verify_agrees_with_generate(case: EngineCase) -> None:
    """Greedy, `verify` says what a `generate` that writes token by token would have written."""
    prompt = case.prompt()
    if not await _can(case, Capability.VERIFY, lambda: case.engine.verify(prompt, [0])):
        return
    own = await case.write_ids(Sampling(20, decoding=case.verifies_as))
    verified = (await case.engine.verify(prompt, own)).token_ids
    require(list(verified) == own, f"of its own text it says {list(verified)}, not {own}")
    for at in {0, len(own) // 2, len(own) - 1}:
        slipped = [*own[:at], own[at] + 1, *own[at + 1 :]]
        verified = (await case.engine.verify(prompt, slipped)).token_ids
        require(list(verified) == own[: at + 1], f"of {slipped} it says {list(verified)}, not {own[: at + 1]}")


async def verify_tells_how_likely_a_draft_is(case: EngineCase) -> None:
    """`Verified.logprobs` and its like: of each token of the draft, and of the engine's own in place of one."""
    prompt = case.prompt()
    if Capability.LOGPROBS not in case.engine.capabilities or Capability.VERIFY not in case.engine.capabilities:
        return
    deltas = await case.write(prompt, Sampling(12, logprobs=True, decoding=case.verifies_as))
    own, known = ids_of(deltas), logprobs_of(deltas)
    slipped = [*own[:3], own[3] + 1, *own[4:]]
    temperatures = (0.0, 1.0) if Capability.VERIFY_SAMPLED in case.engine.capabilities else (0.0,)
    for temperature in temperatures:
        for highest, drafted in ((0, own), (3, own), (20, slipped)):
            sampling = Sampling(1, temperature, seed=1, logprobs=True, top_logprobs=highest)
            seen = await case.engine.verify(prompt, drafted, sampling)
            told = f"of {drafted} it says {seen}"
            require(len(seen.logprobs) == len(drafted), told)
            require(len(seen.top_logprobs) == len(seen.top_token_ids) == len(drafted) * (highest > 0), told)
            require({*map(len, seen.top_logprobs)} <= {highest}, told)
            require(all(abs(a - b) <= 0.05 for a, b in zip(seen.logprobs[:3], known[:3], strict=True)), told)
            last = len(seen.token_ids) - 1
            if seen.own_logprob is None:
                raise Broken(told)
            if seen.token_ids[last] == drafted[last]:
                require(abs(seen.own_logprob - seen.logprobs[last]) <= 1e-3, told)
            for place in range(len(drafted) if highest else 0):
                named = dict(zip(seen.top_token_ids[place], seen.top_logprobs[place], strict=True))
                of_drafted = seen.logprobs[place]
                require(abs(named.get(drafted[place], of_drafted) - of_drafted) <= 1e-3, told)
            if highest:
                named = dict(zip(seen.top_token_ids[last], seen.top_logprobs[last], strict=True))
                require(abs(named.get(seen.token_ids[last], seen.own_logprob) - seen.own_logprob) <= 1e-3, told)


async def verify_draws_what_the_engine_draws(case: EngineCase) -> None:
    """`verify` at a temperature draws by seed and place alone, from the engine's own distribution."""
    prompt, sampling = case.prompt(), Sampling(1, temperature=2.0, top_p=0.95, decoding=case.verifies_as)
    if not await _can(case, Capability.VERIFY_SAMPLED, lambda: case.engine.verify(prompt, [0], sampling)):
        return
    draft = await case.write_ids(Sampling(8, decoding=case.verifies_as))

    async def drawn(drafted: Sequence[int], seed: int, after: Sequence[int] = ()) -> list[int]:
        verified = await case.engine.verify([*prompt, *after], drafted, replace(sampling, seed=seed))
        return list(verified.token_ids)

    own = await drawn(draft, 1)
    for other in (own, [*own, *draft], [*own[:-1], own[-1] + 1]):
        again = (await drawn(other, 1))[: len(own)]
        require(again == own, f"asked about {draft} it draws {own}, about {other} {again}")
    places = [(place, seed) for place in range(min(4, len(draft))) for seed in range(12)]
    verified = sum([(await drawn(draft[at : at + 1], seed, draft[:at]))[0] == draft[at] for at, seed in places])
    generated = 0
    for at, seed in places:
        deltas = await case.write([*prompt, *draft[:at]], replace(sampling, seed=seed + 12))
        generated += ids_of(deltas)[0] == draft[at]
    share = (verified + generated) / (2 * len(places))
    is_near = abs(verified - generated) <= 5 * math.sqrt(2 * len(places) * share * (1 - share)) + 1
    require(is_near, f"of {len(places)} draws of its own {generated} are its most probable token, of these {verified}")


async def score_is_a_number(case: EngineCase) -> None:
    """`score` is the scalar head of a reward or router model, read at the last token."""
    if await _can(case, Capability.SCORE, lambda: case.engine.score(case.prompt())):
        score = (await case.engine.score(case.prompt())).value
        require(math.isfinite(score), f"it is {score}")


async def calls_are_told_from_text(case: EngineCase) -> None:
    """`parse_calls`: what calls no tool is content, as it stands."""
    if Capability.TOOLS not in case.engine.capabilities:
        return
    require(isinstance(case.engine, CallsTools), "it has Capability.TOOLS, and not the methods of CallsTools")
    text = "It is 7."
    parsed = await calling(case.engine).parse_calls(text, (FunctionTool("weather"),), "auto")
    require(parsed == ParsedAnswer(text), f"of {text!r} it makes {parsed}")


async def what_does_not_fit_is_refused(case: EngineCase) -> None:
    """RequestError: prompt and max_tokens do not fit into max_model_len, which the message names."""
    room = case.engine.max_model_len
    for prompt_tokens, max_tokens in ((room, 1), (1, room), (5 * room, 5 * room)):
        sampling = Sampling(min(max_tokens, _MOST_TOKENS))
        await _refused(case, case.write(case.long_prompt(prompt_tokens), sampling), f"{prompt_tokens} + {max_tokens}")
    whole = case.write_whole([Sampling(_PART_TOKENS), Sampling(min(5 * room, _MOST_TOKENS))])
    await _refused(case, whole, f"one whole generation of {5 * room}")
    require(case.running == 0, "of several whole generations, one does not fit, and the engine works on the others")
    if Capability.READ in case.engine.capabilities:
        await _refused(case, case.engine.read(case.long_prompt(room), [2]), f"a read of {room}")


async def unknown_decoding_is_refused(case: EngineCase) -> None:
    """`Sampling.decoding`: the engine checks it and refuses what it does not know."""
    try:
        await case.write(case.prompt(), Sampling(4, decoding={"no such schedule": 1}))
    except (CapabilityError, RequestError):
        return
    raise Broken("it takes a schedule that nobody knows")


async def the_longest_prompt_is_served(case: EngineCase) -> None:
    """`max_model_len`: prompt and generation together never exceed so many tokens, and may have as many."""
    deltas = await case.write(case.long_prompt(case.engine.max_model_len - 4), Sampling(4))
    count = len(ids_of(deltas))
    require(1 <= count <= 4, f"with room for 4 tokens it writes {count}")


ENGINE_RULES: tuple[Rule[EngineCase], ...] = (
    start_is_idempotent,
    tells_what_it_computes,
    deltas_are_in_order,
    max_tokens_is_kept,
    stop_token_ends_it,
    logprobs_come_one_per_token,
    logprobs_come_when_asked_for,
    top_logprobs_descend,
    a_late_consumer_gets_the_same,
    tokens_put_together_are_the_same,
    reads_leave_others_alone,
    greedy_is_deterministic,
    seed_is_reproducible,
    salts_share_nothing,
    closing_aborts,
    closing_what_never_began,
    a_cancelled_caller_leaves_no_work,
    whole_is_what_would_be_streamed,
    wholes_are_drawn_apart,
    wholes_come_as_they_end,
    closing_wholes_aborts,
    concurrent_streams_do_not_mix,
    read_is_normalized,
    read_tells_what_was_cached,
    read_agrees_with_generate,
    verify_agrees_with_generate,
    verify_tells_how_likely_a_draft_is,
    verify_draws_what_the_engine_draws,
    score_is_a_number,
    calls_are_told_from_text,
    what_does_not_fit_is_refused,
    unknown_decoding_is_refused,
    the_longest_prompt_is_served,
)
"""The rules of a started engine, by themselves, for tests that show each."""


async def _logprobs(case: EngineCase, sampling: Sampling) -> list[TokenDelta]:
    """What is written; nothing where the engine refuses, as it must when it has no log-probabilities."""
    can = await _can(case, Capability.LOGPROBS, lambda: case.write(case.prompt(), sampling))
    return await case.write(case.prompt(), sampling) if can else []


async def _can(case: EngineCase, capability: Capability, call: Callable[[], Awaitable[object]]) -> bool:
    """Whether the engine can do what `call` asks; what it cannot, it must refuse."""
    if capability in case.engine.capabilities:
        return True
    try:
        await call()
    except CapabilityError:
        return False
    raise Broken(f"it has no capability {capability!s} and raises no CapabilityError")


async def _refused(case: EngineCase, call: Awaitable[object], what: str) -> None:
    try:
        await call
    except RequestError as error:
        expected = f"max_model_len {case.engine.max_model_len}"
        require(expected in str(error), f"the message does not name {expected}: {error}")
        return
    raise Broken(f"{what} tokens are taken")


async def _is_over(stream: TokenStream | WholeStream) -> bool:
    try:
        await anext(stream)
    except StopAsyncIteration:
        return True
    return False


async def _drain(stream: TokenStream) -> None:
    async with aclosing(stream):
        async for _ in stream:
            pass


def _are_logprobs(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) and value <= 0 for value in values)


def _mass(logprobs: Sequence[float]) -> float:
    return sum(map(math.exp, logprobs))


def _near(ours: Sequence[float], others: Sequence[float], within: float = 1e-4) -> bool:
    return len(ours) == len(others) and all(
        our == other or abs(our - other) <= within for our, other in zip(ours, others, strict=True)
    )
