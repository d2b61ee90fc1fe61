"""What a job makes of its choices: no random numbers are used twice, in a choice or across them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.ports import Engine
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.wire.requests import ChatRequest, parse
from reasonrt.types import Sampling

TEXT = "".join(f"step {index}\n\n" for index in range(6)) + r"\boxed{7}"


class Drawing(ScriptedEngine):
    """Keeps the seed of each generation."""

    def __init__(self, name: str, text: str, drawn: list[int | None]) -> None:
        super().__init__(name, continuing(text))
        self.drawn = drawn

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        self.drawn.append(sampling.seed)
        return super().generate(prompt_token_ids, sampling, cache_salt)


@pytest.mark.parametrize(
    "policy", ["target", "self_consistency", "rsd", "rsd@verify=true", "rsd@look_ahead=0,keep_prefix=0.5"]
)
async def test_no_two_generations_of_a_seeded_request_draw_the_same_numbers(policy: str) -> None:
    """A seed with a number added would meet those of its neighbours, and one seed for all calls would meet itself."""
    drawn: dict[str, list[int | None]] = {"draft": [], "target": []}
    engines: dict[str, Engine] = {"draft": Drawing("draft", TEXT.replace("step 3", "stop 3"), drawn["draft"])}
    engines |= {"target": Drawing("target", TEXT, drawn["target"]), "reward": ScriptedEngine("reward", "")}
    runtime = Runtime(engines)
    body = {"model": policy, "messages": [{"role": "user", "content": "?"}], "n": 3, "seed": 7, "temperature": 1}
    if policy == "self_consistency":
        body["reasonrt"] = {"options": {"k": 5}}

    job = Catalog(runtime, ServeConfig()).to_job(parse(ChatRequest, json.dumps(body).encode()))
    for choice in job.choices:
        await runtime.complete(choice)

    for seeds in drawn.values():
        assert len(seeds) == len(set(seeds))
    assert sum(map(len, drawn.values())) >= len(job.choices)
    assert None not in drawn["draft"] + drawn["target"]
