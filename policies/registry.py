"""Policies by name: our own, and those of others that announce themselves by the entry point `reasonrt.policies`."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from reasonrt.errors import ConfigError, RequestError
from reasonrt.policies.self_consistency import SelfConsistency
from reasonrt.policies.single import Draft, Target
from reasonrt.policies.speculation.arbitrage import Arbitrage
from reasonrt.policies.speculation.baselines import RSD, Entropy, Random, SpecReason
from reasonrt.policies.speculation.oracle import Oracle
from reasonrt.policies.stopping.policy import OPTIONS as STOPPING_OPTIONS
from reasonrt.policies.stopping.policy import around
from reasonrt.policies.stopping.service import Guards
from reasonrt.ports import Policy

_GROUP = "reasonrt.policies"
_OWN: dict[str, type[Policy]] = {
    "target": Target,
    "draft": Draft,
    "self_consistency": SelfConsistency,
    "arbitrage": Arbitrage,
    "rsd": RSD,
    "specreason": SpecReason,
    "entropy": Entropy,
    "random": Random,
    "oracle": Oracle,
}


def policy_names() -> list[str]:
    return sorted({*_OWN, *(entry.name for entry in entry_points(group=_GROUP))})


def build_policy(name: str, options: Mapping[str, Any], guards: Guards | None = None) -> Policy:
    """The policy `name` for one request, under a stopping rule where the options name one.

    Args:
        guards: of the runtime that the request runs on.

    Raises:
        RequestError: no such policy, or options that it does not take.
        ConfigError: the package that announces it cannot be imported.
    """
    own = {key: value for key, value in options.items() if key not in STOPPING_OPTIONS}
    policy = (_OWN.get(name) or _plugin(name)).from_options(own)
    is_stopped = any(options.get(key) is not None for key in STOPPING_OPTIONS)
    return around(policy, name, options, guards or Guards()) if is_stopped else policy


def roles_of(name: str, options: Mapping[str, Any]) -> list[str]:
    """The engines that a policy asks, and those that it makes use of where they are.

    Raises:
        RequestError, ConfigError: as `build_policy`.
    """
    policy = build_policy(name, options)
    return [*policy.engines, *policy.optional_engines]


@cache  # of what is found: a search reads the metadata of every installed package
def _plugin(name: str) -> type[Policy]:
    for entry in entry_points(group=_GROUP, name=name):
        try:
            kind: type[Policy] = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"policy {name!r} is announced as {entry.value} and cannot be loaded: {error}; "
                "repair or uninstall the package that announces it"
            ) from error
        return kind
    raise RequestError(f"unknown policy {name!r}; there are {', '.join(policy_names())}")
