"""LiteLLM, as gateways and agents use it."""

import litellm
from cases import MODEL, QUESTION, TOOL, TOOL_MODEL, URL, case, require, run

HOW = {"api_base": f"{URL}/v1", "api_key": "none", "messages": [{"role": "user", "content": QUESTION}]}


@case
def chat() -> None:
    require(litellm.completion(model=f"openai/{MODEL}", **HOW).choices[0].message.content, "nothing")


@case
def chat_streamed() -> None:
    chunks = litellm.completion(model=f"openai/{MODEL}", stream=True, **HOW)
    require("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "nothing")


@case
async def chat_async_with_reasoning_effort() -> None:
    reply = await litellm.acompletion(
        model="openai/auto", reasoning_effort="high", allowed_openai_params=["reasoning_effort"], **HOW
    )
    require(reply.choices[0].message.content, reply)


@case
def tool_called() -> None:
    reply = litellm.completion(model=f"openai/{TOOL_MODEL}", tools=[TOOL], tool_choice="required", **HOW)
    require(reply.choices[0].message.tool_calls, reply)


@case
def responses() -> None:
    reply = litellm.responses(model=f"openai/{MODEL}", input=QUESTION, api_base=f"{URL}/v1", api_key="none")
    require(reply.output, reply)


run("litellm")
