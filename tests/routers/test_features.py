"""The features of a draft step: as many as there are names, finite, and what their names say."""

import math

from hypothesis import given
from hypothesis import strategies as st

from reasonrt.routers.features import FEATURES, entropy, features
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Step

LOGPROBS = st.floats(-30, 0)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    length = draw(st.integers(0, 6))
    logprobs = tuple(draw(LOGPROBS) for _ in range(length)) if draw(st.booleans()) else ()
    tops = tuple(tuple(sorted(draw(st.lists(LOGPROBS, max_size=5)), reverse=True)) for _ in logprobs)
    return Step(
        draw(st.text(max_size=9)), (1,) * length, draw(st.sampled_from(["draft", "target"])), True, logprobs, tops
    )


def named(before: list[Step], step: Step) -> dict[str, float]:
    transcript = Transcript((Message("user", "What?"),), (), before)
    return dict(zip(FEATURES, features(transcript, step), strict=True))


@given(st.lists(steps(), max_size=5), steps())
def test_every_feature_of_any_step_is_a_finite_number(before: list[Step], step: Step) -> None:
    assert all(math.isfinite(value) for value in named(before, step).values())


def test_features_say_what_their_names_say() -> None:
    step = Step("a 12\n\n", (1, 2, 3), "draft", True, (-0.1, -2.0, -0.5), ((-0.1, -3.0), (-2.0, -2.5), (-0.5, -1.0)))
    before = [
        Step("one\n\n", (1, 2), "draft", True, (-0.2, -0.7)),
        Step("a 12\n\n", (1,), "target"),
        Step("three\n\n", (1,), "draft", True, (-0.3,)),
    ]

    found = named(before, step)

    expected = {
        "length_tokens": 3, "logprob_sum": -2.6, "logprob_min": -2.0, "logprob_second_min": -0.5, "margin_min": 0.5,
        "doubtful_tokens": 2, "place_of_min": 1 / 3, "digit_share": 2 / 6, "is_repeated": 1, "index": 3,
        "question_characters": 5, "committed_tokens": 4, "target_share": 1 / 3, "logprob_min_before": -0.7,
        "logprob_min_of_last": -0.3, "steps_since_target": 1,
    }  # fmt: skip
    assert {name: round(found[name], 9) for name in expected} == {k: round(v, 9) for k, v in expected.items()}


def test_parts_of_a_step_count_as_one() -> None:
    """As routers learned from them: a step of the target's has no log-probabilities."""
    step = Step("a 12\n\n", (1, 2, 3), "draft", True, (-0.1, -2.0, -0.5))
    parts = [
        Step("a ", (1,), "draft", False, (-3.0,)),
        Step("1", (2,), "target", False),
        Step("2\n\n", (3,), "draft", True, (-0.2,)),
        Step("b", (1,), "draft", False, (-0.3,)),
        Step("c\n\n", (2,), "draft", True, (-0.4,)),
    ]
    whole = [Step("a 12\n\n", (1, 2, 3), "target"), Step("bc\n\n", (1, 2), "draft", True, (-0.3, -0.4))]

    assert named(parts, step) == named(whole, step)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_entropy_lies_between_certainty_and_the_uniform(weights: list[float]) -> None:
    total = sum(weights) * 1.25  # a fifth is left to other tokens
    value = entropy([math.log(weight / total) for weight in weights])

    assert 0 <= value <= math.log(len(weights) + 1) + 1e-9


def test_certain_token_has_no_entropy() -> None:
    assert entropy([0.0, -100.0]) < 1e-30
