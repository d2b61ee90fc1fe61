"""An engine: adds the two numbers of a question, in steps, without a model."""

import re
from typing import Any

from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.types import Sampling


class Adder(ScriptedEngine):
    """Settings: `off_by` makes its sums wrong; the others are those of `ScriptedEngine`."""

    def __init__(self, role: str, off_by: int = 0, **settings: Any) -> None:
        super().__init__(role, self.write, fingerprint=f"adder, off by {off_by}", **settings)
        self.off_by = off_by

    def write(self, prompt: str, sampling: Sampling) -> str:
        question, _, written = prompt.rpartition("[user] ")[2].partition("[assistant] ")
        first, second = map(int, (*re.findall(r"\d+", question), 0, 0)[:2])
        said = re.findall(r" = (\d+)", written)  # by whoever wrote the last step
        total = int(said[-1]) if said else first + second + self.off_by
        way = f"Way {sampling.seed}: " if sampling.temperature else ""
        text = f"<think>\n{way}I add two numbers.\n\n{first} + {second} = {total}.\n\n</think>\n\n\\boxed{{{total}}}"
        return continuing(text)(prompt, sampling)
