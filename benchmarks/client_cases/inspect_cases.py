"""Inspect: a task, plain and with a tool."""

import os

from cases import MODEL, QUESTION, TOOL_MODEL, URL, add, case, require, run
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool

os.environ |= {"REASONRT_API_KEY": "none", "REASONRT_BASE_URL": f"{URL}/v1"}


@tool
def adding() -> Tool:
    async def execute(a: int, b: int) -> int:
        """Add two whole numbers.

        Args:
            a: the first.
            b: the second.
        """
        return add(a, b)

    return execute


def evaluated(model: str, *solvers: object) -> None:
    task = Task(dataset=[Sample(QUESTION, target="7")], solver=list(solvers), scorer=includes())
    (log,) = evaluate(task, model=f"openai-api/reasonrt/{model}", display="none", log_dir="/tmp/inspect-logs")  # noqa: S108
    require(log.status == "success", log.error)
    require(all(sample.output.choices for sample in log.samples), log.samples)


@case
def a_task() -> None:
    evaluated(MODEL, generate())


@case
def a_task_with_a_tool() -> None:
    evaluated(TOOL_MODEL, use_tools(adding()), generate(tool_calls="single"))


run("inspect-ai")
