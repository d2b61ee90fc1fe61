"""How a measurement tells how far it is."""

from collections.abc import Callable

Advance = Callable[[str, int, int], None]
"""Is told the name of a part of the work, how much of it is done, and of how many."""


def tell_nobody(name: str, done: int, total: int) -> None:
    pass
