"""What other packages add by entry points: loaded once, and left out where it does not work.

Whatever the loading of an entry point raises makes a `Plugin` with a problem, which is named once in the log and keeps
nothing else from working.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, EntryPoints, distributions
from typing import Any, Final, Generic, TypeVar

from reasonrt.errors import PluginError, ReasonRTError, in_one_line

T = TypeVar("T")
_log = logging.getLogger(__name__)

FAILURES: Final = (Exception, SystemExit)
"""What code of other packages may raise without ending this process; a module may call `sys.exit` at its import."""


@dataclass(frozen=True, slots=True)
class Plugin(Generic[T]):
    """One entry point, loaded.

    Attributes:
        kind: what it adds, such as `policy`.
        announced_as: the module and the name in it.
        value: None where there is a problem.
        problem: one line with the reason and the way out; empty where it works.
    """

    kind: str
    name: str
    announced_as: str
    value: T | None
    problem: str = ""

    def get(self) -> T:
        """Raises: PluginError: it does not work."""
        if self.value is None:
            raise PluginError(self.problem)
        return self.value


@dataclass(frozen=True, slots=True)
class PluginGroup(Generic[T]):
    """One group of entry points.

    Attributes:
        kind: what a message calls what it adds, such as `policy`.
        entry_points: its name, such as `reasonrt.policies`.
        read: from a name and the loaded object to what is used; raises where it cannot be used.
    """

    kind: str
    entry_points: str
    read: Callable[[str, Any], T]

    def all(self) -> list[Plugin[T]]:
        """What installed packages announce, those that do not work among them."""
        return [_load(self, entry) for entry in _entries(self.entry_points)]

    def find(self, name: str) -> Plugin[T] | None:
        """The one that is announced as `name`, of several the first that works; None where there is none."""
        found = [_load(self, entry) for entry in _entries(self.entry_points) if entry.name == name]
        return min(found, key=lambda plugin: bool(plugin.problem), default=None)


def read_maker(name: str, loaded: Any) -> Callable[..., Any]:
    """Reader of a group whose entry points are called to make what they add."""
    if not callable(loaded):
        raise TypeError(f"it is {loaded!r:.60}, and nothing that can be called")
    made: Callable[..., Any] = loaded
    return made


def make(
    group: PluginGroup[Callable[..., Any]], name: str, port: type, *arguments: object, settings: Mapping[str, Any]
) -> Any:
    """Call what is announced as `name` in `group`, for something with all that the protocol `port` names.

    Raises:
        PluginError: nothing is announced under the name, or it does not work; one line.
    """
    plugin = group.find(name)
    if plugin is None:
        raise PluginError(f"no installed package offers the {group.kind} {name!r}; install one that does")
    maker = plugin.get()
    try:
        made = maker(*arguments, **settings)
        require_members(made, port)
    except ReasonRTError:
        raise
    except FAILURES as error:
        raise PluginError(f"{plugin.announced_as} cannot be made: {reason_of(error)}; correct its settings") from error
    return made


def unreadable_packages() -> list[str]:
    """One line for each installed package whose entry points cannot be read."""
    return [found for package in distributions() if isinstance(found := _entry_points(package), str)]


def reason_of(error: BaseException) -> str:
    """What a failure of other code is called: the error's type and words, cut short, in one line."""
    return f"{type(error).__name__}: {in_one_line(str(error), 200)}"


def require_members(value: object, kind: type) -> None:
    """Look for what the protocol `kind` names in `value`, an instance, without computing any of it.

    Raises:
        TypeError: names the first that is missing.
    """
    named = [name for base in kind.__mro__ for name in vars(base) if not name.startswith("_")]
    for name in named:
        if not hasattr(type(value), name) and not hasattr(value, name):
            raise TypeError(f"it is {value!r:.60}, and has no {name}")


@cache
def _load(group: PluginGroup[T], entry: EntryPoint) -> Plugin[T]:
    try:
        return Plugin(group.kind, entry.name, entry.value, group.read(entry.name, entry.load()))
    except FAILURES as error:
        problem = (
            f"{group.kind} {entry.name!r} is announced as {entry.value} and cannot be loaded: {reason_of(error)}; "
            "repair or uninstall the package that announces it"
        )
        _log.warning("%s; it is left out", problem)
        return Plugin(group.kind, entry.name, entry.value, None, problem)


def _entries(group: str) -> Iterator[EntryPoint]:
    """As `importlib.metadata.entry_points`, which raises where one package among all cannot be read."""
    seen = set[str]()
    for package in distributions():
        entries = _entry_points(package)
        if isinstance(entries, str):
            _warn_once(entries)
        elif (chosen := entries.select(group=group)) and package.name not in seen:  # installed twice: the first counts
            seen.add(package.name)
            yield from chosen


def _entry_points(package: Distribution) -> EntryPoints | str:
    try:
        return package.entry_points
    except FAILURES as error:
        name = package.metadata["Name"]
        return f"the entry points of package {name!r} cannot be read: {reason_of(error)}; repair or uninstall it"


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s; they are left out", message)
