"""Requests that nobody would think of: made up from `/openapi.json`, and every option of every policy.

`benchmarks/hostile.py --parts openapi` makes up more of the former.
"""

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from reasonrt import Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.options import option_names
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.registry import CONTROLS, find_policy, policy_names, register_policy, unregister_policy
from reasonrt.policies.stopping.policy import CommonOptions
from reasonrt.ports import Engine, Engines
from reasonrt.routers.published import EntropyRouter
from reasonrt.routers.registry import RouterKind
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.wire.errors import to_api_error
from reasonrt.serve.wire.requests import ChatRequest, parse
from reasonrt.types import FinishReason, PolicyEvent, Step, Stop

TEXT = "<think>\nOne.\n\n</think>\n\n\\boxed{7}"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.timeout(600)
def test_made_up_requests_meet_no_server_error_and_no_hang(start: Any, tmp_path: Path) -> None:
    server = start(bounds={"running": 8, "deadline_s": 5})
    command = [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--checks", CHECKS]
    command += ["--max-examples", "120", "--request-timeout", "10", "--seed", "1", "--continue-on-failure"]
    command += ["--workers", "1", "--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing"]

    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-6000:]
    answers = re.findall(
        r'reasonrt_http_responses_total{status="(\w+)"} (\d+)', httpx.get(server.url + "/metrics").text
    )
    assert sum(int(count) for _, count in answers) >= 600
    assert not [status for status, _ in answers if status.startswith("5")]
    assert server.working == 0


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ODD = st.sampled_from([10**400, -(10**400), 1e308, "\ud800", "\x00", "x" * 5000, "draft", "target", "zoo:none", "auto"])
JSON = st.recursive(
    SCALAR | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | ODD.map(str), inner, max_size=3),
    max_leaves=6,
)
YAML = st.sampled_from(
    [
        *("", "~", "null", ".nan", "-.inf", "0x10", "1e999", "1_0", "&a [*a]", "&a {b: *a}", "!!set {a}", "*b", "yes"),
        *("!!timestamp 2001-01-01", "!!binary aGk=", "!!omap [a: 1]", "!!python/none ''", "{1: 2}", "{[1]: 2}"),
        *("[" * 200, "{" * 200, "[" * 90 + "]" * 90, '"\\ud800"', '"\\ud83d\\ude00"', "'", "- a", "? a", "<<: {a: 1}"),
        "9" * 240,
    ]
)
"""What YAML takes and JSON has no word for."""


@dataclass
class Noted(PolicyOptions):
    """A plugin that reads its options by our door."""

    engine: str = "target"
    level: Annotated[int, Field(ge=0, le=9)] = 1
    places: list[str] = dataclasses.field(default_factory=list)
    engines = ("target",)

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        yield Step("x" * self.level, (), "target")
        yield Stop(FinishReason.STOP)


class Careless:
    """A plugin that takes its options as they come."""

    engines: tuple[str, ...] = ("target",)
    tools: tuple[str, ...] = ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.engines = (options.get("engine", "target"),)
        self.tools = options.get("tools", ())
        self.level = options.get("level", 1)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls(options)

    @classmethod
    def option_types(cls) -> tuple[type, ...]:
        return (Noted,)

    @property
    def num_streams(self) -> int:
        return int(self.level)

    def accept(self, request: Request, engines: Mapping[str, Engine]) -> None:
        if self.level > 9:
            raise ValueError("too loud")

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        yield Stop(FinishReason.STOP)


@dataclass
class Tolerance:
    tolerance: Annotated[int, Field(ge=0)] = 0


PLUGINS: dict[str, type | RouterKind] = {
    "noted": Noted,
    "careless": Careless,
    "tolerant": RouterKind(lambda options, request, engines: EntropyRouter(), 0.5, "none", options=Tolerance),
}


