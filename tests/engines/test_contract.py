"""The contract of `reasonrt.ports`, for every engine: by the rules of `reasonrt.testing`, and what we know of ours."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from reasonrt.config import DiffusionConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.linked import LinkedEngine
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError
from reasonrt.metering import MeteredEngine
from reasonrt.ports import Capability, Engine
from reasonrt.scopes import Scope
from reasonrt.testing import ENGINE_RULES, EngineCase
from reasonrt.testing.contract import Rule
from reasonrt.testing.engines import QUESTIONS, has_every_member, reads_leave_others_alone
from reasonrt.types import Limits, Message, Sampling


@pytest.fixture(
    params=["scripted", "linked", *(pytest.param(kind, marks=pytest.mark.vllm) for kind in ("vllm", "remote"))]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    name = "target_engine" if request.param == "vllm" else f"{request.param}_engine"
    return cast(Engine, request.getfixturevalue(name))


@pytest.fixture(scope="session", params=["causal", "block", "linked"])
async def diffusion_engine(
    request: pytest.FixtureRequest, diffusion_folder: Callable[[str], Path]
) -> AsyncIterator[Engine]:
    folder = diffusion_folder("block" if request.param == "block" else "causal")
    config = DiffusionConfig(kind="diffusion", model=str(folder), own_process=request.param == "linked")
    engine = await build_engine("diffusion", config).start()
    yield engine
    await engine.aclose()


@pytest.mark.parametrize("rule", ENGINE_RULES, ids=lambda rule: rule.__name__)
async def test_engine_keeps_the_contract(rule: Rule[EngineCase], engine: Engine) -> None:
    if rule is reads_leave_others_alone and isinstance(engine, RemoteEngine):
        pytest.skip("up to the server; see test_remote_wire.py")
    await rule(EngineCase(engine, is_model=not isinstance(engine, ScriptedEngine | LinkedEngine)))


@pytest.mark.parametrize("rule", ENGINE_RULES, ids=lambda rule: rule.__name__)
async def test_diffusion_engine_keeps_the_contract(rule: Rule[EngineCase], diffusion_engine: Engine) -> None:
    await rule(EngineCase(diffusion_engine, denoises=True, verifies_as={"strategy": "self_speculation"}))


async def test_engine_has_every_member(engine: Engine) -> None:
    await has_every_member(engine)


async def test_text_comes_as_it_is_generated_and_is_about_the_question(engine: Engine) -> None:
    async with aclosing(engine.generate(ask(engine), Sampling(400))) as stream:
        parts = [delta.token_ids async for delta in stream]

    assert len(parts) > 1
    text = engine.tokenizer.decode([token_id for part in parts for token_id in part])
    assert "23" in text
    assert text == "".join(map(engine.tokenizer.decode, parts))


async def test_diffusion_engine_has_every_member(diffusion_engine: Engine) -> None:
    await has_every_member(diffusion_engine)


async def test_metered_engine_is_the_same_model(engine: Engine) -> None:
    metered = MeteredEngine(engine, Scope(Limits()))

    assert engine.fingerprint == metered.fingerprint != ""
    assert engine.model_fingerprint == metered.model_fingerprint != ""


async def test_engine_without_a_scalar_head_says_so(engine: Engine) -> None:
    if Capability.SCORE not in engine.capabilities:
        with pytest.raises(CapabilityError, match=r"score|scalar"):
            await engine.score(ask(engine))


async def test_scripted_engine_counts_what_closed_generations_made(scripted_engine: ScriptedEngine) -> None:
    before = scripted_engine.generated_tokens
    stream = scripted_engine.generate_whole(ask(scripted_engine), [Sampling(4), Sampling(400), Sampling(400)])
    await anext(stream)

    await stream.aclose()

    assert scripted_engine.generated_tokens == before + stream.generated_tokens


def ask(engine: Engine) -> list[int]:
    return engine.tokenizer.chat((Message("user", QUESTIONS[0]),))
