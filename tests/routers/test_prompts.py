"""What judging models read: the published formats, and prompts that only grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.routers.prompts import LAYOUTS, LayoutName, StepPrompt
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Step

WORDS = st.text("abc 1", min_size=1, max_size=6).map(lambda text: text + "\n\n")


class CountingTokenizer(CharacterTokenizer):
    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return super().encode(text)


def read(layout: LayoutName, *texts: tuple[str, str]) -> str:
    """What a judge reads of the last of these (author, text) steps, the others being committed."""
    engine = ScriptedEngine("judge", "")
    transcript = Transcript((Message("user", "Why?"),), (), [Step(text, (1,), author) for author, text in texts[:-1]])
    author, text = texts[-1]
    return engine.tokenizer.decode(StepPrompt(engine, LAYOUTS[layout]).token_ids(transcript, Step(text, (1,), author)))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("plain", "[user] Why?\n[assistant] A\n\nB\n\n"),
        ("marked", "[user] Why?\n[assistant] Model 1: A\n\nModel 0: B\n\n"),
        ("skywork", "Why?\nA\nB\n"),
    ],
)
def test_layouts_are_the_published_formats(layout: LayoutName, expected: str) -> None:
    assert read(layout, ("target", "A\n\n"), ("draft", "B\n\n")) == expected


def test_parts_of_a_step_are_read_as_one_and_the_targets_where_any_is() -> None:
    engine = ScriptedEngine("judge", "")
    parts = [
        Step("th", (1, 2), "draft", False),
        Step("r", (3,), "target", False),
        Step("ee\n\n", (4, 5, 6), "draft"),
        Step("fo", (1, 2), "draft", False),
        Step("ur\n\n", (3, 4, 5), "draft"),
    ]
    transcript = Transcript((Message("user", "Why?"),), (), parts)

    ids = StepPrompt(engine, LAYOUTS["marked"]).token_ids(transcript, Step("B\n\n", (1,), "draft"))

    assert engine.tokenizer.decode(ids) == "[user] Why?\n[assistant] Model 1: three\n\nModel 0: four\n\nModel 0: B\n\n"


def test_qwens_reward_model_reads_each_step_before_its_mark() -> None:
    said = read("qwen_prm", ("target", "A\n\n"), ("draft", "B\n\n"))

    assert said.startswith("[system] Please reason step by step")
    assert said.endswith("[user] Why?\n[assistant] A<extra_0>B<extra_0>")


@given(st.sampled_from(sorted(LAYOUTS)), st.lists(st.tuples(WORDS, WORDS, st.booleans()), max_size=6))
def test_each_prompt_begins_with_what_was_committed_and_no_step_is_encoded_twice(
    layout: LayoutName, steps: list[tuple[str, str, bool]]
) -> None:
    engine = ScriptedEngine("judge", "")
    engine.tokenizer = tokenizer = CountingTokenizer()
    transcript = Transcript((Message("user", "Why?"),))
    prompt = StepPrompt(engine, LAYOUTS[layout])
    committed: list[int] = []

    for drafted, targeted, takes_target in steps:
        draft = Step(drafted, (1,), "draft")
        ids = prompt.token_ids(transcript, draft)
        assert ids[: len(committed)] == committed
        before = len(tokenizer.encoded)
        assert prompt.token_ids(transcript, draft) == ids
        assert len(tokenizer.encoded) == before
        transcript.commit(Step(targeted, (1,), "target") if takes_target else draft)
        committed = ids if not takes_target else ids[: len(committed)]
