"""`arbitrage`: the target writes the steps whose advantage a learned router predicts to be worth it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from reasonrt.errors import ConfigError
from reasonrt.policies.speculation.loop import Speculation
from reasonrt.ports import PacedEngine
from reasonrt.routers.base import Router
from reasonrt.routers.learned import load_router
from reasonrt.types import Request


@dataclass
class Arbitrage(Speculation):
    """`threshold` is on the advantage that a learned router predicts: the gain in the probability of a right end.

    Attributes:
        router_file: what `reasonrt calibrate router` wrote, or `zoo:NAME`.

    Source: Arbitrage (arXiv 2512.05033).
    """

    threshold: float = 0.03
    verify: bool = True
    keep_prefix: float = 0.95
    router_file: str = "zoo:nano-features"

    @property
    def optional_engines(self) -> tuple[str, ...]:
        with suppress(ConfigError):  # told when it is asked for
            return ("router",) if "router" in load_router(self.router_file).models else ()
        return ()

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        return load_router(self.router_file).bind(engines)
