"""A contract is a list of rules: functions that raise where their docstring does not hold."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from reasonrt.plugins import FAILURES, reason_of

Case = TypeVar("Case")
Rule = Callable[[Case], Awaitable[None]]
"""Its docstring is the rule, in the words of the protocol; it raises `Broken` with what was seen instead."""


class Broken(Exception):  # noqa: N818 (what was seen, not an error of ours)
    """A rule does not hold."""


class ContractError(AssertionError):
    """Something breaks rules of the protocol that it implements.

    Attributes:
        broken: the rule to what was seen instead.
    """

    def __init__(self, subject: str, broken: dict[str, str]) -> None:
        lines = [f"- {rule}\n  but: {seen}" for rule, seen in broken.items()]
        super().__init__("\n".join([f"{subject} breaks the contract:", *lines]))
        self.broken = broken


def require(holds: object, seen: str) -> None:
    """Raises: Broken: with what was seen, unless the rule `holds`."""
    if not holds:
        raise Broken(seen)


def words_of(rule: Rule[Case]) -> str:
    """The rule in words."""
    return " ".join((rule.__doc__ or "").split())


async def run_rules(subject: str, rules: Iterable[Rule[Case]], case: Case) -> None:
    """Try every rule.

    Raises:
        ContractError: names each that is broken, or raised what it should not.
    """
    broken = {}
    for rule in rules:
        try:
            await rule(case)
        except Broken as seen:
            broken[words_of(rule)] = str(seen)
        except FAILURES as error:
            broken[words_of(rule)] = f"it raised {reason_of(error)}"
    if broken:
        raise ContractError(subject, broken)
