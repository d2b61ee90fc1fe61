"""its-hub: a vote of five, with us as the server of its model."""

from cases import MODEL, QUESTION, URL, case, require, run
from its_hub import OpenAICompatibleLanguageModel, SelfConsistency


@case
async def a_vote() -> None:
    lm = OpenAICompatibleLanguageModel(f"{URL}/v1", "none", MODEL, temperature=0.7, max_completion_tokens=512)
    found = await SelfConsistency(str).ainfer(lm, QUESTION, 5, return_response_only=False)
    require(found.the_one["content"], found)


run("its-hub")
