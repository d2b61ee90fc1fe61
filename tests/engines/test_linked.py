"""An engine over a link behaves as the engine itself; here the link is a function call."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from reasonrt import FunctionTool, Request, Runtime
from reasonrt.engines.linked import EngineHost, LinkedEngine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError, RequestError
from reasonrt.ports import Capability
from reasonrt.types import Sampling

TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"


class DirectLink:
    """Calls the far end in this process."""

    is_running = True

    def __init__(self, far: EngineHost) -> None:
        self.far = far

    async def call(self, method: str, *arguments: Any, session: str = "") -> Any:
        return await getattr(self.far, method)(*arguments)

    async def stream(self, method: str, *arguments: Any, session: str = "") -> AsyncGenerator[Any, None]:
        async with aclosing(getattr(self.far, method)(*arguments)) as items:
            async for item in items:
                yield item

    def kill(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        await self.far.aclose()


async def far_away(name: str, **settings: Any) -> tuple[LinkedEngine, ScriptedEngine]:
    """The near end, and the engine at the far one."""
    engine = ScriptedEngine(name, TEXT, **settings)
    return LinkedEngine(ScriptedEngine(name, "", **settings), DirectLink(EngineHost(engine))), engine


@pytest.mark.parametrize("policy", ["target", "draft", "self_consistency", "arbitrage"])
async def test_policies_do_the_same_over_a_link(policy: str) -> None:
    pairs = {role: await far_away(role) for role in ("draft", "target")}
    distant = Runtime({role: near for role, (near, _) in pairs.items()})
    direct = Runtime({role: ScriptedEngine(role, TEXT) for role in ("draft", "target")})

    async with distant, direct:
        apart = await distant.complete(Request.ask("?", policy))
        here = await direct.complete(Request.ask("?", policy))

    assert apart.text == here.text == TEXT
    for role, (_, engine) in pairs.items():
        assert engine.running == 0
        if role in apart.usage:
            assert apart.usage[role].generated == engine.generated_tokens


async def test_leaving_stops_the_far_engine_and_counts_all() -> None:
    near, engine = await far_away("target", seconds_per_token=0.002)
    stream = near.generate([2, 3], Sampling(100))
    await anext(stream)
    assert engine.running == 1

    await stream.aclose()

    assert engine.running == 0
    assert stream.generated_tokens == engine.generated_tokens > 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_stream_that_was_never_asked_costs_nothing() -> None:
    near, engine = await far_away("target")
    stream = near.generate([2, 3], Sampling(100))

    await stream.aclose()

    assert (stream.generated_tokens, engine.generated_tokens) == (0, 0)


async def test_reads_scores_and_errors_come_through() -> None:
    near, engine = await far_away("target", max_model_len=50, scores=lambda text: 0.25)

    assert (await near.read([2, 3], [4, 5])).logprobs == (await engine.read([2, 3], [4, 5])).logprobs
    assert (await near.score([2, 3])).value == 0.25
    with pytest.raises(RequestError, match="exceed max_model_len 50"):
        await anext(near.generate([2] * 40, Sampling(40)))
    stream = near.generate([2], Sampling(40))
    await anext(stream)
    engine.kill()
    with pytest.raises(EngineError, match="died"):
        await anext(stream)


async def test_near_end_has_the_properties_of_the_engine() -> None:
    near, engine = await far_away("target", max_model_len=50)

    for name in ("name", "max_model_len", "capabilities", "fingerprint", "model_fingerprint"):
        assert getattr(near, name) == getattr(engine, name)
    assert near.tokenizer.fingerprint == engine.tokenizer.fingerprint


async def test_near_end_learns_what_the_far_engine_finds_out_at_its_start() -> None:
    near, engine = await far_away("target", max_model_len=50)
    engine.max_model_len, engine.capabilities = 40, frozenset({Capability.READ})

    assert await near.start() is near

    assert (near.max_model_len, near.capabilities) == (40, frozenset({Capability.READ}))


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_of_tools_are_told_at_the_far_end(choice: str) -> None:
    """The near one need not load what parses them."""
    text = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    engine = ScriptedEngine("target", lambda _, sampling: text if sampling.structure else f"Well.\n{text}")
    near = LinkedEngine(_Deaf("target", ""), DirectLink(EngineHost(engine)))

    async with Runtime({"target": near}) as runtime:
        request = Request.ask("?", tools=(FunctionTool("weather"),), tool_choice=choice)
        completion = await runtime.complete(request)

    assert [call.name for call in completion.tool_calls] == ["weather"]
    assert completion.content == ("Well." if choice == "auto" else "")


class _Deaf(ScriptedEngine):
    async def parse_calls(self, *_: Any) -> Any:
        raise AssertionError("the near end is asked")

    structure_of_calls: Any = parse_calls
