"""Policies by name: our own, those that speculate with a router, and those of other packages.

Other packages add a policy by the entry point `reasonrt.policies`, which names its class, or a router by
`reasonrt.routers`, which names a `RouterKind`. One that cannot be loaded is named once in the log and left out.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from reasonrt.errors import ConfigError, RequestError
from reasonrt.policies.options import option_names, read_options, refuse_operator_only
from reasonrt.policies.self_consistency import SelfConsistency
from reasonrt.policies.single import Draft, Target
from reasonrt.policies.speculation.oracle import Oracle
from reasonrt.policies.speculation.policy import SpeculationKind
from reasonrt.policies.stopping.policy import CommonOptions, stopped
from reasonrt.policies.stopping.service import ServedCertificates
from reasonrt.ports import Policy
from reasonrt.routers.registry import ROUTERS, RouterKind

_log = logging.getLogger(__name__)
_POLICIES, _ROUTERS = "reasonrt.policies", "reasonrt.routers"
CONTROLS = frozenset({"oracle", *(name for name, kind in ROUTERS.items() if kind.is_control)})
"""What is there to compare with; a server shows it only where it is configured."""


class PolicyKind(Protocol):
    """What makes policies from options: a class of policies, or speculation with one kind of router."""

    def from_options(self, options: Mapping[str, Any], /) -> Policy: ...

    def option_types(self) -> tuple[type, ...]: ...


_OWN: Mapping[str, PolicyKind] = {
    "target": Target,
    "draft": Draft,
    "self_consistency": SelfConsistency,
    "oracle": Oracle,
    **{name: SpeculationKind(name, kind) for name, kind in ROUTERS.items()},
}


def policy_names() -> list[str]:
    """Every policy that can be built, in alphabetical order; what cannot be loaded is left out."""
    return sorted({*_OWN, *(entry.name for entry in _entries() if isinstance(_load(entry), _Found))})


def build_policy(name: str, options: Mapping[str, Any], certificates: ServedCertificates | None = None) -> Policy:
    """The policy `name` for one request, under a stopping rule where the options name one.

    Args:
        certificates: of the runtime that the request runs on.

    Raises:
        RequestError: no such policy, or options that it does not take.
        ConfigError: the package that announces it cannot be loaded.
    """
    common = {key: value for key, value in options.items() if key in option_names(CommonOptions)}
    policy = find_policy(name).from_options({key: value for key, value in options.items() if key not in common})
    if not common:
        return policy
    return stopped(policy, name, read_options(CommonOptions, common, name), certificates or ServedCertificates())


def refuse_operator_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what a request over HTTP may not set.

    Raises:
        RequestError: names the first such option.
    """
    refuse_operator_only((*find_policy(name).option_types(), CommonOptions), options)


def find_policy(name: str) -> PolicyKind:
    """What makes the policy `name`.

    Raises:
        RequestError: no such policy.
        ConfigError: the package that announces it cannot be loaded.
    """
    return _OWN[name] if name in _OWN else _plugin(name)


def broken_plugins() -> list[str]:
    """One line for each policy or router of another package that cannot be loaded."""
    loaded = (_load(entry) for entry in _entries())
    return [found.message for found in loaded if isinstance(found, _Broken)]


@cache  # of what is found: a search reads the metadata of every installed package
def _plugin(name: str) -> PolicyKind:
    for entry in _entries():
        if entry.name == name:
            found = _load(entry)
            if isinstance(found, _Broken):
                raise ConfigError(found.message)
            return found.kind
    raise RequestError(f"unknown policy {name[:64]!r}; there are {', '.join(policy_names())}")


class _Found:
    def __init__(self, kind: PolicyKind) -> None:
        self.kind = kind


class _Broken:
    def __init__(self, message: str) -> None:
        self.message = message


def _entries() -> Iterator[EntryPoint]:
    for group in (_POLICIES, _ROUTERS):
        yield from (entry for entry in entry_points(group=group) if entry.name not in _OWN)


@cache
def _load(entry: EntryPoint) -> _Found | _Broken:
    try:
        return _Found(_as_kind(entry.name, entry.load()))
    except Exception as error:  # noqa: BLE001 - code of others runs here: whatever it raises, the rest is served
        what = "router" if entry.group == _ROUTERS else "policy"
        reason = f"{type(error).__name__}: {error}"
        message = (
            f"{what} {entry.name!r} is announced as {entry.value} and cannot be loaded: {reason:.200}; repair or "
            "uninstall the package that announces it"
        )
        _log.warning("%s; it is left out", message)
        return _Broken(message)


def _as_kind(name: str, loaded: Any) -> Any:
    if isinstance(loaded, RouterKind):
        return SpeculationKind(name, loaded)
    if not isinstance(loaded, type):
        raise TypeError(f"it is {loaded!r:.60}, and neither a class of policies nor a RouterKind")
    if missing := [part for part in ("engines", "from_options", "solve") if not hasattr(loaded, part)]:
        raise TypeError(f"{loaded.__name__} has no {missing[0]}, which every policy must have")
    if Policy in loaded.__mro__:
        return loaded
    return type(loaded.__name__, (loaded, Policy), {"__module__": loaded.__module__})  # with the protocol's defaults
