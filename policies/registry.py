"""Policies by name: our own, those that speculate with a router, and those of other packages.

Other packages add a policy by the entry point `reasonrt.policies`, which names its class, or a router by
`reasonrt.routers`, which names a `RouterKind`. One that cannot be loaded, or not be built, is named once in the log
and left out.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from reasonrt.errors import ConfigError, ReasonRTError, RequestError
from reasonrt.options import option_names, options_schema, read_options
from reasonrt.plugins import FAILURES, Plugin, PluginGroup, reason_of
from reasonrt.policies.block_diffusion import BlockDiffusion
from reasonrt.policies.options import refuse_operator_only
from reasonrt.policies.program_search import ProgramSearch
from reasonrt.policies.self_consistency import SelfConsistency
from reasonrt.policies.single import Draft, Target
from reasonrt.policies.speculation.auto import Auto
from reasonrt.policies.speculation.oracle import Oracle
from reasonrt.policies.speculation.policy import SpeculationKind
from reasonrt.policies.stopping.policy import CommonOptions, stopped
from reasonrt.policies.stopping.service import ServedCertificates
from reasonrt.ports import Policy
from reasonrt.routers.registry import ROUTERS, RouterKind

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
    "block_diffusion": BlockDiffusion,
    "program_search": ProgramSearch,
    "oracle": Oracle,
    "auto": Auto,
    **{name: SpeculationKind(name, kind) for name, kind in ROUTERS.items()},
}


_registered: dict[str, PolicyKind] = {}


def policy_names() -> list[str]:
    """Every policy that can be built, in alphabetical order; what cannot be loaded is left out."""
    return sorted({*_OWN, *_registered, *(plugin.name for plugin in policy_plugins() if not plugin.problem)})


def build_policy(name: str, options: Mapping[str, Any], certificates: ServedCertificates | None = None) -> Policy:
    """The policy `name` for one request, under a stopping rule where the options name one.

    Args:
        certificates: of the runtime that the request runs on.

    Raises:
        RequestError: no such policy, or options that it does not take.
        PluginError: the package that announces it cannot be loaded.
    """
    common = {key: value for key, value in options.items() if key in option_names(CommonOptions)}
    own = {key: value for key, value in options.items() if key not in common}
    try:
        policy = find_policy(name).from_options(own)
        if name not in _OWN:
            _check_words(policy)  # which may be made of its options
    except ReasonRTError:
        raise
    except FAILURES as error:
        if name in _OWN:
            raise
        raise RequestError(f"policy {name!r} does not take its options: {reason_of(error)}") from error
    if not common:
        return policy
    return stopped(policy, name, read_options(CommonOptions, common, name), certificates or ServedCertificates())


def refuse_operator_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what a request over HTTP may not set.

    Raises:
        RequestError: names the first such option.
    """
    refuse_operator_only((*find_policy(name).option_types(), CommonOptions), options)


def schema_of_options(name: str, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON schema of what the policy `name` takes as options, and what it refers to by name.

    What only the operator may set is `readOnly`.

    Args:
        ref_template: of references, with `{model}` for a name.
    """
    return options_schema((*find_policy(name).option_types(), CommonOptions), ref_template)


def find_policy(name: str) -> PolicyKind:
    """What makes the policy `name`.

    Raises:
        RequestError: no such policy.
        PluginError: the package that announces it cannot be loaded.
    """
    return _OWN.get(name) or _registered.get(name) or _plugin(name)


def register_policy(name: str, policy: type | RouterKind) -> None:
    """Let requests of this process name a policy that no installed package announces.

    Args:
        policy: a class of policies, or a router to speculate with; it takes the place of one registered before.

    Raises:
        ConfigError: reasonrt has a policy of that name, or it is no policy.
    """
    try:
        _registered[name] = _read_router(name, policy) if isinstance(policy, RouterKind) else _read_policy(name, policy)
    except FAILURES as error:
        raise ConfigError(f"policy {name[:64]!r} cannot be registered: {reason_of(error)}") from error


def unregister_policy(name: str) -> None:
    """Forget what was registered as `name`, if anything was."""
    _registered.pop(name, None)


def policy_plugins() -> list[Plugin[PolicyKind]]:
    """The policies and routers of other packages, those that cannot be loaded among them."""
    return [plugin for group in _GROUPS for plugin in group.all()]


@cache  # of what is found: a search reads the metadata of every installed package
def _plugin(name: str) -> PolicyKind:
    found = [plugin for group in _GROUPS if (plugin := group.find(name))]
    if not found:
        raise RequestError(f"unknown policy {name[:64]!r}; there are {', '.join(policy_names())}")
    return min(found, key=lambda plugin: bool(plugin.problem)).get()


def _read_policy(name: str, loaded: Any) -> PolicyKind:
    if not isinstance(loaded, type):
        raise TypeError(f"it is {loaded!r:.60}, and not a class of policies")
    if missing := [part for part in ("engines", "from_options", "solve") if not hasattr(loaded, part)]:
        raise TypeError(f"{loaded.__name__} has no {missing[0]}, which every policy must have")
    kind: Any = loaded
    if Policy not in loaded.__mro__:  # with the protocol's defaults
        kind = type(loaded.__name__, (loaded, Policy), {"__module__": loaded.__module__})
    return _tried(name, kind)


def _read_router(name: str, loaded: Any) -> PolicyKind:
    if not isinstance(loaded, RouterKind):
        raise TypeError(f"it is {loaded!r:.60}, and not a RouterKind")
    return _tried(name, SpeculationKind(name, loaded))


def _tried(name: str, kind: PolicyKind) -> PolicyKind:
    """`kind`, after what a server asks of every policy when it starts.

    Raises:
        Exception: whatever is wrong with it.
    """
    if name in _OWN or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"{name!r} is the name of a policy of reasonrt, or none that a request can spell")
    for options in kind.option_types():
        option_names(options)
    try:
        policy = kind.from_options({})
    except RequestError:  # it has an option without a default
        return kind
    _check_words(policy)
    return kind


def _check_words(policy: Policy) -> None:
    """Raises: TypeError: what a policy says of itself is not of the type that the runtime takes it for."""
    for words in ("engines", "optional_engines", "tools"):
        named = getattr(policy, words)
        if not isinstance(named, tuple) or not all(isinstance(name, str) for name in named):
            raise TypeError(f"{words} is {named!r:.60}, and not a tuple of names")
    if not isinstance(policy.num_streams, int):
        raise TypeError(f"num_streams is {policy.num_streams!r:.60}, and not a number")


_GROUPS = (
    PluginGroup("policy", "reasonrt.policies", _read_policy),
    PluginGroup("router", "reasonrt.routers", _read_router),
)
