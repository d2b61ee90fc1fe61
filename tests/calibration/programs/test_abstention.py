"""The promise of abstention: P(wrong | answered) below alpha, with probability at least 1 - delta."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reasonrt.benches.programs_simulated import certificate_redraws, simulate
from reasonrt.calibration.programs.abstention import SHARES, certify_abstention
from reasonrt.calibration.programs.questions import Question, believed, draw, is_right
from reasonrt.calibration.programs.tables import replay, vote_tables
from reasonrt.calibration.programs.votes import fit_weights
from reasonrt.calibration.stopping.bounds import binomial_p_value
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.calibration.stopping.sample_size import Infeasible
from reasonrt.errors import CalibrationError
from reasonrt.programs.weights import ProgramCertificate

Exceeds = Callable[[int, int, float], bool]


def simulated(num_questions: int, seed: int, confidence: str = "weak") -> list[Question]:
    return simulate(num_questions, 8, confidence, np.random.default_rng(seed))


LEARNED_FROM, CERTIFIED_ON = simulated(400, 0), simulated(500, 1)
WEIGHTS = fit_weights(LEARNED_FROM)


def certified(**changes: object) -> ProgramCertificate:
    arguments: dict[str, object] = {"order_on": LEARNED_FROM, "alpha": 0.1, "delta": 0.1} | changes
    weights, questions = arguments.pop("weights", WEIGHTS), arguments.pop("questions", CERTIFIED_ON)
    found = certify_abstention(weights, questions, **arguments).certificate  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("stops_early", [True, False])
def test_a_certificate_is_what_serving_would_have_done(stops_early: bool) -> None:
    found = certified(stops_early=stops_early)
    weights = replace(WEIGHTS, certificate=found)
    served = [(draw(question, "answer_mass", weights, stops_early)[0], question) for question in CERTIFIED_ON]
    answered = [(selection, question) for selection, question in served if not selection.abstained]

    assert found.n == len(answered) == round(found.coverage * len(CERTIFIED_ON))
    assert found.k == sum(not is_right(selection.answer, question) for selection, question in answered)
    assert found.p_value == binomial_p_value(found.k, found.n, 0.1) <= 0.1
    assert found.abstain_below in SHARES
    assert found.stops_early is stops_early
    assert all(believed(selection) for selection, _ in served)
    assert weights.abstain_below == found.abstain_below


def test_a_looser_promise_answers_no_less() -> None:
    coverages = [certified(alpha=alpha).coverage for alpha in (0.08, 0.1, 0.15, 0.3)]

    assert coverages == sorted(coverages)
    assert coverages[0] < 0.95 < 0.99 < coverages[-1]


def test_the_questions_to_certify_on_decide_no_order() -> None:
    """Where everything was right, the boldest threshold is the best to test; it fails, and no other is looked at."""
    all_right = [
        question._replace(trials=[replace(trial, answer=question.gold) for trial in question.trials])
        for question in LEARNED_FROM
    ]

    assert certified().coverage > 0.5
    with pytest.raises(Infeasible, match="the first threshold is wrong on"):
        certified(order_on=all_right)


def test_tries_under_a_ledger_share_delta(tmp_path: Path) -> None:
    """The same again is the same try; another one has half of what is left, and the order of the questions is none."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    shuffled = [CERTIFIED_ON[place] for place in np.random.default_rng(0).permutation(len(CERTIFIED_ON))]

    first = certified(ledger=ledger)
    assert first == replace(certified(delta=0.05), delta=0.1, number=1) == certified(ledger=ledger)
    assert certified(ledger=ledger, alpha=0.15).number == 2
    assert certified(ledger=ledger, questions=shuffled, alpha=0.2).number == 3
    with pytest.raises(CalibrationError, match=r"share delta 0\.1, this one has 0\.2"):
        certified(ledger=ledger, delta=0.2)
    with pytest.raises(CalibrationError, match="100 of the 500 problems of earlier tries are left out"):
        certified(ledger=ledger, questions=CERTIFIED_ON[:400])


