"""Instructor: structures by JSON schema, by JSON mode and by tools."""

import instructor
from cases import QUESTION, TOOL_MODEL, URL, case, require, run
from openai import OpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    value: int


def extracted(mode: instructor.Mode, model: str) -> None:
    client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1"), mode=mode)
    ask = [{"role": "user", "content": QUESTION}]
    found = client.chat.completions.create(
        model=model, messages=ask, response_model=Answer, max_retries=0, max_tokens=512
    )
    require(isinstance(found, Answer), found)


@case
def json_schema() -> None:
    extracted(instructor.Mode.JSON_SCHEMA, TOOL_MODEL)


@case
def tools() -> None:
    extracted(instructor.Mode.TOOLS, TOOL_MODEL)


run("instructor")
