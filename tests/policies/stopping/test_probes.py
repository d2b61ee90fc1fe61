"""What a probe reads off an answer, and where it ends."""

import math
from typing import Any

import pytest

from reasonrt import Limits
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.metering import MeteredEngine
from reasonrt.policies.stopping.probes import SUFFIX, Probe
from reasonrt.policies.stopping.signals import END_OF_THINKING, ENTROPY_AFTER_THINKING, LOOKS
from reasonrt.scopes import Scope


def make_probe(reply: str, answer_tokens: int = 24, **settings: Any) -> tuple[Probe, ScriptedEngine]:
    engine = ScriptedEngine("target", lambda prompt, sampling: reply[len(prompt.rpartition(SUFFIX)[2]) :], **settings)
    return Probe(MeteredEngine(engine, Scope(Limits())), engine.tokenizer.encode(SUFFIX), answer_tokens), engine


PROMPT = ScriptedEngine("", "").tokenizer.encode("[user] ?\n[assistant] <think>\none\n\n")


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize(
    ("reply", "value", "said"),
    [
        ("42} and more", "42", "42}"),
        (r"\frac{1}{2}}. So", r"\frac{1}{2}", r"\frac{1}{2}}"),
        (r"{a}{b}}", "{a}{b}", "{a}{b}}"),
        (" 7 } ", "7", " 7 }"),
        ("}", None, "}"),
        ("  }", None, "  }"),
        ("no end", None, "no end"),
        ("{x}", None, "{x}"),
        ("", None, ""),
        ("a" * 30 + "}", None, "a" * 24),
        ("{}" * 30 + "}", None, "{}" * 12),
    ],
)
async def test_answer_ends_at_the_matching_brace(reply: str, value: str | None, said: str, chunk_tokens: int) -> None:
    probe, engine = make_probe(reply, chunk_tokens=chunk_tokens)

    answer = await probe.answer(PROMPT)

    assert (answer.value, answer.text) == (value, said)
    assert engine.tokenizer.decode(answer.token_ids) == said
    assert len(answer.token_ids) == len(answer.logprobs) == probe.spent_tokens == engine.generated_tokens
    assert engine.running == 0


async def test_confidence_is_over_the_tokens_of_the_answer_alone() -> None:
    probe, engine = make_probe("42} and more")
    logprobs = [engine.logprob(token_id) for token_id in engine.tokenizer.encode("42")]

    signals = (await probe.answer(PROMPT)).signals

    assert signals["confidence"] == pytest.approx(sum(map(math.exp, logprobs)) / 2)
    assert signals["geometric_confidence"] == pytest.approx(math.exp(sum(logprobs) / 2))


@pytest.mark.parametrize("reply", ["}", "no end"])
async def test_no_answer_is_no_confidence(reply: str) -> None:
    probe, _ = make_probe(reply)

    assert set((await probe.answer(PROMPT)).signals.values()) == {0.0}


async def test_a_look_costs_one_token_each() -> None:
    probe, engine = make_probe("42}")

    looks = await probe.look(LOOKS, PROMPT)

    assert set(looks) == LOOKS
    assert looks[ENTROPY_AFTER_THINKING] > 0
    assert 0 < looks[END_OF_THINKING] < 1
    assert probe.spent_tokens == engine.generated_tokens == 2
    assert engine.running == 0
