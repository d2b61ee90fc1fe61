"""Two policies on the same problems, with intervals and a paired difference; the journal survives a kill.

`reasonrt eval` does the same from the command line, with real models and the tasks of installed packages.
"""

import asyncio
import random
import tempfile
from pathlib import Path

from reasonrt import Limits, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import TaskProblem
from reasonrt.types import Sampling

PROBLEMS = [TaskProblem(f"sum/{n}", f"What is {n} + {n}?", str(2 * n), group="sums") for n in range(1, 61)]


def solver(share: float) -> ScriptedEngine:
    """A fake model that is right in this share of the problems, in a sample as in another."""

    def write(prompt: str, sampling: Sampling) -> str:
        number = int(prompt.rpartition("+ ")[2].partition("?")[0])
        is_right = random.Random(f"{number} {sampling.seed} {share}").random() < share
        return f"Let me see.\n\n\\boxed{{{2 * number if is_right else number}}}"

    return ScriptedEngine("target", write)


async def main() -> None:
    policies = [PolicySpec("target"), PolicySpec("self_consistency", {"k": 9})]
    settings = RunSettings("sums", Limits(max_tokens=200), concurrency=8)
    with tempfile.TemporaryDirectory() as folder:
        async with Runtime({"target": solver(0.7)}) as runtime:
            report = await evaluate(runtime, PROBLEMS, policies, settings, Path(folder))

    for row in report.rows():
        low, high, tokens = row["accuracy_low"], row["accuracy_high"], row["tokens_per_problem"]
        print(f"{row['policy']:22} {row['accuracy']:.0%} ({low:.0%} to {high:.0%}), {tokens:.0f} tokens")
    for pair in report.paired():
        print(f"{pair['policy']} minus {pair['against']}: {pair['difference']:+.0%}, p = {pair['p_value']:.2g}")


if __name__ == "__main__":
    asyncio.run(main())
