"""Log-probabilities as servers send them."""

from copy import copy
from typing import Any

import pytest

from reasonrt.engines.remote_wire import BusyError, completion_body, logprobs_of
from reasonrt.errors import EngineError
from reasonrt.types import Penalties, Sampling


def choice(*places: dict[str, Any]) -> dict[str, Any]:
    """The first of each place is the one that was drawn."""
    return {
        "logprobs": {"token_logprobs": [next(iter(place.values())) for place in places], "top_logprobs": list(places)}
    }


DRAWN_FIRST = {"token_id:4": -2.0, "token_id:8": -0.5, "token_id:9": -1.0}
DRAWN_FAR_BELOW = {"token_id:4": -9.0, "token_id:8": -0.5, "token_id:9": -1.0, "token_id:1": -2.0}


@pytest.mark.parametrize(
    ("sampling", "drawn", "top", "ids"),
    [
        (Sampling(9), (), (), ()),
        (Sampling(9, logprobs=True), (-2.0, -9.0), (), ()),
        (Sampling(9, top_logprobs=3), (), ((-0.5, -1.0, -2.0),) * 2, ((8, 9, 4), (8, 9, 1))),
        (Sampling(9, logprobs=True, top_logprobs=1), (-2.0, -9.0), ((-0.5,),) * 2, ((8,), (8,))),
    ],
)
def test_only_what_was_asked_for_and_the_highest_first(sampling: Sampling, drawn: Any, top: Any, ids: Any) -> None:
    assert logprobs_of(choice(DRAWN_FIRST, DRAWN_FAR_BELOW), sampling, 2) == (drawn, top, ids)


def test_tokens_that_are_named_by_their_texts_have_no_ids() -> None:
    answer = choice({"x": -0.5, "token_id:3": -1.5})

    assert logprobs_of(answer, Sampling(9, top_logprobs=2), 1) == ((), ((-0.5, -1.5),), ())


def test_an_event_without_tokens_needs_none() -> None:
    assert logprobs_of({"logprobs": None}, Sampling(9, logprobs=True, top_logprobs=3), 0) == ((), (), ())


def test_rounding_above_certainty_is_cut_off() -> None:
    assert logprobs_of(choice({"token_id:4": 1e-7}), Sampling(9, top_logprobs=1), 1) == ((), ((0.0,),), ((4,),))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"logprobs": None},
        {"logprobs": {}},
        {"logprobs": {"top_logprobs": None}},
        choice(),
        {"logprobs": {"top_logprobs": [{}]}},
        {"logprobs": {"top_logprobs": [None]}},
        choice(DRAWN_FIRST, DRAWN_FIRST),
        choice({"token_id:4": "x"}),
        choice({"token_id:4": float("nan")}),
        choice({"token_id:4": float("-inf")}),
    ],
)
def test_missing_ones_are_an_error(answer: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, EngineError)):
        logprobs_of(answer, Sampling(9, top_logprobs=2), 1)


def test_a_server_that_mixes_up_reads_and_generations_is_told() -> None:
    mixed_up = choice({"token_id:4": -2.0, "token_id:0": -9999.0})

    with pytest.raises(EngineError, match=r"lost the highest log-probabilities .* V2 model runner"):
        logprobs_of(mixed_up, Sampling(9, top_logprobs=2), 1)


@pytest.mark.parametrize(
    ("sampling", "top_k", "min_p"), [(Sampling(9), -1, 0.0), (Sampling(9, top_k=5, min_p=0.1), 5, 0.1)]
)
def test_body_says_what_is_drawn_from(sampling: Sampling, top_k: int, min_p: float) -> None:
    body = completion_body("model", [1], sampling, [2], "")

    assert (body["top_k"], body["min_p"]) == (top_k, min_p)


@pytest.mark.parametrize("penalties", [Penalties(), Penalties(1.5, -0.5, 1.1)])
def test_body_says_what_penalties_there_are(penalties: Penalties) -> None:
    """Also where there are none: a server may have some of its own, from the model's folder."""
    body = completion_body("model", [1], Sampling(9, penalties=penalties), [2], "")

    sent = body["presence_penalty"], body["frequency_penalty"], body["repetition_penalty"]
    assert sent == (penalties.presence, penalties.frequency, penalties.repetition)


def test_busy_server_is_told_of_by_a_replica_too() -> None:
    error = copy(BusyError("busy; try again later", 2.0))  # as it is unpickled

    assert (str(error), error.after_s) == ("busy; try again later", 2.0)
