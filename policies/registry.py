"""Policies by name: our own, and those of others that announce themselves by the entry point `reasonrt.policies`."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from reasonrt.errors import RequestError
from reasonrt.policies.base import Policy
from reasonrt.policies.self_consistency import SelfConsistency
from reasonrt.policies.single import Draft, Target

_OWN: dict[str, type[Policy]] = {"target": Target, "draft": Draft, "self_consistency": SelfConsistency}


def policy_names() -> list[str]:
    return sorted({*_OWN, *(entry.name for entry in entry_points(group="reasonrt.policies"))})


def build_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy `name` for one request.

    Raises:
        RequestError: no such policy, or options that it does not take.
    """
    if name in _OWN:
        return _OWN[name].from_options(options)
    for entry in entry_points(group="reasonrt.policies", name=name):
        kind: type[Policy] = entry.load()
        return kind.from_options(options)
    raise RequestError(f"unknown policy {name!r}; there are {', '.join(policy_names())}")
