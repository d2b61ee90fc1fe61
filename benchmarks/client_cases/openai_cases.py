"""The official client."""

import json

from cases import MODEL, QUESTION, TOOL, TOOL_MODEL, URL, case, require, run
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1")
ASK = [{"role": "user", "content": QUESTION}]


class Answer(BaseModel):
    value: int


@case
def chat() -> None:
    reply = client.chat.completions.create(model=MODEL, messages=ASK)
    require(reply.choices[0].message.content, reply)
    require(reply.choices[0].finish_reason == "stop", reply)


@case
def chat_streamed() -> None:
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    require("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks)
    require(chunks[-1].usage, chunks[-1])


@case
async def chat_async() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1") as other:
        reply = await other.chat.completions.create(model=MODEL, messages=ASK)
        require(reply.choices[0].message.content, reply)


@case
def chat_parsed() -> None:
    reply = client.chat.completions.parse(model=TOOL_MODEL, messages=ASK, response_format=Answer, max_tokens=512)
    require(isinstance(reply.choices[0].message.parsed, Answer), reply)


@case
def log_probabilities() -> None:
    reply = client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True, top_logprobs=3)
    require(all(len(token.top_logprobs) == 3 for token in reply.choices[0].logprobs.content), reply.choices[0])


@case
def text_completion() -> None:
    reply = client.completions.create(model=MODEL, prompt=["3 + 4 =", "1 + 1 ="], max_tokens=16)
    require(len(reply.choices) == 2, reply)


@case
def text_echoed_with_log_probabilities() -> None:
    reply = client.completions.create(model=MODEL, prompt="3 + 4 = 7", max_tokens=0, echo=True, logprobs=1)
    known = reply.choices[0].logprobs.token_logprobs
    require(known[0] is None and all(each <= 0 for each in known[1:]), known)


@case
def tool_called() -> None:
    reply = client.chat.completions.create(model=TOOL_MODEL, messages=ASK, tools=[TOOL], tool_choice="required")
    message = reply.choices[0].message
    require(message.tool_calls, reply)
    call = message.tool_calls[0]
    require(set(json.loads(call.function.arguments)) == {"a", "b"}, call)
    told = [*ASK, message, {"role": "tool", "tool_call_id": call.id, "content": "7"}]
    require(client.chat.completions.create(model=TOOL_MODEL, messages=told, tools=[TOOL]).choices, "no choice")


@case
def tool_called_in_a_stream() -> None:
    chunks = client.chat.completions.create(
        model=TOOL_MODEL, messages=ASK, tools=[TOOL], tool_choice="required", stream=True
    )
    pieces = [call for chunk in chunks for call in (chunk.choices[0].delta.tool_calls or [] if chunk.choices else [])]
    require(set(json.loads("".join(piece.function.arguments or "" for piece in pieces))) == {"a", "b"}, pieces)


@case
def responses() -> None:
    reply = client.responses.create(model=MODEL, input=QUESTION)
    require(reply.output_text and reply.status == "completed", reply)


@case
def responses_streamed() -> None:
    events = list(client.responses.create(model=MODEL, input=ASK, stream=True))
    require(events[0].type == "response.created" and events[-1].type == "response.completed", events)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    require(said == events[-1].response.output_text, said)


@case
def responses_parsed() -> None:
    reply = client.responses.parse(model=TOOL_MODEL, input=QUESTION, text_format=Answer, max_output_tokens=512)
    require(isinstance(reply.output_parsed, Answer), reply)


@case
def models() -> None:
    require(MODEL in [each.id for each in client.models.list()], "not listed")


run("openai")