@pytest.fixture(scope="module")
def catalog() -> Iterator[Catalog]:
    """Of a server that shows every policy: our own, those to compare with, and plugins."""
    for name, kind in PLUGINS.items():
        register_policy(name, kind)
    roles = ("draft", "target", "router", "reward", "diffusion")
    defaults: dict[str, Any] = {name: {} for name in CONTROLS}
    config = ServeConfig.model_validate({"bounds": {"deadline_s": 1}})
    yield Catalog(Runtime({role: ScriptedEngine(role, TEXT) for role in roles}, defaults), config)
    for name in PLUGINS:
        unregister_policy(name)


def every_option(name: str) -> list[str]:
    return sorted({name for kind in (*find_policy(name).option_types(), CommonOptions) for name in option_names(kind)})


async def status_of(catalog: Catalog, body: Mapping[str, Any]) -> tuple[int, str]:
    """What the server answers, by all that it does with a request but sending it."""
    try:
        job = catalog.to_job(parse(ChatRequest, json.dumps(body).encode()))
        async with asyncio.timeout(5):
            await catalog._runtime.complete(job.choices[0])
    except Exception as error:  # noqa: BLE001 (as the server does)
        told = to_api_error(error, "an id")
        assert len(told.response().body) < 2000
        return told.status, repr(error)
    return 200, ""


@pytest.mark.parametrize("spelling", ["in the body", "in the model's name"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
async def test_no_option_of_any_policy_gives_a_server_error(
    catalog: Catalog, spelling: str, data: st.DataObject
) -> None:
    """Any JSON value, and in the model's name any YAML, plugins too."""
    policy = data.draw(st.sampled_from(catalog.policies))
    name = data.draw(st.sampled_from(every_option(policy)))
    body: dict[str, Any] = {"model": policy, "messages": [{"role": "user", "content": "3 + 4?"}], "max_tokens": 8}
    if spelling == "in the body":
        below = data.draw(st.sampled_from(["", "rule", "suffix", "schedule", "shadow"])) if name == "stopping" else ""
        value = data.draw(JSON)
        body["reasonrt"] = {"options": {name: {below: value} if below else value}}
    else:
        body["model"] = f"{policy}@{name}={data.draw(YAML | JSON.map(json.dumps))}"[:256]

    status, error = await status_of(catalog, body)

    assert status in (200, 400, 404), error


def test_every_policy_is_tried(catalog: Catalog) -> None:
    assert set(catalog.policies) == {*policy_names()} >= {*PLUGINS, "arbitrage", "oracle", "program_search"}
    assert sum(len(every_option(policy)) for policy in catalog.policies) > 100


@pytest.mark.parametrize(
    "model",
    [
        "arbitrage@target=[]",
        'arbitrage@verify="\\ud800"',
        "arbitrage@warm_target=null",
        "arbitrage@warm_target=&a [*a]",
        "target@engine={}",
        "rsd@threshold=x",
        "oracle@threshold=x",
        "oracle@threshold=null",
        "careless@engine=[]",
        "careless@engine={}",
        "careless@tools=1",
        "careless@level=x",
        "careless@level=[]",
        "careless@level=99",
    ],
)
async def test_what_no_option_is_is_refused(catalog: Catalog, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "3 + 4?"}], "max_tokens": 8}

    status, error = await status_of(catalog, body)

    assert status == 400, error


def test_openapi_shows_the_options_of_every_policy(running: Any) -> None:
    shown = running.http().get("/openapi.json").json()["components"]["schemas"]

    policies = {model["id"] for model in running.http().get("/v1/models").json()["data"]}
    options = {name.removeprefix("Options-"): schema for name, schema in shown.items() if name.startswith("Options-")}
    assert options.keys() == policies
    for policy, schema in options.items():
        assert sorted(schema["properties"]) == every_option(policy)
    of_any = shown["OwnFields"]["properties"]["options"]["anyOf"]
    assert {part["$ref"].rpartition("-")[2] for part in of_any} == policies
    assert shown["StoppingOptions"]["properties"]["certificate"]["readOnly"]
    assert options["arbitrage"]["properties"]["router_file"]["readOnly"]
    assert "readOnly" not in options["arbitrage"]["properties"]["verify"]
