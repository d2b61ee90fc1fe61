"""DSPy, as it calls a model; whether one fills the fields of a prompt, is its own affair."""

import dspy
from cases import MODEL, QUESTION, URL, case, require, run


@case
def asked() -> None:
    lm = dspy.LM(f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", max_tokens=512, cache=False)
    require(lm(QUESTION), "nothing")


run("dspy")
