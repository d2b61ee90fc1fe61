"""The fake is as strict as a real engine: exact counts, a prefix cache, death and return."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import EngineError, RequestError
from reasonrt.types import FinishReason, Sampling, TokenDelta


async def drain(engine: ScriptedEngine, prompt: list[int], sampling: Sampling) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(prompt, sampling)]


@given(text=st.text(st.characters(codec="utf-8")))
def test_tokenizer_gives_text_back(text: str) -> None:
    tokenizer = CharacterTokenizer()

    ids = tokenizer.encode(text)

    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) - text.count("\n\n")


@given(
    stored=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=20),
    prompt=st.lists(st.integers(0, 3), max_size=12),
)
def test_cache_knows_the_longest_common_prefix(stored: list[list[int]], prompt: list[int]) -> None:
    engine = ScriptedEngine("fake", "")
    for ids in stored:
        engine.remember(ids, "")

    def common(ids: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), min(len(ids), len(prompt))
        )

    expected = max(map(common, stored[-16:]), default=0)
    assert engine.admit(prompt, 1) == min(expected, max(0, len(prompt) - 1))


@given(text=st.text("ab\n", max_size=30), max_tokens=st.integers(1, 40), chunk=st.integers(1, 9), stop=st.booleans())
async def test_generation_is_the_script_up_to_its_end(text: str, max_tokens: int, chunk: int, stop: bool) -> None:
    engine = ScriptedEngine("fake", text, chunk_tokens=chunk)
    newline = engine.tokenizer.encode("\n")[0]
    stops = frozenset({newline} if stop else ())

    deltas = await drain(engine, [5], Sampling(max_tokens, stop_token_ids=stops, logprobs=True))

    script = [*engine.tokenizer.encode(text), 0]
    end = next(i for i, token_id in enumerate(script) if token_id in {0, *stops}) + 1
    assert [i for delta in deltas for i in delta.token_ids] == script[: min(end, max_tokens)]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is (FinishReason.STOP if end <= max_tokens else FinishReason.LENGTH)
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert engine.generated_tokens == min(end, max_tokens)
    assert engine.running == 0


async def test_read_is_normalized_over_the_vocabulary() -> None:
    engine = ScriptedEngine("fake", "")

    logprobs = (await engine.read([5, 6, 7], list(engine.tokenizer.vocabulary()))).logprobs

    assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1.0)
    assert (await engine.read([5, 6, 7], [3])).logprobs == (logprobs[3],)
    assert engine.generated_tokens == 2


async def test_score_is_the_given_one() -> None:
    engine = ScriptedEngine("fake", "", scores=len)

    assert (await engine.score(engine.tokenizer.encode("four"))).value == 4


async def test_what_does_not_fit_is_refused_with_its_size() -> None:
    engine = ScriptedEngine("fake", "text", max_model_len=10)

    with pytest.raises(RequestError, match="8 prompt tokens and max_tokens 3 exceed max_model_len 10"):
        await drain(engine, list(range(8)), Sampling(3))


async def test_death_ends_what_runs_and_nothing_that_comes_later() -> None:
    engine = ScriptedEngine("fake", "a long text", chunk_tokens=1)
    before = engine.generate([5], Sampling(20))
    await anext(before)

    engine.kill()
    after = await drain(engine, [5], Sampling(20))
    with pytest.raises(EngineError, match="'fake' died"):
        await anext(before)

    assert after[-1].finish_reason is FinishReason.STOP
    assert engine.running == 0


async def test_script_that_fails_leaves_nothing_running() -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        raise ValueError(prompt)

    engine = ScriptedEngine("fake", script)

    with pytest.raises(ValueError, match="a"):
        await drain(engine, engine.tokenizer.encode("a"), Sampling(1))

    assert engine.running == 0


async def test_closing_twice_is_closing_once() -> None:
    engine = ScriptedEngine("fake", "text", chunk_tokens=1)
    stream = engine.generate([5], Sampling(20))
    await anext(stream)

    await stream.aclose()
    await stream.aclose()

    assert engine.running == 0
    assert stream.generated_tokens == engine.generated_tokens == 1


@given(text=st.text(st.characters(codec="ascii"), min_size=1, max_size=20), highest=st.integers(1, 20))
async def test_the_highest_log_probabilities_hold_the_scripts_own_token_where_it_is_one(
    text: str, highest: int
) -> None:
    engine = ScriptedEngine("fake", text)

    deltas = await drain(engine, [5], Sampling(30, logprobs=True, top_logprobs=highest))

    for delta in deltas:
        for logprob, place in zip(delta.logprobs, delta.top_logprobs, strict=True):
            assert list(place) == sorted(place, reverse=True)
            assert math.fsum(map(math.exp, place)) <= 1 + 1e-9
            assert pytest.approx(logprob) in place or logprob < place[-1]
