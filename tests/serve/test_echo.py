"""Prompts that come back with their log-probabilities, as log-likelihood tasks of lm-eval read them."""

from operator import itemgetter
from typing import Any

import openai
import pytest

from reasonrt import Request, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import RequestError
from reasonrt.ports import Capability
from reasonrt.types import Message, Prompts

ENCODE = CharacterTokenizer().encode
CONTEXT, CONTINUATION = "Q: 3 + 4?\n\nA:", " 7."
TOKENS = [*ENCODE(CONTEXT), *ENCODE(CONTINUATION)]


def parse_logprobs(answer: dict[str, Any], context_lengths: list[int]) -> list[tuple[float, bool]]:
    """What lm-eval 0.4.13 makes of an answer (`LocalCompletionsAPI.parse_logprobs`), by its own arithmetic."""
    found = []
    choices = sorted(answer["choices"], key=itemgetter("index"))
    for choice, length in zip(choices, context_lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        highest = choice["logprobs"]["top_logprobs"][length:-1]
        is_greedy = all(own == max(top.values()) for own, top in zip(logprobs, highest, strict=True))
        found.append((sum(logprobs), is_greedy))
    return found


def ask(server: Any, prompt: Any, **fields: Any) -> dict[str, Any]:
    """As lm-eval asks."""
    usual = {"model": "target", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = server.http().post("/v1/completions", json=usual | {"prompt": prompt} | fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_log_likelihoods_are_those_of_the_engine(running: Any) -> None:
    engine = running.runtime.engines["target"]
    expected = sum(map(engine.logprob, ENCODE(CONTINUATION)))

    answer = ask(running, [TOKENS, TOKENS[3:]])

    lengths = [len(ENCODE(CONTEXT)), len(ENCODE(CONTEXT)) - 3]
    (first, is_greedy), (second, _) = parse_logprobs(answer, lengths)
    assert first == second == pytest.approx(expected)
    likeliest = [engine.logprob(each) >= -0.6931 for each in ENCODE(CONTINUATION)]
    assert is_greedy is all(likeliest)


@pytest.mark.parametrize("prompt", [CONTEXT + CONTINUATION, [CONTEXT + CONTINUATION], TOKENS, [TOKENS]])
def test_a_prompt_comes_back_as_it_stands(running: Any, prompt: Any) -> None:
    (choice,) = ask(running, prompt)["choices"]

    told = choice["logprobs"]
    assert choice["text"].startswith(CONTEXT + CONTINUATION)
    assert {len(column) for column in told.values()} == {len(TOKENS) + 1}
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in told["token_logprobs"][1:])
    assert "".join(told["tokens"]) == choice["text"]
    for offset, token in zip(told["text_offset"], told["tokens"], strict=True):
        assert choice["text"].startswith(token, offset)
    for token, logprob, top in list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True))[1:]:
        assert top[token] == logprob
    assert choice["reasonrt"]["authors"] == ["prompt"] * len(TOKENS) + ["target"]
    assert choice["finish_reason"] == "length"


def test_nothing_need_be_written(running: Any) -> None:
    answer = ask(running, CONTEXT, max_tokens=0)

    (choice,) = answer["choices"]
    assert choice["text"] == CONTEXT
    assert len(choice["logprobs"]["tokens"]) == len(ENCODE(CONTEXT)) == answer["usage"]["prompt_tokens"]


def test_an_end_token_counts_as_one(start: Any) -> None:
    """lm-eval leaves the last token out, whatever it is."""
    server = start("")

    (choice,) = ask(server, TOKENS)["choices"]

    assert choice["text"] == CONTEXT + CONTINUATION
    assert len(choice["logprobs"]["tokens"]) == len(TOKENS) + 1


def test_thinking_in_a_prompt_is_text(running: Any) -> None:
    text = " <think>a</think> b "

    assert ask(running, text, max_tokens=0)["choices"][0]["text"] == text


def test_one_token_and_no_text_are_prompts(running: Any) -> None:
    for prompt in (ENCODE("a"), [0, *ENCODE("b")], " "):
        choice = ask(running, [prompt] if isinstance(prompt, list) else prompt, max_tokens=0)["choices"][0]

        assert choice["logprobs"]["token_logprobs"][0] is None


def test_without_log_probabilities_a_prompt_is_only_repeated(running: Any) -> None:
    (choice,) = ask(running, CONTEXT, logprobs=None, max_tokens=4)["choices"]

    assert choice["logprobs"] is None
    assert choice["text"] == CONTEXT + "<thi"


@pytest.mark.parametrize("stop", ["th", "Q"])
def test_stop_texts_end_what_is_written(running: Any, stop: str) -> None:
    (choice,) = ask(running, CONTEXT, stop=stop, max_tokens=4)["choices"]

    assert choice["text"] == CONTEXT + ("<" if stop == "th" else "<thi")


def test_streams_add_up_to_the_same(running: Any) -> None:
    asked: Any = {"model": "target", "prompt": CONTEXT, "echo": True, "logprobs": 2, "max_tokens": 8}
    whole = running.openai().completions.create(**asked).choices[0]

    chunks = [chunk.choices[0] for chunk in running.openai().completions.create(**asked, stream=True)]

    assert "".join(chunk.text for chunk in chunks) == whole.text
    for column in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        told = [value for chunk in chunks if chunk.logprobs for value in getattr(chunk.logprobs, column)]
        assert told == getattr(whole.logprobs, column)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "arbitrage"}, "policy arbitrage returns no prompt, as target and draft do; leave echo out"),
        ({"model": "self_consistency"}, "policy self_consistency returns no prompt"),
        ({"prompt": [[10**6]]}, "a token id is none of this model's"),
        ({"max_tokens": 0, "echo": False}, "max_tokens must be at least 1, or echo be set"),
        ({"top_logprobs": 3}, "top_logprobs: not served: logprobs says how many"),
        ({"logprobs": 21}, "logprobs: Input should be less than or equal to 20"),
        ({"structured_outputs": {"choice": ["a"]}}, "a structure is that of an answer"),
    ],
)
def test_what_cannot_be_echoed_is_refused_by_name(running: Any, fields: Any, message: str) -> None:
    asked = {"model": "target", "prompt": CONTEXT, "max_tokens": 1, "logprobs": 1, "echo": True} | fields
    answer = running.http().post("/v1/completions", json=asked)

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


class Unread(ScriptedEngine):
    capabilities = ScriptedEngine.capabilities - {Capability.VERIFY}


def test_engine_that_reads_no_prompt_is_named(start: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="engine 'target' does not say how likely a prompt is"):
        start(kind=Unread).openai().completions.create(model="target", prompt="a", echo=True, logprobs=1)


async def test_requests_in_this_process_can_ask_for_it_too() -> None:
    runtime = Runtime({role: ScriptedEngine(role, "7") for role in ("draft", "target")})
    asked = Request((Message("user", CONTEXT),), logprobs=2, echo=True, prompts=Prompts(TOKENS))

    ended = await runtime.complete(asked)

    prompt, written = ended.steps
    assert (prompt.author, prompt.token_ids) == ("prompt", tuple(TOKENS))
    assert written.text == "7"
    assert [len(place) for place in prompt.top_token_ids] == [0, *[2] * (len(TOKENS) - 1)]
    with pytest.raises(RequestError, match="returns no prompt"):
        runtime.prepare(Request.ask("?", "arbitrage", echo=True))
