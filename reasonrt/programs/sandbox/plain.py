"""Plain data: what may cross between a program and the host, and how much of it."""

from itertools import repeat

MAX_ITEMS = 1_000_000
MAX_CHARACTERS = 128_000_000
MAX_DEPTH = 64
MAX_INT_BITS = 8192


class NotPlain(ValueError):  # noqa: N818 (the message is for the program that made the value)
    """The value is no plain data, or too much of it."""


def check_plain(value: object, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what a host should not be handed by a program.

    Shared parts count as often as they appear: a list of a thousand times the same list is small in memory, and
    endless for whoever prints it.

    Raises:
        NotPlain: says what is wrong.
    """
    items = characters = 0
    left: list[tuple[object, int]] = [(value, 0)]
    while left:
        item, depth = left.pop()
        items += 1
        if type(item) is str:
            characters += len(item)
            if not item.isascii():
                _check_encodable(item)
            if characters > MAX_CHARACTERS:
                raise NotPlain(f"more than {MAX_CHARACTERS} characters cannot be handed over")
        elif type(item) is int:
            if item.bit_length() > MAX_INT_BITS:
                raise NotPlain(f"an int of more than {MAX_INT_BITS} bits cannot be handed over")
        elif type(item) is list or type(item) is tuple or type(item) is dict:
            parts = [*item.keys(), *item.values()] if type(item) is dict else [*item]
            if items + len(left) + len(parts) > MAX_ITEMS:
                raise NotPlain(f"more than {MAX_ITEMS} items cannot be handed over")
            if depth == max_depth:
                raise NotPlain(f"data nested deeper than {max_depth} cannot be handed over")
            left.extend(zip(parts, repeat(depth + 1)))
        elif item is not None and type(item) is not bool and type(item) is not float:
            name = type(item).__name__.removeprefix("Monty").removesuffix("Proxy")
            raise NotPlain(f"{name} is no plain data: None, bool, int, float, str, list, tuple or dict")


def check_reply(name: str, reply: object) -> None:
    """Raises: TypeError: a host function answered with what is no plain data, which is a bug of the host."""
    try:
        check_plain(reply)
    except NotPlain as error:
        raise TypeError(f"the host function {name} answered what no program can have: {error}") from None


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotPlain("text with half of a surrogate pair cannot be handed over") from None
