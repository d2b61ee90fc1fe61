"""A sandbox that starts when the first session is opened: most runtimes never run a program."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from reasonrt.programs.sandbox.base import Cell, CellLimits, Host, Sandbox, Session
from reasonrt.programs.sandbox.build import SandboxTool


class OnDemandSandbox:
    """Stands for the sandbox that `make` makes.

    What its start raises, the first session raises, and each one after it tries again.

    Args:
        backend: of what `make` makes.
    """

    def __init__(self, make: Callable[[], SandboxTool], backend: str = "monty") -> None:
        self._make, self.backend = make, backend
        self._made: SandboxTool | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close what was started. Idempotent."""
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def open(
        self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> Session:
        return await (await self._started()).open(values, functions, limits)

    async def load(self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None) -> Session:
        return await (await self._started()).load(state, functions, limits)

    async def resume(
        self, state: bytes, reply: Any, host: Host, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> tuple[Session, Cell]:
        return await (await self._started()).resume(state, reply, host, functions, limits)

    async def _started(self) -> Sandbox:
        async with self._starting:
            if self._made is None:
                made = self._make()
                await made.start()
                self._made = made
            return self._made
