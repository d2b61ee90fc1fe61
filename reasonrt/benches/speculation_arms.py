"""What the speculation bench compares: families of settings, the one of each that is timed, and variants of ours."""

from collections.abc import Mapping, Sequence
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
    "hand-over": [PolicySpec("arbitrage", {"threshold": t, "hand_over": True}) for t in (0.01, 0.03, 0.06)],
    "every step verified": [PolicySpec("arbitrage", {"threshold": -1.0})],
    "arbitrage (unverified)": [PolicySpec("arbitrage", {"threshold": 0.03, "verify": False})],
    "arbitrage (whole steps)": [PolicySpec("arbitrage", {"threshold": 0.03, "verify": False, "keep_prefix": 0.0})],
    "arbitrage (classifier)": [PolicySpec("arbitrage", {"threshold": 0.03, **_CLASSIFIER})],
}
"""Each family of settings, from which one is timed. The verified ones show what their router is worth in our loop."""

TOKENS_AHEAD = (2, 4, 8, 16, 32)
"""Of token-level speculation in the target's engine, where nothing else is asked for."""

BY_LOAD = "target, ahead by load"
"""The role of a target whose tokens ahead follow its batch size: `num_speculative_tokens_per_batch_size` of vLLM."""

_SCHEDULE = ((1, 4, 16), (5, 16, 8), (17, 64, 4))
"""Batch sizes from and to, and tokens ahead: many where a pass is bound by memory, few where it is bound by compute."""

OURS = "arbitrage"
"""The family that all other arms are compared with, as they are with the target."""

BOUNDS = [PolicySpec("target"), PolicySpec("draft"), PolicySpec("oracle")]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the bench: what it is called, and what runs."""

    name: str
    policy: PolicySpec


def token_level(tokens_ahead: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Roles of engines of the target that speculate token by token, to vLLM's settings of it."""
    draft = {role_ahead(n): {"method": "draft_model", "num_speculative_tokens": n} for n in tokens_ahead}
    most = max(n for _, _, n in _SCHEDULE)
    schedule = {"num_speculative_tokens_per_batch_size": [list(entry) for entry in _SCHEDULE]}
    return draft | {
        BY_LOAD: {"method": "draft_model", "num_speculative_tokens": most} | schedule,
        "target, n-gram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
    }


def role_ahead(tokens_ahead: int) -> str:
    return f"target, {tokens_ahead} ahead"


def tokens_ahead_of(settings: Mapping[str, Any], concurrency: int) -> int:
    """How many tokens an engine with these settings of vLLM drafts with so many concurrent generations."""
    schedule = settings.get("num_speculative_tokens_per_batch_size") or ()
    known = [n for begin, end, n in schedule if begin <= concurrency <= end]
    return int(known[0] if known else settings["num_speculative_tokens"])


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


def timing_arms(points: dict[str, PolicySpec], roles: Sequence[str], skipped: Sequence[str]) -> list[Arm]:
    """The arms that are timed: bounds, vLLM's own token-level speculation, operating points, and variants of ours.

    Args:
        roles: of the engines that speculate by themselves.
    """
    arms = [Arm("target", PolicySpec("target")), Arm("draft", PolicySpec("draft"))]
    arms += [Arm(role, PolicySpec("target", {"engine": role})) for role in roles]
    arms += [Arm(family, spec) for family, spec in points.items()]
    if "hand-over" in points and BY_LOAD in roles:
        arms.append(_variant("hand-over", f"to {BY_LOAD}", points["hand-over"], {"target": BY_LOAD}))
    if "arbitrage" in points:
        arms.append(Arm("auto", PolicySpec("auto", {"speculative": BY_LOAD} if BY_LOAD in roles else {})))
    for family in ("arbitrage", "arbitrage (classifier)"):
        if family in points:
            arms.append(_variant(family, "lock-step", points[family], {"look_ahead": 0}))
    if "arbitrage" in points and BY_LOAD in roles:
        arms.append(_variant("arbitrage", f"on {BY_LOAD}", points["arbitrage"], {"target": BY_LOAD}))
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


def left_out(
    families: Sequence[str], roles: Sequence[str], skipped: Sequence[str], only: Sequence[str] = ()
) -> list[str]:
    """The arms that are not timed: those that are skipped and, where some are named, all others.

    Raises:
        ConfigError: before anything has run: an arm that is not there, or that every row is compared with.
    """
    arms = timing_arms({family: SWEEPS[family][0] for family in families}, roles, ())
    known = [arm.name for arm in arms if arm.name not in ("target", "draft")]
    for verb, named in (("skip", skipped), ("single out", only)):
        if unknown := [name for name in named if name not in known]:
            raise ConfigError(f"cannot {verb} the arm {shown(unknown[0])}; it can be any of: {'; '.join(known)}")
    return [name for name in known if name in skipped or (only and name not in only)]


def _variant(family: str, name: str, spec: PolicySpec, options: dict[str, Any]) -> Arm:
    return Arm(f"{family}, {name}", PolicySpec(spec.name, {**spec.options, **options}))
