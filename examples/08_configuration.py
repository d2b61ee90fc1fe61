"""Engines, defaults of policies and limits from a file, as `reasonrt.yaml` has them; one small model in vLLM.

A model of yours is a Hugging Face folder, or `{kind: remote, base_url: ..., model: ..., tokenizer: FOLDER}` for any
OpenAI-compatible server.
"""

import asyncio
import tempfile
from pathlib import Path

from reasonrt import ReasonRTError, Request, Runtime

CONFIGURATION = """
engines:
  target: {model: "zoo:nano-target", max_num_seqs: 16}
policies:
  self_consistency: {k: 3}
limits: {max_tokens: 400, deadline_s: 60}
"""


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reasonrt.yaml"
        file.write_text(CONFIGURATION)
        runtime = Runtime.from_config(file)
    async with runtime:
        question = "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36."
        for options in ({}, {"k": 7}, {"k": "many"}):  # what a request does not say comes from the file
            try:
                done = await runtime.complete(Request.ask(question, "self_consistency", options=options))
            except ReasonRTError as error:
                print("refused before anything ran:", error)
            else:
                print(done.content, done.details, done.usage["target"])


if __name__ == "__main__":
    asyncio.run(main())
