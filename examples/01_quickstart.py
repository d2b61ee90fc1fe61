"""Two models that ship with reasonrt, in vLLM, on one question."""

import asyncio

from reasonrt import Completion, Request, Runtime


async def main() -> None:
    async with Runtime.from_config(roles=("draft", "target")) as runtime:
        for policy in ("draft", "target"):
            request = Request.ask("Solve the following multiplication: 47 * 36.", policy)
            async for event in runtime.solve(request):
                if isinstance(event, Completion):
                    print(policy, "answers", event.content, "in", round(event.seconds, 2), "s")


if __name__ == "__main__":
    asyncio.run(main())
