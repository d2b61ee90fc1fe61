"""Callers learn the names of the operator's files, and not where they are; the log has both."""

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, ConfigError, RequestError
from reasonrt.policies.registry import register_policy, unregister_policy
from reasonrt.policies.single import Target
from reasonrt.ports import Engines
from reasonrt.serve.choice import Choice
from reasonrt.serve.wire.errors import to_api_error
from reasonrt.serve.wire.rendering import own_fields
from reasonrt.types import PolicyEvent, Stop

FILE = "/srv/secret-project/routers/features.json"


@pytest.mark.parametrize("kind", [ConfigError, RequestError, CapabilityError])
def test_error_names_the_file_alone(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        told = to_api_error(kind(f"{FILE} is no router"), "an-id")

    assert (told.status, told.message) == (400, "features.json is no router")
    assert FILE in caplog.text
    assert "an-id" in caplog.text


def test_warnings_and_fallbacks_name_the_file_alone() -> None:
    details = {"stopping": {"action": "go_on", "fallback": f"{FILE} is gone"}, "answer": FILE, "steps": 3}
    choice = Choice(0)
    choice.completion = Completion((), FinishReason.STOP, {}, 0.0, details, warnings={"stopping": f"{FILE} is gone"})

    own = own_fields(choice)

    assert own.warnings == {"stopping": "features.json is gone"}
    assert own.details["stopping"] == {"action": "go_on", "fallback": "features.json is gone"}
    assert (own.details["answer"], own.details["steps"]) == (FILE, 3)  # it may be what the caller asked for


@dataclass
class _Warning(Target):
    """Its router was there when the server started, and is not any more."""

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        async with aclosing(super().solve(request, engines)) as events:
            async for event in events:
                yield replace(event, warnings={"speculation": f"{FILE} is gone"}) if isinstance(event, Stop) else event


@pytest.fixture(scope="module")
def warning(start: Any) -> Iterator[Any]:
    register_policy("warning", _Warning)
    yield start()
    unregister_policy("warning")


@pytest.mark.parametrize("is_stream", [True, False])
def test_answer_of_a_server_names_no_folder_and_its_log_does(
    warning: Any, caplog: pytest.LogCaptureFixture, is_stream: bool
) -> None:
    body = {"model": "warning", "messages": [{"role": "user", "content": "3 + 4?"}], "stream": is_stream}
    with caplog.at_level(logging.INFO):
        answer = warning.http().post("/v1/chat/completions", json=body)
        deadline = time.monotonic() + 5  # it is written after the answer
        while FILE not in str([getattr(record, "fields", {}).get("warnings") for record in caplog.records]):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert '"speculation":"features.json is gone"' in answer.text
    assert "secret-project" not in answer.text


async def test_sdk_keeps_the_whole_path() -> None:
    options = {"target": {"stopping": {"certificate": FILE}}}
    completion = await Runtime({"target": ScriptedEngine("target", "7")}, options).complete(Request.ask("?"))

    assert FILE in completion.warnings["stopping"]
