"""What the speculation bench compares: families of settings, the one of each that is timed, and variants of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasonrt.errors import ConfigError, shown
from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec

MAX_LOSS = 0.015
"""The accuracy that may be lost against the target; a family's operating point is the cheapest setting within it."""

_REWARDS = (0.7, 0.85, 0.95, 0.99)
_CLASSIFIER = {"router_file": "zoo:nano-classifier"}
SWEEPS: dict[str, list[PolicySpec]] = {
    "random": [PolicySpec("random", {"threshold": 0.7})],
    "random (verified)": [PolicySpec("random", {"threshold": 0.7, "verify": True})],
    "entropy": [PolicySpec("entropy", {"threshold": t}) for t in (0.2, 0.6)],
    "specreason": [PolicySpec("specreason", {"threshold": 5.0})],
    "rsd": [PolicySpec("rsd", {"threshold": t}) for t in _REWARDS],
    "rsd (verified)": [PolicySpec("rsd", {"threshold": t, "verify": True}) for t in _REWARDS],
    "arbitrage": [PolicySpec("arbitrage", {"threshold": t}) for t in (0.01, 0.03, 0.06)],
    "arbitrage (unverified)": [PolicySpec("arbitrage", {"threshold": 0.03, "verify": False})],
    "arbitrage (whole steps)": [PolicySpec("arbitrage", {"threshold": 0.03, "verify": False, "keep_prefix": 0.0})],
    "arbitrage (classifier)": [PolicySpec("arbitrage", {"threshold": 0.03, **_CLASSIFIER})],
}
"""Each family of settings, from which one is timed. The verified ones show what their router is worth in our loop."""

OURS = "arbitrage"
"""The family that all other arms are compared with, as they are with the target."""

BOUNDS = [PolicySpec("target"), PolicySpec("draft"), PolicySpec("oracle")]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the bench: what it is called, and what runs."""

    name: str
    policy: PolicySpec


def accuracy_arms(families: Sequence[str]) -> list[PolicySpec]:
    return [*BOUNDS, *(spec for family in families for spec in SWEEPS[family])]


def operating_points(report: Report, families: Sequence[str]) -> dict[str, PolicySpec]:
    """Per family the setting that asks the target least, of those within `MAX_LOSS` of its accuracy; without one,
    the most accurate."""
    rows = {row["policy"]: row for row in report.rows()}
    target = rows["target"]["accuracy"]

    def cost(spec: PolicySpec) -> tuple[bool, float]:
        row = rows[spec.label]
        loss = target - row["accuracy"]
        return loss > MAX_LOSS, loss if loss > MAX_LOSS else row["engine_tokens"].get("target", 0)

    return {family: min(SWEEPS[family], key=cost) for family in families}


def timing_arms(points: dict[str, PolicySpec], token_level: Sequence[str], skipped: Sequence[str]) -> list[Arm]:
    """The arms that are timed: bounds, vLLM's own token-level speculation, operating points, and variants of ours."""
    arms = [Arm("target", PolicySpec("target")), Arm("draft", PolicySpec("draft"))]
    arms += [Arm(role, PolicySpec("target", {"engine": role})) for role in token_level]
    arms += [Arm(family, spec) for family, spec in points.items()]
    for family in ("arbitrage", "arbitrage (classifier)"):
        if family in points:
            arms.append(_variant(family, "lock-step", points[family], {"look_ahead": 0}))
    for role in token_level if "arbitrage" in points else ():
        arms.append(_variant("arbitrage", f"on {role}", points["arbitrage"], {"target": role}))
    if "arbitrage" in points:
        variants: dict[str, dict[str, Any]] = {
            "warm target": {"warm_target": True},
            "start early": {"start_early": 1.0},
            "price 0.2": {"price": 0.2},
            "price 1": {"price": 1.0},
        }
        for name, options in variants.items():
            arms.append(_variant("arbitrage", name, points["arbitrage"], options))
    if "arbitrage (whole steps)" in points:
        arms.append(
            _variant(
                "arbitrage (whole steps)", "reject early", points["arbitrage (whole steps)"], {"reject_early": True}
            )
        )
    return [arm for arm in arms if arm.name not in skipped]


def check_skipped(families: Sequence[str], token_level: Sequence[str], skipped: Sequence[str]) -> None:
    """Refuse, before anything has run, arms that are not there and those that every row is compared with.

    Raises:
        ConfigError: names the arm.
    """
    arms = timing_arms({family: SWEEPS[family][0] for family in families}, token_level, ())
    known = [arm.name for arm in arms if arm.name not in ("target", "draft")]
    if unknown := [name for name in skipped if name not in known]:
        raise ConfigError(f"cannot skip the arm {shown(unknown[0])}; it can be any of: {'; '.join(known)}")


def _variant(family: str, name: str, spec: PolicySpec, options: dict[str, Any]) -> Arm:
    return Arm(f"{family}, {name}", PolicySpec(spec.name, {**spec.options, **options}))
