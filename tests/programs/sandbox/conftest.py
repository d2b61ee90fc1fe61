"""Sandboxes of each backend, started; and a host that answers by name."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from reasonrt.programs.sandbox.base import Host, HostCall
from reasonrt.programs.sandbox.build import BACKENDS, SandboxTool, build_sandbox

Answer = Callable[..., Any]


@pytest.fixture(params=sorted(BACKENDS))
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[SandboxTool]:
    built = build_sandbox(request.param, min_workers=1)
    await built.start()
    yield built
    await built.aclose()


@pytest.fixture
def host_of() -> Callable[..., Host]:
    """A host whose functions are given by name; each takes what the program gave, and may be asynchronous."""

    def make(**functions: Answer) -> Host:
        async def host(call: HostCall) -> Any:
            answer = functions[call.name](*call.args, **call.kwargs)
            return await answer if isinstance(answer, Awaitable) else answer

        return host

    return make
