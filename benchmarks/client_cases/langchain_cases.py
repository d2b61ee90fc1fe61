"""langchain-openai."""

from cases import MODEL, QUESTION, TOOL_MODEL, URL, add, case, require, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

HOW = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
llm = ChatOpenAI(model=MODEL, **HOW)


class Answer(BaseModel):
    """An answer."""

    value: int


@case
def plain() -> None:
    require(llm.invoke(QUESTION).content, "nothing")


@case
def streamed() -> None:
    require("".join(str(chunk.content) for chunk in llm.stream(QUESTION)), "nothing")


@case
def with_structured_output() -> None:
    found = ChatOpenAI(model=TOOL_MODEL, **HOW).with_structured_output(Answer, method="json_schema").invoke(QUESTION)
    require(isinstance(found, Answer), found)


@case
def a_tool() -> None:
    bound = ChatOpenAI(model=TOOL_MODEL, **HOW).bind_tools([add], tool_choice="required")
    reply = bound.invoke(QUESTION)
    require(reply.tool_calls and set(reply.tool_calls[0]["args"]) == {"a", "b"}, reply)
    told = [HumanMessage(QUESTION), reply, ToolMessage("7", tool_call_id=reply.tool_calls[0]["id"])]
    ChatOpenAI(model=TOOL_MODEL, **HOW).bind_tools([add]).invoke(told)


@case
def over_responses() -> None:
    require(ChatOpenAI(model=MODEL, use_responses_api=True, **HOW).invoke(QUESTION).content, "nothing")


run("langchain-openai")
