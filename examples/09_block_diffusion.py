"""A diffusion model fills blocks of masked tokens: several tokens in a pass, as many as it is sure of.

`tokens per pass` is what that saves: a model that writes token by token makes 1.0. The question is asked three times:
by self-speculation, the default of the model that ships, which writes what the model would write token by token; and
with what is above a threshold, one token in each pass or several.
"""

import asyncio

from reasonrt import Request, Runtime

QUESTION = "Solve the following multiplication: 47 * 36."


async def main() -> None:
    async with Runtime.from_config(roles=("diffusion",)) as runtime:
        for options in ({}, {"threshold": 1.0}, {"threshold": 0.6}):
            done = await runtime.complete(Request.ask(QUESTION, "block_diffusion", options=options))
            used = done.usage["diffusion"]
            written = used.generated - used.discarded
            print(options, "answer:", done.content, "tokens per pass:", round(written / used.passes, 1))


if __name__ == "__main__":
    asyncio.run(main())
