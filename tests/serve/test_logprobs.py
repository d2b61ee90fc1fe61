"""Log-probabilities of what is committed: each from its author, the same in a stream and in a whole answer."""

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionChoice
from openai.types.chat.chat_completion import ChoiceLogprobs

from reasonrt import Completion, FinishReason, Step
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.ports import Capability
from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.choice import Choice, Token

CONTENT = r"\boxed{7}"
TEXT = f"<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n{CONTENT}"
MODEL = "entropy@threshold=0,verify=yes"
WRONG = TEXT.replace("Two", "Too")
ASK: Any = [{"role": "user", "content": "3 + 4?"}]
POLICIES = ["target", "draft", "self_consistency", "arbitrage", "specreason", "entropy@threshold=0"]


@pytest.fixture(scope="module")
def running(start: Any) -> Any:
    """Its engines continue after whatever is committed."""
    return start(continuing(TEXT))


def texts_of(logprobs: Any) -> list[str]:
    return [entry.token for entry in logprobs.content]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_token_of_reasoning_and_content_has_its_own_and_the_highest(running: Any, policy: str) -> None:
    client = running.openai()

    answer = client.chat.completions.create(model=policy, messages=ASK, logprobs=True, top_logprobs=3)
    stream = client.chat.completions.create(model=policy, messages=ASK, logprobs=True, top_logprobs=3, stream=True)

    choice = answer.choices[0]
    ChoiceLogprobs.model_validate(choice.logprobs.model_dump(), strict=True)
    assert "".join(texts_of(choice.logprobs)).endswith(f"</think>\n\n{CONTENT}")
    for entry in choice.logprobs.content:
        assert bytes(entry.bytes).decode() == entry.token
        highest = [top.logprob for top in entry.top_logprobs]
        assert len(highest) == 3
        assert highest == sorted(highest, reverse=True)
        named = {top.token: top.logprob for top in entry.top_logprobs}
        assert named.get(entry.token, entry.logprob) == entry.logprob <= highest[0]
        assert entry.token in named or entry.logprob <= highest[-1]
    assert len(choice.reasonrt["authors"]) == len(choice.logprobs.content)
    assert set(choice.reasonrt["authors"]) <= {"draft", "target"}
    chunks = [chunk.choices[0] for chunk in stream]
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [entry for each in told for entry in each.content] == choice.logprobs.content
    authors = [author for chunk in chunks if chunk.logprobs for author in chunk.reasonrt["authors"]]
    assert authors == choice.reasonrt["authors"]


