"""Stopping under a rule: the thinking ends as soon as two probes in a row have given the same answer.

A rule without a certificate promises nothing; 06_certify.py shows where a promise comes from. The engine is a scripted
fake, so that this runs everywhere: it thinks in ten steps and knows the answer from the third step on.
"""

import asyncio

from reasonrt import Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.types import Sampling

THINKING = "<think>\n" + "\n\n".join(f"Step {number} of the thinking." for number in range(1, 11))
WHOLE = f"{THINKING}\n\n</think>\n\n\\boxed{{42}}"
STOPPING = {
    "rule": {"kind": "upper_threshold", "signal": {"kind": "agreement"}, "threshold": 2},
    "schedule": {"first_tokens": 32, "growth": 1.25, "block_tokens": 1},
}


def write(prompt: str, sampling: Sampling) -> str:
    if prompt.endswith("\\boxed{"):  # a probe: what would the answer be now?
        steps = prompt.count("Step")
        return "42}" if steps >= 3 else f"{steps}}}"
    return continuing(WHOLE)(prompt, sampling)


async def main() -> None:
    async with Runtime({"target": ScriptedEngine("target", write)}) as runtime:
        full = await runtime.complete(Request.ask("What is 6 * 7?"))
        stopped = await runtime.complete(Request.ask("What is 6 * 7?", options={"stopping": STOPPING}))

    print("to the end:", full.content, full.usage["target"])
    print("stopped:   ", stopped.content, stopped.usage["target"])
    print("what the rule did:", stopped.details["stopping"])


if __name__ == "__main__":
    asyncio.run(main())
