"""The boundary of a model is the one that cuts its own texts."""

import pytest

from reasonrt.boundaries import BoundaryKind
from reasonrt.calibration.boundaries import choose_boundary, cuts_of
from reasonrt.engines.scripted import CharacterTokenizer
from reasonrt.errors import CalibrationError

SENTENCE = "We add both numbers and get seven. "


@pytest.mark.parametrize(
    ("between", "kind"), [("\n\n", "blank_line"), ("\n", "line"), ("\r\n\r\n", "blank_line"), (" ", "sentence")]
)
def test_boundary_is_found_in_the_models_texts(between: str, kind: BoundaryKind) -> None:
    tokenizer = CharacterTokenizer()
    texts = [tokenizer.encode((SENTENCE.strip() + between) * 20) for _ in range(3)]

    cuts = cuts_of(texts, tokenizer)

    assert choose_boundary(cuts) == kind
    assert cuts[kind].steps_per_text == pytest.approx(20, abs=1)
    assert cuts[kind].too_long == 0


def test_short_answers_are_steps_as_they_are() -> None:
    tokenizer = CharacterTokenizer()

    assert choose_boundary(cuts_of([tokenizer.encode("It is 7.")], tokenizer)) == "blank_line"


def test_without_texts_nothing_is_found() -> None:
    with pytest.raises(CalibrationError, match="let the model write a few answers"):
        cuts_of([[]], CharacterTokenizer())
