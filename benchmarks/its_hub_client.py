"""its-hub's self-consistency as `peers.py` asks it. Runs in a virtual environment with `its-hub[lm]` and without ours.

    python its_hub_client.py URL K TEMPERATURE MAX_TOKENS

Reads lines `[questions, concurrency]` and answers each with `[seconds, [[text, generated tokens], ...]]`.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from its_hub import OpenAICompatibleLanguageModel, SelfConsistency
from its_hub.core.orchestrator import LMOrchestrator


async def main(url: str, k: int, temperature: float, max_tokens: int) -> None:
    find_answer, normal_form = our_answers()

    def answer_of(text: str) -> str:
        found = find_answer(text)
        return "" if found is None else repr(normal_form(found))

    lm = OpenAICompatibleLanguageModel(
        f"{url}/v1", "none", "nano-target", temperature=temperature, max_completion_tokens=max_tokens
    )
    # without a limit of its own: it would wait for places in threads
    vote = SelfConsistency(answer_of, orchestrator=LMOrchestrator(max_concurrency=-1))
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        questions, concurrency = json.loads(line)
        places = asyncio.Semaphore(concurrency)

        async def solve(question: str, places: asyncio.Semaphore = places) -> tuple[str, int]:
            async with places:
                result = await vote.ainfer(lm, question, k, return_response_only=False)
                return result.the_one["content"] or "", result.usage.completion_tokens

        began = time.perf_counter()
        answers = await asyncio.gather(*map(solve, questions))
        print(json.dumps([time.perf_counter() - began, answers]), flush=True)
    await lm.close()


def our_answers() -> tuple[Any, Any]:
    """`find_answer` and `normal_form` from our own file, without the packages that the rest of ours needs."""
    package = ModuleType("reasonrt")
    package.__path__ = [str(Path(__file__).parents[1] / "reasonrt")]
    sys.modules["reasonrt"] = package
    from reasonrt.answers import find_answer, normal_form

    return find_answer, normal_form


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
