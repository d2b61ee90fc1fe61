"""`Engine.verify`: what an engine would have written where a draft has written something."""

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest
from scipy.stats import chi2_contingency

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, RequestError
from reasonrt.metering import MeteredEngine
from reasonrt.ports import Capability, Engine
from reasonrt.scopes import Scope
from reasonrt.types import Limits, Message, Sampling, TokenDelta

NUMBERS = (23, 47, 58, 91)
SURE = 8
"""Tokens that are compared: a real model rounds otherwise where it reads, in a batch, and on another CPU. Further on,
two that are equally likely may change places."""


@pytest.fixture(
    params=["scripted", pytest.param("vllm", marks=pytest.mark.vllm), pytest.param("remote", marks=pytest.mark.vllm)]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "scripted":
        return ScriptedEngine("scripted", lambda prompt, sampling: f"It is{prompt[-40:]}.", max_model_len=1024)
    engine: Engine = request.getfixturevalue({"vllm": "target_engine", "remote": "remote_engine"}[request.param])
    return engine


def ask(engine: Engine, number: int = NUMBERS[0]) -> list[int]:
    question = f"Solve the following multiplication: {number} * 73. Give only the result as your final answer."
    return engine.tokenizer.chat((Message("user", question),))


async def collect(engine: Engine, prompt: list[int], sampling: Sampling) -> list[TokenDelta]:
    async with aclosing(engine.generate(prompt, sampling)) as stream:
        return [delta async for delta in stream]


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


async def verified(engine: Engine, prompt: list[int], drafted: list[int]) -> list[int]:
    return list((await engine.verify(prompt, drafted)).token_ids)


async def test_verify_says_what_would_have_been_written(engine: Engine) -> None:
    """At every place of the draft's slip, asked again and again: what is cached is not left out."""
    if Capability.VERIFY not in engine.capabilities:
        with pytest.raises(CapabilityError, match="verifies nothing"):
            await engine.verify(ask(engine), [2])
        return
    own = ids_of(await collect(engine, ask(engine), Sampling(20)))

    assert (await verified(engine, ask(engine), own))[:SURE] == own[:SURE]
    for at in (0, 1, SURE // 2, SURE - 1):
        slipped = [*own[:at], own[at] + 1, *own[at + 1 :]]
        # beginning in the middle of what is written, as speculation does; this script knows no middle
        for begin in {0} if isinstance(engine, ScriptedEngine) else {0, at // 2, at}:
            assert await verified(engine, [*ask(engine), *own[:begin]], slipped[begin:]) == own[begin : at + 1]


async def test_verifications_side_by_side_with_all_else(engine: Engine) -> None:
    if Capability.VERIFY not in engine.capabilities:
        pytest.skip("verifies nothing")
    owns = [ids_of(await collect(engine, ask(engine, number), Sampling(12))) for number in NUMBERS]
    candidates = sorted(engine.tokenizer.vocabulary())[:4]

    verifications = [verified(engine, ask(engine, number), own) for number, own in zip(NUMBERS, owns, strict=True)]
    found, deltas, _ = await asyncio.gather(
        asyncio.gather(*verifications),
        collect(engine, ask(engine), Sampling(12, logprobs=True, top_logprobs=5)),
        engine.read(ask(engine), candidates),
    )

    assert [each[:SURE] for each in found] == [own[:SURE] for own in owns]
    assert ids_of(deltas)[:SURE] == owns[0][:SURE]


async def test_what_the_cache_held_is_told(engine: Engine) -> None:
    """Usage adds up only so: a prompt whose blocks are there is not read again."""
    if Capability.VERIFY not in engine.capabilities:
        pytest.skip("verifies nothing")
    prompt = ask(engine, 67)
    own = ids_of(await collect(engine, prompt, Sampling(8)))

    known = (await engine.verify(prompt, own)).cached_tokens

    assert len(prompt) - 32 <= known < len(prompt)


async def test_passes_and_what_they_read_are_counted(engine: Engine) -> None:
    """What has been verified before may take a second pass: the cache tells nothing of what it holds."""
    if Capability.VERIFY not in engine.capabilities:
        pytest.skip("verifies nothing")
    prompt = ask(engine, 79)
    own = ids_of(await collect(engine, prompt, Sampling(80)))
    meter = MeteredEngine(engine, Scope(Limits(max_engine_calls=3)))

    passes = [(await meter.verify(prompt, own)).passes for _ in range(3)]

    usage = meter.usage(0)
    assert usage.passes == sum(passes)
    assert usage.prefilled + usage.cached == sum(passes) * len([*prompt, *own])
    assert usage.prefilled > 0
    assert passes[-1] == (1 if isinstance(engine, ScriptedEngine) else 2)


async def test_what_does_not_fit_is_not_verified_either(engine: Engine) -> None:
    if Capability.VERIFY not in engine.capabilities:
        pytest.skip("verifies nothing")
    with pytest.raises(RequestError, match="max_model_len 1024"):
        await engine.verify((ask(engine) * 100)[:1000], [2] * 24)


@pytest.mark.vllm
async def test_tokens_are_drawn_as_often_as_vllm_draws_them(target_engine: Engine) -> None:
    """At an uncertain place, and at the one after it where the draft was right; 300 seeds each."""
    question = "Sort these numbers in ascending order: 250, 17, 88, 31, 204, 9, 122"
    prompt = target_engine.tokenizer.chat((Message("user", question),))
    prompt += target_engine.tokenizer.encode_text("<think>\nSmallest ")
    draft = ids_of(await collect(target_engine, prompt, Sampling(2)))

    def sampling(seed: int) -> Sampling:
        return Sampling(2, temperature=2.0, top_p=0.9, seed=seed)

    verifications = (target_engine.verify(prompt, draft, sampling(seed)) for seed in range(300))
    drawn = [list(found.token_ids) for found in await asyncio.gather(*verifications)]
    generations = (collect(target_engine, prompt, sampling(seed)) for seed in range(300, 600))
    written = [ids_of(deltas) for deltas in await asyncio.gather(*generations)]

    ours, own = Counter(ids[0] for ids in drawn), Counter(ids[0] for ids in written)
    assert len(own) >= 4
    assert own[draft[0]] > 30
    assert differ(ours, own) > 1e-3
    ours, own = (Counter(ids[1] for ids in each if ids[0] == draft[0]) for each in (drawn, written))
    assert differ(ours, own) > 1e-3
    greedy = Counter({draft[0]: 300})
    assert differ(greedy, Counter(ids[0] for ids in written)) < 1e-9


def differ(counts: Counter[int], others: Counter[int]) -> float:
    """The p-value that both are draws of one distribution; what is rare is counted together."""
    common = [token for token in counts | others if counts[token] + others[token] >= 12]
    rows = [[each[token] for token in common] for each in (counts, others)]
    rare = [each.total() - sum(row) for each, row in zip((counts, others), rows, strict=True)]
    if sum(rare):
        rows = [[*row, left] for row, left in zip(rows, rare, strict=True)]
    return float(chi2_contingency(rows).pvalue) if len(rows[0]) > 1 else 1.0
