"""`RemoteEngine` before a real vLLM server: what only that can show. The contract runs on it too."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from reasonrt.engines.remote import RemoteEngine
from reasonrt.ports import Capability
from reasonrt.types import Message, Sampling

pytestmark = pytest.mark.vllm


async def test_vllm_gives_what_its_server_tells_of(
    remote_engine: RemoteEngine,
) -> None:
    assert remote_engine.capabilities == set(Capability) - {
        Capability.SCORE,
        Capability.TOOLS,
        Capability.VERIFY,
        Capability.VERIFY_SAMPLED,
    }
    assert remote_engine.max_model_len == 1024
    assert not [lack for lack in remote_engine.lacks if "structural_tag" in lack or "json" in lack]


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        ({"json": {"type": "array", "items": {"enum": [7, 8]}, "minItems": 1, "maxItems": 2}}, r"\[\s*[78][\s,78]*\]"),
        ({"regex": "qz{2,4}x"}, "qz{2,4}x"),
        ({"choice": ["qzx", "xzq"]}, "qzx|xzq"),
        ({"grammar": 'root ::= "qzx" | "xzq"'}, "qzx|xzq"),
    ],
)
async def test_vllm_holds_a_text_to_what_was_asked_for(
    remote_engine: RemoteEngine, structure: dict[str, Any], pattern: str
) -> None:
    prompt = remote_engine.tokenizer.chat((Message("user", "1 + 1"),))
    deltas = [delta async for delta in remote_engine.generate(prompt, Sampling(200, structure=structure))]
    text = remote_engine.tokenizer.decode([token_id for delta in deltas for token_id in delta.token_ids])

    assert re.fullmatch(pattern, text.strip())


async def test_vllm_reports_cached_tokens(remote_engine: RemoteEngine) -> None:
    prompt = remote_engine.tokenizer.chat((Message("user", "Sort these numbers in ascending order: " + "7, " * 40),))
    for _ in range(2):
        deltas = [delta async for delta in remote_engine.generate(prompt, Sampling(2))]

    assert deltas[-1].cached_tokens == (len(prompt) - 1) // 32 * 32


async def test_vllm_stops_working_when_the_stream_is_closed(remote_engine: RemoteEngine) -> None:
    async def generated() -> float:
        async with httpx.AsyncClient() as client:
            text = (await client.get(remote_engine.base_url.replace("/v1", "/metrics"))).text
        return sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:generation_tokens_total")
        )

    async def generated_in_the_end() -> float:
        """Once two looks agree; the server hears of what was closed a little later."""
        async with asyncio.timeout(30):
            known, before = await generated(), -1.0
            while known != before:
                await asyncio.sleep(0.3)
                known, before = await generated(), known
        return known

    prompt = remote_engine.tokenizer.chat((Message("user", "Sort these numbers: " + "7, " * 20),))
    before = await generated()
    streams = [remote_engine.generate(prompt, Sampling(600, temperature=2.0, seed=seed)) for seed in range(4)]
    for stream in streams:
        await anext(stream)

    for stream in streams:
        await stream.aclose()
    after = await generated_in_the_end()

    assert sum(stream.generated_tokens for stream in streams) <= after - before < 4 * 600
