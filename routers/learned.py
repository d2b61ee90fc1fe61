"""Routers that were learned from recorded steps (`reasonrt calibrate router`), and the JSON file that each is.

A file names the draft, the target and, where one is asked, the router model that it was learned for: by their model
fingerprints, so that a router is never used on models that it knows nothing about.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter

from reasonrt.config import ZOO_FOLDER, ZOO_PREFIX
from reasonrt.errors import ConfigError, shown
from reasonrt.files import FileKind
from reasonrt.ports import OPERATOR_ONLY, Engine
from reasonrt.routers.base import Router
from reasonrt.routers.features import FEATURES, features
from reasonrt.routers.prompts import MARKED, StepPrompt
from reasonrt.transcript import Transcript
from reasonrt.trees import Trees
from reasonrt.types import Request, Step

FORMAT = "reasonrt-router/2"
DECIMALS = 2
"""Of a predicted advantage: rollouts tell no finer differences apart, and what is equal should rank as equal."""


@dataclass(frozen=True, slots=True)
class RouterFile:
    """A learned router as it is stored.

    Attributes:
        kind: what it looks at: the features of a step, or the score of a router model.
        models: role to `Engine.model_fingerprint`: `draft`, `target` and, for kind `engine`, `router`.
        trees: kind `features`: from `FEATURES` to the expected advantage.
        curve: kind `engine`: (scores, advantages), both ascending: from the model's score to the expected advantage.
        report: what was measured on steps held out.

    Raises:
        ValueError: trees of other features, a curve that is none, or neither trees nor an engine to ask.
    """

    kind: Literal["features", "engine"]
    models: Mapping[str, str]
    trees: Trees | None = None
    curve: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (0.0,))
    report: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        scores, advantages = self.curve
        if self.trees is None and (self.kind == "features" or "router" not in self.models):
            raise ValueError("it asks neither trees nor an engine")
        if self.trees is not None and self.trees.num_features > len(FEATURES):
            raise ValueError(f"its trees read {self.trees.num_features} features, there are {len(FEATURES)}")
        if not scores or len(scores) != len(advantages) or list(scores) != sorted(set(scores)):
            raise ValueError("its curve must be scores that ascend, and as many advantages")
        if not all(map(math.isfinite, (*scores, *advantages))):
            raise ValueError("its curve holds a number that is not finite")

    def save(self, file: Path) -> None:
        value = {
            "format": FORMAT,
            "kind": self.kind,
            "models": dict(self.models),
            "features": list(FEATURES),
            "trees": self.trees.to_json() if self.trees else None,
            "curve": self.curve,
            "report": self.report,
        }
        _FILE.write(file, json.dumps(value) + "\n")

    def bind(self, engines: Mapping[str, Engine]) -> Router:
        """The router for one request on `engines`.

        Raises:
            ConfigError: an engine is missing, or another model than this router was learned for.
        """
        for role, fingerprint in self.models.items():
            engine = engines.get(role)
            if engine is None:
                raise ConfigError(
                    f"the router asks an engine {shown(role)} and there is none; add it to the configuration"
                )
            if engine.model_fingerprint != fingerprint:
                raise ConfigError(
                    f"the router was learned for another {role} ({fingerprint[:12]}, this one is "
                    f"{engine.model_fingerprint[:12]}); run `reasonrt calibrate router` for this pair"
                )
        if self.trees is not None:
            return FeatureRouter(self.trees)
        return ModelRouter(engines["router"], *self.curve)


@dataclass
class LearnedOptions:
    """Options of `arbitrage`, source: Arbitrage (arXiv 2512.05033).

    Attributes:
        router_file: what `reasonrt calibrate router` wrote, or `zoo:NAME`.
    """

    router_file: Annotated[str, OPERATOR_ONLY] = "zoo:nano-features"


def bind_learned(options: LearnedOptions, request: Request, engines: Mapping[str, Engine]) -> Router:
    """The router of a file, for one request; see `RouterFile.bind`."""
    return load_router(options.router_file).bind(engines)


def roles_of_learned(options: LearnedOptions) -> tuple[str, ...]:
    """`router`, where the file asks a router model."""
    with suppress(ConfigError):  # raised when the router is built
        return ("router",) if "router" in load_router(options.router_file).models else ()
    return ()


class FeatureRouter:
    """The advantage that the trees expect of a step's features, in value: probability of a right end, in [-1, 1]."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return round(self._trees(features(transcript, step)), DECIMALS)


class ModelRouter:
    """The advantage that a classifier expects after reading question, marked history and step.

    One forward pass that reads the prefix cache; its score, P(target better), goes through a calibration curve.

    Source: Arbitrage (arXiv 2512.05033), section 4.2 and appendix C; the curve is ours.
    """

    reads_logprobs = False

    def __init__(self, engine: Engine, scores: Sequence[float], advantages: Sequence[float]) -> None:
        self._prompt = StepPrompt(engine, MARKED)
        self._scores, self._advantages = scores, advantages

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        score = await self._prompt.score(transcript, step)
        return round(interpolate(score, self._scores, self._advantages), DECIMALS)


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The piecewise linear curve through the points (xs ascending, ys); constant outside of them."""
    right = bisect_right(xs, x)
    if right == 0 or right == len(xs):
        return ys[0] if right == 0 else ys[-1]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


@lru_cache(maxsize=32)
def load_router(name: str) -> RouterFile:
    """The router file `name`: a path, or `zoo:NAME` for one that ships.

    Raises:
        ConfigError: no such file, or no router in it.
    """
    file = Path(name).expanduser()
    if name.startswith(ZOO_PREFIX):
        file = ZOO_FOLDER.parent / "routers" / f"{name.removeprefix(ZOO_PREFIX)}.json"
    value = _FILE.read_json(file)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"{file} has format {shown(found)}, this version reads {FORMAT!r}; make it again with "
            "`reasonrt calibrate router`"
        )
    router = _FILE.validate(_ROUTER, value, str(file))
    if router.kind == "features" and value.get("features") != list(FEATURES):
        raise ConfigError(f"{file} was learned from other features than there are; {_FILE.way_out}")
    return router


_FILE = FileKind(ConfigError, "make it with `reasonrt calibrate router`", most_bytes=1 << 23)
_ROUTER: TypeAdapter[RouterFile] = TypeAdapter(RouterFile)