def test_questions_that_are_recorded_again_are_those_that_were_tried(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    drawn, again = ([q._replace(problem=f"{n}") for n, q in enumerate(simulated(500, seed))] for seed in (1, 2))

    assert certified(ledger=ledger, questions=drawn).number == 1
    assert certified(ledger=ledger, questions=again).number == 2


def test_a_try_that_could_show_nothing_costs_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    with pytest.raises(Infeasible, match="takes 59 answered questions"):  # at half of delta, and there are 50
        certified(ledger=ledger, questions=CERTIFIED_ON[:50], alpha=0.05, delta=0.1)
    assert certified(ledger=ledger, questions=CERTIFIED_ON[:50], alpha=0.3).number == 1


def test_a_certificate_that_stood_before_changes_nothing() -> None:
    before = certify_abstention(WEIGHTS, CERTIFIED_ON, order_on=LEARNED_FROM, alpha=0.3, delta=0.1)

    assert certified(weights=before) == certified()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": CERTIFIED_ON[:21]}, "takes 22 answered questions, even without a wrong one; the first"),
        ({"alpha": 0.01}, "takes 230 answered questions|too many for selective_error below 0.01"),
        (
            {"questions": [question._replace(gold="nobody said it") for question in CERTIFIED_ON]},
            r"is wrong on (\d+) of \1 answered questions, too many",
        ),
    ],
)
def test_infeasible_raises_and_is_no_edge_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Infeasible, match=message) as refused:
        certified(**changes)

    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, CalibrationError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\)"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\)"),
        ({"order_on": [*LEARNED_FROM, CERTIFIED_ON[3]]}, "1 questions to certify on also decide the order"),
        (
            {  # recorded anew: other trials of the same question
                "order_on": [*LEARNED_FROM[1:], LEARNED_FROM[0]._replace(problem="a")],
                "questions": [*CERTIFIED_ON[1:], CERTIFIED_ON[0]._replace(problem="a")],
            },
            "1 questions to certify on also decide the order",
        ),
        (
            {"questions": [CERTIFIED_ON[0]._replace(problem="a"), CERTIFIED_ON[1]._replace(problem="a")]},
            "1 questions to certify on are there twice",
        ),
        ({"questions": []}, "0 questions have no trials"),
        (
            {"questions": [question._replace(trials=question.trials[:5]) for question in CERTIFIED_ON]},
            "for 8 trials of a question, these have 5",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as refused:
        certified(**changes)

    assert not isinstance(refused.value, Infeasible)


Choose = Callable[[list[Question]], float]


@pytest.fixture(scope="module")
def draws() -> list[list[Question]]:
    return [simulated(100, 2000 + seed) for seed in range(50)]


@pytest.fixture(scope="module")
def violations(draws: list[list[Question]]) -> Callable[[Choose], int]:
    """How many draws give a threshold whose true risk is above 0.1."""
    population = replay(vote_tables(simulated(3000, 1000)), WEIGHTS)

    def count(choose: Choose) -> int:
        answered = [population.shares >= choose(questions) for questions in draws]
        return sum(bool(some.any() and population.is_right[some].mean() < 0.9) for some in answered)

    return count


def by_certificate(questions: list[Question]) -> float:
    try:
        return certified(questions=questions).abstain_below
    except Infeasible:
        return 2.0


def by_eye(questions: list[Question]) -> float:
    """The least threshold whose observed risk is below alpha: known to be wrong."""
    replayed = replay(vote_tables(questions), WEIGHTS)
    safe = [
        threshold
        for threshold in SHARES
        if (is_answered := replayed.shares >= threshold).any() and replayed.is_right[is_answered].mean() >= 0.9
    ]
    return min(safe, default=2.0)


def test_the_promise_is_kept(violations: Callable[[Choose], int], exceeds: Exceeds) -> None:
    assert not exceeds(violations(by_certificate), 50, 0.1)


def test_a_threshold_without_a_bound_is_found_out(violations: Callable[[Choose], int], exceeds: Exceeds) -> None:
    assert exceeds(violations(by_eye), 50, 0.1)


@pytest.mark.slow  # about 20 s on a free core: 120 calibrations, each from questions of its own
@pytest.mark.parametrize("confidence", ["informative", "weak"])
def test_the_promise_is_kept_when_all_is_learned_anew(confidence: str, exceeds: Exceeds) -> None:
    found = certificate_redraws(120, 8, confidence, np.random.default_rng(7))

    assert found["certified"] >= 90
    assert not exceeds(120 - found["held"], 120, 0.1)
    assert found["held"] >= 108
