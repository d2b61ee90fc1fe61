"""Plain data: what may cross between a program and the host, and how much of it."""

from itertools import count

MAX_ITEMS = 1_000_000
MAX_CHARACTERS = 128_000_000
MAX_DEPTH = 64
MAX_INT_BITS = 8192
_KINDS = {type(None), bool, int, float, str, list, tuple, dict}


class NotPlain(ValueError):  # noqa: N818 (the message is for the program that made the value)
    """The value is no plain data, or too much of it."""


class OtherType(NotPlain):
    """Some part of the value is of a type that is no plain data."""


def check_plain(value: object, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what a host should not be handed by a program.

    Shared parts count as often as they appear: a list of a thousand times the same list is small in memory, and
    endless for whoever prints it.

    Raises:
        NotPlain: says what is wrong.
    """
    items, characters = 1, 0
    level: list[object] = [value]
    for depth in count():
        kinds = set(map(type, level))
        for kind in kinds - _KINDS:
            name = kind.__name__.removeprefix("Monty").removesuffix("Proxy")
            raise OtherType(f"{name} is no plain data: None, bool, int, float, str, list, tuple or dict")
        if int in kinds and any(item.bit_length() > MAX_INT_BITS for item in level if type(item) is int):
            raise NotPlain(f"an int of more than {MAX_INT_BITS} bits cannot be handed over")
        if str in kinds:
            texts = [item for item in level if type(item) is str]
            characters += sum(map(len, texts))
            if characters > MAX_CHARACTERS:
                raise NotPlain(f"more than {MAX_CHARACTERS} characters cannot be handed over")
            for text in texts:
                _check_encodable(text)
        holders = [item for item in level if type(item) is list or type(item) is tuple or type(item) is dict]
        if not holders:
            return
        # counted before they are opened: what is too much is never looked at
        items += sum(len(holder) * (2 if type(holder) is dict else 1) for holder in holders)
        if items > MAX_ITEMS:
            raise NotPlain(f"more than {MAX_ITEMS} items cannot be handed over")
        if depth == max_depth:
            raise NotPlain(f"data nested deeper than {max_depth} cannot be handed over")
        level = [part for holder in holders for part in holder]
        level += [part for holder in holders if type(holder) is dict for part in holder.values()]


def _check_encodable(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotPlain("text with half of a surrogate pair cannot be handed over") from None
