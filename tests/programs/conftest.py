"""A real sandbox, and runs on it of a model that says what a test tells it to say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from reasonrt import Completion, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.programs.sandbox.build import SandboxTool, build_sandbox
from reasonrt.types import Document, Sampling

Say = Callable[[str, int, Sampling], str]
"""From the whole prompt and the turn, from 0, to the next message."""

Ask = Callable[..., Awaitable[Completion]]


@pytest.fixture(scope="session")
async def sandbox() -> AsyncIterator[SandboxTool]:
    made = build_sandbox()
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
def ask(sandbox: SandboxTool) -> Ask:
    """Run `program_search` with a scripted model; `say` gets prompts that write programs, `sub` the sub-questions."""

    async def run(
        say: Say,
        context: str | list[str] = "the needle is blue\n" * 3,
        *,
        question: str = "What colour is the needle?",
        sub: Callable[[str], str] = lambda prompt: "blue",
        limits: Limits | None = None,
        seed: int = 7,
        tool: Any = None,
        engine: dict[str, Any] | None = None,
        make: type[ScriptedEngine] = ScriptedEngine,
        report: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Completion:
        def script(prompt: str, sampling: Sampling) -> str:
            if "[system] You answer a question about a context" not in prompt:
                return sub(prompt)
            said = say(prompt, prompt.count("\n[assistant] ") - 1, sampling)
            return said.partition("```repl\n")[2] if prompt.endswith("```repl\n") else said

        model = make("target", script, **(engine or {}))
        asked = Request.ask(
            question,
            "program_search",
            context=context if isinstance(context, str) else [Document(text) for text in context],
            options={"direct": "never", "trace": True, **options},
            limits=limits or Limits(),
            seed=seed,
            report=report,
        )
        completion = await Runtime({"target": model}, tools={"sandbox": tool or sandbox}).complete(asked)
        assert model.running == 0, "a generation was left running"
        return completion

    return run
