"""What is learned of candidates' votes: better than plurality where signals say something, plurality where not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from reasonrt.benches.programs_simulated import simulate
from reasonrt.calibration.programs.questions import Question, believed, draw, is_right
from reasonrt.calibration.programs.tables import replay, vote_tables
from reasonrt.calibration.programs.votes import MOST_LOST, fit_weights
from reasonrt.errors import CalibrationError
from reasonrt.programs.features import FEATURES, features_of
from reasonrt.programs.selection import Strategy, select
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.programs.weights import Weights


def simulated(num_questions: int, confidence: str, seed: int) -> list[Question]:
    return simulate(num_questions, 8, confidence, np.random.default_rng(seed))


INFORMATIVE = simulated(400, "informative", 0)
WEIGHTS = fit_weights(INFORMATIVE, model="m", task="simulated")


def ragged(num_questions: int, seed: int) -> list[Question]:
    """Questions in which trials fail, are forced, lack signals and have others."""
    rng = np.random.default_rng(seed)

    def spoil(trial: Trial) -> Trial:
        kinds = rng.random(6)
        return replace(
            trial,
            status=Status.FAILED if kinds[0] < 0.1 else Status.FORCED if kinds[0] < 0.2 else Status.FINAL,
            answer=None if kinds[0] < 0.05 else "" if kinds[0] > 0.97 else trial.answer,
            confidences=() if kinds[1] < 0.3 else trial.confidences,
            num_tokens=0 if kinds[2] < 0.05 else trial.num_tokens,
            logprob_tail=None if kinds[3] < 0.5 else float(rng.normal()),
            evidence=(Evidence(0, 0, 1, "x"),) if kinds[4] < 0.5 else (),
            num_errors=int(rng.integers(3)) if kinds[5] < 0.99 else 10**9,
        )

    return [
        question._replace(trials=[spoil(trial) for trial in question.trials])
        for question in simulated(num_questions, "informative", seed)
    ]


def accuracy(questions: list[Question], weights: Weights | None) -> float:
    strategy: Strategy = "plurality" if weights is None else "answer_mass"
    chosen = [select(question.trials, strategy, question.kind, weights).answer for question in questions]
    return sum(map(is_right, chosen, questions)) / len(questions)


def test_weights_say_what_they_were_learned_from() -> None:
    assert (WEIGHTS.model, WEIGHTS.task, WEIGHTS.k, WEIGHTS.n) == ("m", "simulated", 8, 400)
    assert set(WEIGHTS.coefficients) == {"confidence", "length"}  # the others do not vary here
    assert WEIGHTS.coefficients["confidence"].slope > 1 > abs(WEIGHTS.coefficients["length"].slope)
    assert WEIGHTS.gate is not None
    assert WEIGHTS.gate.answer_mass > WEIGHTS.gate.plurality + 0.15
    assert Weights.from_json(WEIGHTS.to_json()) == WEIGHTS
    assert fit_weights(INFORMATIVE[::-1], model="m", task="simulated").vote == pytest.approx(WEIGHTS.vote, abs=1e-2)


def test_informative_signals_win_on_new_questions() -> None:
    questions = simulated(1000, "informative", 1)

    assert accuracy(questions, WEIGHTS) > accuracy(questions, None) + 0.15


@pytest.mark.parametrize("seed", range(3))
def test_uninformative_signals_leave_plurality(seed: int) -> None:
    weights = fit_weights(simulated(400, "uninformative", seed))
    questions = simulated(1000, "uninformative", 100 + seed)

    assert accuracy(questions, weights) >= accuracy(questions, None) - 0.01


def test_the_gate_closes_and_every_vote_is_one() -> None:
    weights = fit_weights(simulated(400, "uninformative", 0))
    assert weights.coefficients == {}

    for question in simulated(200, "uninformative", 9):
        by_mass, by_votes = (select(question.trials, s, question.kind, weights) for s in ("answer_mass", "plurality"))
        assert by_mass.trial_index == by_votes.trial_index


def test_the_gate_is_judged_on_questions_not_learned_from() -> None:
    """Eight features of pure noise on few questions: on the questions learned from they would seem to help."""
    rng = np.random.default_rng(0)

    def noisy(trial: Trial) -> Trial:
        return replace(
            trial,
            logprob_tail=float(rng.normal()),
            agreement=float(rng.random()),
            coverage=float(rng.random()),
            num_refuted=int(rng.integers(4)),
            num_errors=int(rng.integers(4)),
            evidence=(Evidence(0, 0, 1, "x"),) if rng.random() < 0.5 else (),
        )

    learned = [
        fit_weights(
            [
                question._replace(trials=[noisy(trial) for trial in question.trials])
                for question in simulated(60, "uninformative", seed)
            ]
        )
        for seed in range(8)
    ]

    assert sum(not weights.coefficients for weights in learned) >= 7
    gains = [weights.gate.answer_mass - weights.gate.plurality for weights in learned if weights.gate]
    assert np.mean(gains) < -0.02  # learned and judged on the same questions, it would be a gain


def test_shares_are_probabilities() -> None:
    """Among questions whose winning share is near p, about p are answered rightly."""
    weights = fit_weights(simulated(1000, "weak", 0))
    replayed = replay(vote_tables(simulated(2000, "weak", 1)), weights, stops_early=False)

    for low, high in [(0.3, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.0)]:
        inside = (replayed.shares >= low) & (replayed.shares < high)
        right, said = replayed.is_right[inside].mean(), replayed.shares[inside].mean()
        assert inside.sum() > 100
        assert abs(right - said) < 0.02 + 3 * math.sqrt(said * (1 - said) / inside.sum())


@pytest.mark.parametrize("stops_early", [True, False])
@pytest.mark.parametrize("features", [True, False])
def test_the_arrays_do_what_serving_does(stops_early: bool, features: bool) -> None:
    weights = fit_weights(ragged(400, 3))
    assert {"confidence", "tail", "verified", "errors"} <= set(weights.coefficients)
    weights = weights if features else replace(weights, coefficients={}, settled_at=0.8)
    questions = ragged(150, 4)

    replayed = replay(vote_tables(questions), weights, stops_early)

    for row, question in enumerate(questions):
        selection, drawn = draw(question, "answer_mass", weights, stops_early)
        assert len(drawn) == replayed.num_drawn[row]
        assert selection.share == pytest.approx(replayed.shares[row])
        assert (selection.num_votes > 0 and is_right(believed(selection), question)) == replayed.is_right[row]
    assert not stops_early or len(set(replayed.num_drawn)) > 3


def test_evidence_of_the_arrays_is_that_of_the_weights() -> None:
    weights = fit_weights(ragged(400, 3))
    questions = ragged(20, 4)
    table = vote_tables(questions)[-1]

    evidence = table.evidence(weights)

    for row, question in enumerate(questions):
        voting = [trial for trial in question.trials if trial.status is Status.FINAL and trial.answer]
        expected = [weights.evidence(features) for features in features_of(voting)]
        assert evidence[row, : len(voting)].tolist() == pytest.approx(expected)
    assert table.features.shape == (20, 8, len(FEATURES))


def test_stopping_early_saves_and_costs_little() -> None:
    weights = fit_weights(simulated(1200, "informative", 5))
    tables = vote_tables(simulated(2000, "informative", 6))

    early, whole = replay(tables, weights), replay(tables, weights, stops_early=False)

    assert weights.settled_at is not None
    assert early.num_drawn.mean() < 0.6 * whole.num_drawn.mean()
    assert early.is_right.mean() > whole.is_right.mean() - 2 * MOST_LOST


def test_too_few_questions_to_judge_the_cost_leave_early_stop_off() -> None:
    assert fit_weights(simulated(60, "informative", 0)).settled_at is None  # one answer lost would be 1.7 points


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (INFORMATIVE[:49], "49 questions are too few, it takes 50"),
        ([question._replace(gold="nobody said it") for question in INFORMATIVE], "no trial of 400 questions has"),
        ([question._replace(trials=question.trials[:2]) for question in INFORMATIVE], "from 2 to 2 trials"),
        (
            [*INFORMATIVE, INFORMATIVE[0]._replace(trials=INFORMATIVE[0].trials[:5])],
            "from 5 to 8 trials; each needs the same number, 3 or more: record with early stop off",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(questions: list[Question], message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as refused:
        fit_weights(questions)

    assert "\n" not in str(refused.value)


def test_questions_that_are_all_right_leave_plurality() -> None:
    easy = [
        question._replace(trials=[replace(t, answer=question.gold) for t in question.trials])
        for question in INFORMATIVE
    ]

    weights = fit_weights(easy)

    assert weights.coefficients == {}
    assert select(easy[0].trials, "answer_mass", "text", weights).share > 0.95
