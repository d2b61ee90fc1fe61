"""What a request may cost, and what it did cost, token by token; a limit that is met is a result, not an error."""

import asyncio

from reasonrt import Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing

TEXT = "\n\n".join(f"This is step {number} of a long calculation." for number in range(1, 21)) + "\n\n\\boxed{42}"
LIMITS = {
    "none of its own": Limits(max_tokens=4000),
    "tokens of the text": Limits(max_tokens=200),
    "seconds": Limits(max_tokens=4000, deadline_s=0.1),
    "engine calls": Limits(max_tokens=4000, max_engine_calls=3),
    "generated tokens": Limits(max_tokens=4000, max_generated_tokens=300),
}


async def main() -> None:
    engines = {role: ScriptedEngine(role, continuing(TEXT), seconds_per_token=0.0005) for role in ("draft", "target")}
    async with Runtime(engines, limits=Limits(max_tokens=4000)) as runtime:
        for name, limits in LIMITS.items():
            request = Request.ask("A hard question.", "random", options={"threshold": 0.5}, limits=limits, seed=1)
            done = await runtime.complete(request)
            print(f"{name}: ended by {done.finish_reason} after {done.seconds:.2f} s with {len(done.steps)} steps")
            for engine, usage in done.usage.items():
                print(f"  {engine}: {usage.calls} calls, {usage.generated} tokens, {usage.discarded} of them discarded")


if __name__ == "__main__":
    asyncio.run(main())
