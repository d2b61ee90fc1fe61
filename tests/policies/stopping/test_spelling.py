"""Answers of equal value get one spelling, whether they come one by one or as a whole trace."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from reasonrt.policies.stopping.spelling import Spelling, unify_answers
from reasonrt.policies.stopping.traces import Checkpoint, Trace


def same(a: str, b: str) -> bool:
    return Fraction(a) == Fraction(b)


def test_the_first_spelling_stands() -> None:
    points = [Checkpoint(1, "0.50"), Checkpoint(2, " "), Checkpoint(3, "1/2"), Checkpoint(4, "0.7")]

    unified = unify_answers(Trace("p", points, 5, "0.5", "1/2"), same)

    assert [point.answer for point in unified.checkpoints] == ["0.50", None, "0.50", "0.7"]
    assert (unified.full_answer, unified.gold) == ("0.50", "0.50")


@given(st.lists(st.sampled_from(["1", "1.0", "2/2", "3", "3/1", "", None]), max_size=12))
def test_one_by_one_as_in_a_whole(answers: list[str | None]) -> None:
    points = [Checkpoint(index, answer) for index, answer in enumerate(answers)]
    spelling = Spelling(same)

    live = [spelling.of(answer) for answer in answers]

    assert live == [point.answer for point in unify_answers(Trace("p", points, 99, "1", "3"), same).checkpoints]
