"""Pydantic AI: an agent, plain, with a typed output, and with a tool."""

from cases import MODEL, QUESTION, TOOL_MODEL, URL, add, case, require, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")


class Answer(BaseModel):
    value: int


@case
async def plain() -> None:
    found = await Agent(OpenAIChatModel(MODEL, provider=provider)).run(QUESTION)
    require(found.output, found)


@case
async def typed() -> None:
    agent = Agent(OpenAIChatModel(TOOL_MODEL, provider=provider), output_type=NativeOutput(Answer))
    require(isinstance((await agent.run(QUESTION, model_settings={"max_tokens": 512})).output, Answer), "no answer")


@case
async def a_tool() -> None:
    """Whether the model calls it, is its own affair."""
    found = await Agent(OpenAIChatModel(TOOL_MODEL, provider=provider), tools=[add]).run(QUESTION)
    require(found.output, found)


run("pydantic-ai-slim")
