"""A tool: works a sum out by itself."""

import re
from typing import Self

from reasonrt.answers import find_answer


class Abacus:
    """Setting: `tolerance`, how far an answer may be off."""

    def __init__(self, tolerance: int = 0) -> None:
        self.tolerance, self.is_ready = tolerance, False

    async def start(self) -> Self:
        self.is_ready = True
        return self

    async def aclose(self) -> None:
        self.is_ready = False

    def agrees(self, question: str, answer: str) -> bool:
        """Whether `answer` holds the sum of the two numbers in `question`."""
        numbers, found = re.findall(r"\d+", question), find_answer(answer)
        is_number = found is not None and re.fullmatch(r"-?\d+", found)
        return bool(is_number) and abs(sum(map(int, numbers[:2])) - int(found or 0)) <= self.tolerance
