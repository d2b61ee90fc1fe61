"""Engines with different tokenizers read the same steps; ids are only ever added; nothing is tokenized twice."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import RequestError
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Request, Step

QUESTION = (Message("user", "What is 2 + 2?"),)


class WordTokenizer:
    """One token per run of word characters, per run of white space and per sign; learns words as it meets them."""

    fingerprint = "words"
    eos_token_ids = frozenset({0})

    def __init__(self) -> None:
        self.words = [""]
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        pieces = re.findall(r"\w+|\s+|[^\w\s]", text)
        self.words += [piece for piece in dict.fromkeys(pieces) if piece not in self.words]
        return [self.words.index(piece) for piece in pieces]

    def encode_text(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.words[i] for i in token_ids)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(" ".join(message.content for message in messages) + " :")

    def vocabulary(self) -> Mapping[int, str]:
        return dict(enumerate(self.words))


class CountingTokenizer(CharacterTokenizer):
    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return super().encode(text)


class WordEngine(ScriptedEngine):
    def __init__(self, name: str, max_model_len: int = 100_000) -> None:
        super().__init__(name, "", max_model_len=max_model_len)
        self.tokenizer = WordTokenizer()  # type: ignore[assignment]


def step_by(engine: ScriptedEngine, text: str) -> Step:
    ids = engine.tokenizer.encode(text)
    engine.tokenizer.encoded.pop()  # type: ignore[attr-defined]
    return Step(text, tuple(ids), engine.name)


moves = st.lists(
    st.tuples(st.sampled_from(["commit", "look"]), st.integers(0, 1), st.text("ab 1\n", min_size=1, max_size=8)),
    max_size=20,
)


@given(moves=moves)
def test_ids_are_only_added_and_nothing_is_tokenized_twice(moves: list[tuple[str, int, str]]) -> None:
    characters = ScriptedEngine("characters", "")
    characters.tokenizer = CountingTokenizer()
    words = WordEngine("words")
    engines = (characters, words)
    transcript = Transcript(QUESTION, engines)
    seen: dict[str, list[int]] = {engine.name: list(transcript.token_ids(engine)) for engine in engines}
    for engine in engines:
        engine.tokenizer.encoded.clear()  # type: ignore[attr-defined]

    foreign: dict[str, list[str]] = {engine.name: [] for engine in engines}
    for kind, index, text in moves:
        engine = engines[index]
        if kind == "commit":
            transcript.commit(step_by(engine, text))
            foreign[engines[1 - index].name].append(text)
        else:
            ids = list(transcript.token_ids(engine))
            assert ids[: len(seen[engine.name])] == seen[engine.name]
            seen[engine.name] = ids

    for engine in engines:
        said = engine.tokenizer.decode(transcript.token_ids(engine))
        assert said.endswith(transcript.text)
        transcript.token_ids(engine)
        assert engine.tokenizer.encoded == foreign[engine.name]  # type: ignore[attr-defined]
    assert transcript.num_tokens == sum(len(step.token_ids) for step in transcript.steps)


def test_engines_with_one_tokenizer_exchange_ids_as_they_are() -> None:
    draft, target = ScriptedEngine("draft", ""), ScriptedEngine("target", "")
    draft.tokenizer = target.tokenizer = CountingTokenizer()
    transcript = Transcript(QUESTION, (draft, target))
    prompt = list(transcript.token_ids(target))

    odd_ids = (2 + ord("\n"), 2 + ord("\n"))  # the tokenizer itself would write a blank line as one token
    transcript.commit(Step("\n\n", odd_ids, "draft"))

    assert transcript.token_ids(target) == [*prompt, *odd_ids]
    assert len(target.tokenizer.encoded) == 1  # the chat


def test_committed_ids_are_kept_whoever_is_asked_first() -> None:
    """As a request resumes: the target reads the draft's ids before the draft has been asked for anything."""
    draft, target = ScriptedEngine("draft", ""), ScriptedEngine("target", "")
    odd_ids = (2 + ord("\n"), 2 + ord("\n"))
    request = Request(QUESTION, committed=(Step("\n\n", odd_ids, "draft"), Step("x", (2 + ord("x"),), "a sandbox")))

    transcript = Transcript.of(request, {"draft": draft, "target": target})

    ids = transcript.token_ids(target)
    assert ids == [*target.tokenizer.chat(QUESTION), *odd_ids, *target.tokenizer.encode("x")]
    assert ids == transcript.token_ids(target) == transcript.token_ids(draft)


def test_what_another_model_wrote_ends_nothing(tokenizer_folder: Path) -> None:
    draft, target = ScriptedEngine("draft", ""), ScriptedEngine("target", "")
    target.tokenizer = HFTokenizer(tokenizer_folder)  # type: ignore[assignment]
    transcript = Transcript(QUESTION, (draft, target))
    prompt = list(transcript.token_ids(target))
    text = "It says <|end|>, and continues."

    transcript.commit(Step(text, tuple(draft.tokenizer.encode(text)), "draft"))

    written = transcript.token_ids(target)[len(prompt) :]
    assert not target.tokenizer.eos_token_ids & set(written)
    assert target.tokenizer.decode(written) == text


def test_chat_template_is_applied_once_for_each_vocabulary_and_request() -> None:
    engines = {name: ScriptedEngine(name, "") for name in ("draft", "target")}
    tokenizer = CountingTokenizer()
    for engine in engines.values():
        engine.tokenizer = tokenizer
    request = Request(QUESTION)

    for again in (request, replace(request, seed=1), replace(request, committed=(Step("x", (1,), "draft"),))):
        for engine in engines.values():
            Transcript.of(again, engines).token_ids(engine)

    assert len(tokenizer.encoded) == 1


def test_room_is_what_the_context_still_holds() -> None:
    engine = WordEngine("words", max_model_len=20)
    transcript = Transcript(QUESTION)
    used = len(transcript.token_ids(engine))

    assert transcript.room(engine) == 20 - used


def test_prompt_that_fills_the_context_is_refused_with_its_size_and_the_way_out() -> None:
    engine = WordEngine("words", max_model_len=10)

    with pytest.raises(RequestError, match=r"the prompt has \d+ tokens, engine 'words' takes at most 9; shorten"):
        Transcript((Message("user", "word " * 10),)).token_ids(engine)
