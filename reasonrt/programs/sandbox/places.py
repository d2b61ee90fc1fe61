"""How many sessions of a sandbox there may be at the same time."""

import asyncio

from reasonrt.errors import EngineError
from reasonrt.programs.sandbox.settings import SandboxSettings


class Places:
    """Places for sessions; whoever waits for one too long is told so."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._free = asyncio.Semaphore(settings.max_workers)

    async def take(self) -> None:
        """Raises: EngineError: none was given back within `checkout_s`."""
        try:
            async with asyncio.timeout(self._settings.checkout_s):
                await self._free.acquire()
        except TimeoutError:
            raise EngineError(
                f"no sandbox was free within {self._settings.checkout_s:g} s: all {self._settings.max_workers}"
                " are in use; close sessions or raise max_workers"
            ) from None

    def give_back(self) -> None:
        self._free.release()