def test_each_token_is_told_by_the_engine_that_wrote_it(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft is wrong in one place, which the target verifies and corrects."""
    draft, target = ScriptedEngine("draft", continuing(WRONG)), ScriptedEngine("target", continuing(TEXT))
    monkeypatch.setattr(draft, "logprob", lambda _: -1.0)
    monkeypatch.setattr(target, "logprob", lambda _: -0.25)
    client = start(engines={"draft": draft, "target": target}).openai()

    choice = client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True).choices[0]

    authors, entries = choice.reasonrt["authors"], choice.logprobs.content
    assert set(authors) == {"draft", "target"}
    assert {(author, entry.logprob) for author, entry in zip(authors, entries, strict=True)} == {
        ("draft", -1.0),
        ("target", -0.25),
    }
    assert "".join(entry.token for entry in entries) == TEXT


def test_what_no_engine_has_drawn_is_certain(start: Any) -> None:
    server = start(lambda prompt, _: CONTENT if "</think>" in prompt else "<think>\nOne.")

    choice = server.openai().chat.completions.create(model="target", messages=ASK, logprobs=True).choices[0]

    told = list(zip(choice.reasonrt["authors"], choice.logprobs.content, strict=True))
    assert "".join(entry.token for author, entry in told if author == "closing") == "\n</think>\n\n"
    assert {entry.logprob for author, entry in told if author == "closing"} == {0.0}
    assert all(entry.logprob < 0 for author, entry in told if author == "target")
    assert choice.logprobs.content[0].top_logprobs == []


def test_reasoning_that_is_left_out_leaves_its_tokens_out(running: Any) -> None:
    extra = {"include_reasoning": False}
    answer = running.openai().chat.completions.create(model="target", messages=ASK, logprobs=True, extra_body=extra)

    assert "".join(texts_of(answer.choices[0].logprobs)).strip() == CONTENT


@pytest.mark.parametrize("is_stream", [True, False])
def test_tokens_end_before_a_stop_text(running: Any, is_stream: bool) -> None:
    asked: Any = {"model": "target", "messages": ASK, "logprobs": True, "stop": "ed", "stream": is_stream}
    answer = running.openai().chat.completions.create(**asked)

    chunks = [chunk.choices[0] for chunk in answer] if is_stream else [answer.choices[0]]
    tokens = "".join(text for chunk in chunks if chunk.logprobs for text in texts_of(chunk.logprobs))
    assert tokens.endswith(r"</think>" + "\n\n" + r"\box")


@pytest.mark.parametrize("is_stream", [True, False])
def test_plain_completions_have_the_older_form(running: Any, is_stream: bool) -> None:
    answer = running.openai().completions.create(model="target", prompt="3 + 4?", logprobs=2, stream=is_stream)

    choices = [chunk.choices[0] for chunk in answer] if is_stream else list(answer.choices)
    told = [choice.logprobs for choice in choices if choice.logprobs]
    if not is_stream:
        CompletionChoice.model_validate(choices[0].model_dump())
    tokens = [token for each in told for token in each.tokens]
    offsets = [offset for each in told for offset in each.text_offset]
    assert "".join(tokens).strip() == CONTENT
    shown = dict(zip(offsets, tokens, strict=True))
    assert all(CONTENT.startswith(shown[place], place) for place in range(len(CONTENT)))
    for each in told:
        for token, logprob, top in zip(each.tokens, each.token_logprobs, each.top_logprobs, strict=True):
            assert top[token] == logprob
            assert 2 <= len(top) <= 3


def test_without_being_asked_for_there_are_none(running: Any) -> None:
    client = running.openai()

    chat = client.chat.completions.create(model="target", messages=ASK).choices[0]
    text = client.completions.create(model="target", prompt="3 + 4?", extra_body={"logprobs": False}).choices[0]

    assert chat.logprobs is text.logprobs is None
    assert "authors" not in chat.reasonrt


class Mute(ScriptedEngine):
    capabilities = ScriptedEngine.capabilities - {Capability.LOGPROBS}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "oracle", "logprobs": True}, "policy oracle gives no log-probabilities; leave them out"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less than or equal to 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs: Input should be greater than or equal to 0"),
        ({"top_logprobs": 2}, "top_logprobs|set logprobs to true with it"),
        ({"logprobs": 2}, "logprobs: Input should be a valid boolean"),
        ({"extra_body": {"echo": True}}, "echo: not served: the conversation is not returned"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(start: Any, fields: Any, message: str) -> None:
    engines = {role: ScriptedEngine(role, "7") for role in ("draft", "target", "reward")}
    server = start(engines=engines, policies={"oracle": {}})

    with pytest.raises(openai.BadRequestError, match=message):
        server.openai().chat.completions.create(**{"model": "target", "messages": ASK} | fields)


def test_engine_that_gives_none_is_named(start: Any) -> None:
    client = start(kind=Mute).openai()

    with pytest.raises(openai.BadRequestError, match="engine 'target' gives no log-probabilities; leave them out"):
        client.chat.completions.create(model="target", messages=ASK, logprobs=True)
    assert "logprobs" not in client.models.retrieve("target").supported_parameters


def test_a_routers_decisions_do_not_depend_on_what_a_request_asks_for(running: Any) -> None:
    create = running.openai().chat.completions.create
    for policy in ("entropy", "arbitrage"):
        usual = create(model=policy, messages=ASK).choices[0].reasonrt["details"]
        asked = create(model=policy, messages=ASK, logprobs=True, top_logprobs=20).choices[0].reasonrt["details"]

        for name in ("steps", "draft_steps", "escalations", "verifications", "agreed"):
            assert usual[name] == asked[name]


def test_models_say_that_they_give_them(running: Any) -> None:
    client = running.openai()

    assert {"logprobs", "top_logprobs", "echo"} <= set(client.models.retrieve("target").supported_parameters)
    assert "echo" not in client.models.retrieve("arbitrage").supported_parameters


PIECES = st.sampled_from(["<think>", "</think>", "\n\n", " ", "a", "b", "ab", "<", "/thi", "nk>", "\\boxed{7}"])


def play(pieces: list[str], is_open: bool, stop_texts: list[str]) -> tuple[Choice, list[Token]]:
    """A choice after these steps, each of as many tokens as characters, and the tokens told with each."""
    tokenizer = CharacterTokenizer()
    choice = Choice(0, stop_texts, {"target": tokenizer})
    choice.accepted = Accepted(3, is_open, frozenset({"target"}))
    told: list[Token] = []
    steps: list[Step] = []
    for piece in pieces:
        ids = tuple(tokenizer.encode(piece))
        steps.append(Step(piece, ids, "target", logprobs=tuple(-float(each) for each in ids)))
        new = choice.add(steps[-1])
        told += new.tokens
        if new.stop_text is not None:
            break
    told += choice.add(Completion(tuple(steps), FinishReason.STOP, {}, 0.0, prompt_opens_thinking=is_open)).tokens
    return choice, told


@given(
    pieces=st.lists(PIECES, max_size=10),
    is_open=st.booleans(),
    stop_texts=st.lists(st.text("ab\n ", min_size=1, max_size=3), max_size=2),
)
def test_tokens_are_those_of_what_is_shown_however_it_is_cut(
    pieces: list[str], is_open: bool, stop_texts: list[str]
) -> None:
    choice, told = play(pieces, is_open, stop_texts)
    whole, told_at_once = play(["".join(pieces)], is_open, stop_texts)

    assert tuple(told) == choice.shown.tokens
    if choice.shown.stop_text is None and whole.shown.stop_text is None and "\n\n" not in "".join(pieces):
        assert told == told_at_once  # a blank line is one token, or two
    answer = "".join(token.text for token in told if token.is_answer)
    assert answer.strip() == choice.shown.content.strip()
    if choice.shown.stop_text is None:
        assert "".join(token.text for token in told) == "".join(pieces)
