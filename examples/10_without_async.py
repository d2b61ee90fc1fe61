"""Many requests without async, in a script or a notebook; what was finished is not asked again after a kill.

With models: `Runtime.sync()` in place of the scripted engine, and `config=` in place of `runtime=`.
"""

import tempfile

from reasonrt import Completion, Request, Runtime, SyncRuntime, batch
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.types import Sampling


def write(prompt: str, sampling: Sampling) -> str:
    number = int(prompt.rpartition("+ ")[2].partition("?")[0])
    return f"Let me see.\n\n\\boxed{{{2 * number}}}"


def main() -> None:
    engine = ScriptedEngine("target", write)
    with SyncRuntime(Runtime({"target": engine})) as runtime, tempfile.TemporaryDirectory() as folder:
        for event in runtime.solve(Request.ask("What is 21 + 21?")):
            print("answer:" if isinstance(event, Completion) else "step:", event.text.strip())

        questions = [f"What is {number} + {number}?" for number in range(8)]
        print([result.answer for result in batch(questions, out=folder, runtime=runtime)])

        before = engine.generated_tokens
        batch([*questions, "What is 9 + 9?"], out=folder, runtime=runtime)
        print("tokens for the ninth alone:", engine.generated_tokens - before)


if __name__ == "__main__":
    main()
