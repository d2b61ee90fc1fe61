"""A package of somebody else's with an engine, for tests that run one in a process of its own."""

import asyncio
import hashlib
import math
import os
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, RequestError
from reasonrt.ports import Reading, Score
from reasonrt.types import Sampling


class Scripted(ScriptedEngine):
    """Answers as `tests/engines/test_contract.py` asks, and does what the prompt of a `score` says."""

    def __init__(self, name: str, text: str = "", start: str = "", **settings: Any) -> None:
        super().__init__(name, text or _reply, **settings)
        self._start, self.starts = start, 0

    async def start(self) -> "Scripted":
        self.starts += 1
        if self._start:
            await self._do(self._start)
        return self

    async def aclose(self) -> None:
        if self._start == "hang":
            await asyncio.sleep(3600)

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        return Score(float(await self._do(self.tokenizer.decode(prompt_token_ids)) or 0.0))

    async def _do(self, words: str) -> float | None:
        command, _, argument = words.partition(" ")
        match command:
            case "pid":
                return os.getpid()
            case "running":
                return self.running
            case "generated":
                return self.generated_tokens
            case "starts":
                return self.starts
            case "block":
                time.sleep(float(argument))  # noqa: ASYNC251 - it is to block the event loop
            case "wait":
                await asyncio.sleep(float(argument))
            case "exit":
                os._exit(int(argument))
            case "child":
                return subprocess.Popen(["sleep", "1000"]).pid  # noqa: ASYNC220
            case "refuse":
                raise RequestError(f"refused: {argument}")
            case "cannot":
                raise CapabilityError(f"cannot: {argument}")
            case "own":
                raise _OwnError(1, 2)
            case "bug":
                raise ZeroDivisionError(argument)
            case "print":
                print(argument, flush=True)  # noqa: T201
        return None


class Needles(ScriptedEngine):
    """Writes programs for the task `needle_words`, half of them wrong in the same way, and knows which ones.

    Asked directly, it finds what stands in the first half of what it is shown.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, self._say, **settings)

    @staticmethod
    def _say(prompt: str, sampling: Sampling) -> str:
        key = re.findall(r"the access number of (\S+)\?", prompt)[-1]
        if "[system] You answer a question about a context" not in prompt:
            found = re.search(rf"of {key} is (\d+)", prompt[: len(prompt) // 2])
            return found[1] if found else "unknown"
        is_wrong = hashlib.sha256(f"{key} {sampling.seed} {sampling.temperature}".encode()).digest()[0] % 2
        code = f"hits = grep(r'(?<=of {key} is )[0-9]+')\nnumber = int(hits[0]['match'])"
        return f"```repl\n{code}\nfinal(number{' + 1' * is_wrong}, evidence=hits)\n```\n"

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        reading = await super().read(prompt_token_ids, candidate_ids, cache_salt)
        sure = self.tokenizer.encode("1" if "+ 1" in self.tokenizer.decode(prompt_token_ids) else "8")
        return Reading(
            tuple(math.log(0.91 if [each] == sure else 0.01) for each in candidate_ids), reading.cached_tokens
        )


class _OwnError(RequestError):
    """Its arguments are not those that a pickle would call it with."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(f"between {low} and {high}")


def _reply(prompt: str, sampling: Sampling) -> str:
    number = "".join(filter(str.isdigit, prompt))
    variant = f" by way {(sampling.seed or 0) % 7}" if sampling.temperature else ""
    return f"First step with {number}{variant}.\n\nSecond step.\n\nThe answer is {int(number or 0) * 2}."
