"""A router: the target writes a step in place of one that holds a wrong equation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from reasonrt.ports import Engine
from reasonrt.routers.registry import RouterKind
from reasonrt.transcript import Transcript
from reasonrt.types import Request, Step

EQUATION = re.compile(r"(\d+) \+ (\d+) = (\d+)")


@dataclass
class EquationOptions:
    tolerance: Annotated[int, Field(ge=0)] = 0


class EquationRouter:
    def __init__(self, options: EquationOptions) -> None:
        self.options = options

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        equations = [[int(number) for number in found] for found in EQUATION.findall(step.text)]
        return float(any(abs(a + b - c) > self.options.tolerance for a, b, c in equations))


def build(options: EquationOptions, request: Request, engines: Mapping[str, Engine]) -> EquationRouter:
    return EquationRouter(options)


EQUATIONS = RouterKind(build, threshold=0.5, unit="1 for a step with a wrong equation, else 0", options=EquationOptions)
