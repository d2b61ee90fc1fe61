from dataclasses import dataclass

PROMPT = "The session runs a subset of Python: no classes that inherit, no yield, no del, no with open."


@dataclass
class Prepared:
    code: str
    notes: tuple[str, ...] = ()
    error: str = ""
    assigned: tuple[str, ...] = ()


def prepare(code, names, *, subset=True):
    return Prepared(code)
