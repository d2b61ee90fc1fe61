"""Selection among candidate programs against the truth: a simulated model whose right answers are known.

Each question has a right answer and six wrong ones. How often a candidate is right differs between questions, around
35 %; what a candidate says of its steps may depend on whether it is right, or not. Strategies run by the functions
that serve: `select` and `is_settled`. Weights are learned, and thresholds certified, from draws of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from reasonrt.calibration.programs.abstention import certify_abstention
from reasonrt.calibration.programs.questions import Question, draw, is_right
from reasonrt.calibration.programs.tables import replay, vote_tables
from reasonrt.calibration.programs.votes import fit_weights
from reasonrt.calibration.stopping.sample_size import Infeasible
from reasonrt.evals.statistics import wilson_interval
from reasonrt.programs.selection import Selection, Strategy
from reasonrt.programs.trials import Status, Trial

Betas = tuple[tuple[float, float], tuple[float, float]]
ALPHA: Final = 0.1
DELTA: Final = 0.1
CONFIDENCES: Final[Mapping[str, Betas]] = {
    "informative": ((8.0, 2.0), (5.0, 4.0)),
    "overconfident": ((20.0, 1.5), (14.0, 2.5)),
    "weak": ((7.0, 2.0), (5.0, 3.0)),
    "uninformative": ((7.0, 2.0), (7.0, 2.0)),
}
"""The two parameters of the Beta of a step's confidence, in a right candidate and in a wrong one."""

_ARMS: Final[Mapping[str, tuple[Strategy, bool]]] = {
    "rlm": ("rlm", True),
    "plurality": ("plurality", False),
    "plurality, early stop": ("plurality", True),
    "srlm": ("srlm", False),
    "answer_mass": ("answer_mass", False),
    "answer_mass, early stop": ("answer_mass", True),
}
"""The strategy of each, and whether candidates that cannot change the answer any more are left out."""

_NUM_WRONG = 6
_ANSWERS = ("right", *(f"wrong {number}" for number in range(1, _NUM_WRONG + 1)))
_P_RIGHT, _CONCENTRATION = 0.35, 10.0  # of the Beta from which each question's probability is drawn
_LEAST_TURNS, _MOST_TURNS = 2, 8
_NUM_SEEDS = 20
_CERTIFIED = ("informative", "weak")  # with the first, nearly all questions can be answered; the second is the test
_LOG_TOKENS, _LOG_TOKENS_SPREAD = 5.5, 0.5  # per turn


def simulate(num_questions: int, k: int, confidence: str, rng: np.random.Generator) -> list[Question]:
    """Questions with k candidates each.

    Args:
        confidence: a name in `CONFIDENCES`.
    """
    betas = np.array(CONFIDENCES[confidence])  # [right or wrong, two parameters]
    shape = (num_questions, k)
    p_right = rng.beta(_P_RIGHT * _CONCENTRATION, (1 - _P_RIGHT) * _CONCENTRATION, num_questions)
    is_wrong = rng.random(shape) >= p_right[:, None]
    said = np.where(is_wrong, rng.integers(1, _NUM_WRONG + 1, shape), 0)
    turns = rng.integers(_LEAST_TURNS, _MOST_TURNS + 1, shape)
    a, b = (betas[is_wrong.astype(int), parameter][:, :, None] for parameter in (0, 1))
    # a model asked for one of 1 to 100
    confidences = np.clip(np.ceil(100 * rng.beta(a, b, (*shape, _MOST_TURNS))), 1, 100) / 100
    tokens = rng.lognormal(_LOG_TOKENS, _LOG_TOKENS_SPREAD, (*shape, _MOST_TURNS)).astype(int)
    return [
        Question(
            trials=[
                Trial(
                    index=index,
                    status=Status.FINAL,
                    answer=_ANSWERS[said[row, index]],
                    confidences=tuple(confidences[row, index, : turns[row, index]].tolist()),
                    num_tokens=int(tokens[row, index, : turns[row, index]].sum()),
                    num_turns=int(turns[row, index]),
                )
                for index in range(k)
            ],
            gold=_ANSWERS[0],
            kind="text",
        )
        for row in range(num_questions)
    ]


def measure_simulated(num_questions: int = 2000, k: int = 8, redraws: int = 200, seed: int = 0) -> dict[str, Any]:
    """Every arm on the same questions, for each kind of confidence, and what the certificates of redraws came to.

    Args:
        num_questions: to measure on; weights are learned from as many others.
        redraws: calibrations, each from draws of its own, whose certificates are held against a large population.

    Returns:
        rows: of one arm and one kind of confidence each; accuracies with 95 % intervals, in the abstaining arm of
            the questions that it answered.
        uninformative: `answer_mass` less `plurality`, in points, for calibrations and questions of several seeds.
        certificates: for two kinds of confidence, how many of the redraws gave one, and how many kept the promise.
    """
    rows = [
        row
        for number, confidence in enumerate(CONFIDENCES)
        for row in arm_rows(num_questions, k, confidence, np.random.default_rng([seed, number]))
    ]
    return {
        "settings": {"num_questions": num_questions, "k": k, "redraws": redraws, "seed": seed},
        "rows": rows,
        "uninformative": uninformative_gaps(num_questions, k, _NUM_SEEDS, np.random.default_rng([seed, 100])),
        "certificates": [
            certificate_redraws(redraws, k, confidence, np.random.default_rng([seed, 101, number]))
            for number, confidence in enumerate(_CERTIFIED)
        ],
    }


def arm_rows(num_questions: int, k: int, confidence: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One row for each arm; the abstaining one is left out where nothing can be certified."""
    learned_from, certified_on, questions = (simulate(num_questions, k, confidence, rng) for _ in range(3))
    weights = fit_weights(learned_from, task="simulated")
    for arm, (strategy, stops_early) in _ARMS.items():
        drawn = [draw(question, strategy, weights, stops_early) for question in questions]
        yield _row(arm, confidence, questions, drawn)
    found = [question.gold in [trial.answer for trial in question.trials] for question in questions]
    yield _summary(f"oracle@{k}", confidence, found, _tokens(question.trials for question in questions), 0.0)
    try:
        weights = certify_abstention(weights, certified_on, order_on=learned_from, alpha=ALPHA, delta=DELTA)
    except Infeasible:
        return
    drawn = [draw(question, "answer_mass", weights) for question in questions]
    yield _row("answer_mass, abstaining", confidence, questions, drawn)


def uninformative_gaps(num_questions: int, k: int, num_seeds: int, rng: np.random.Generator) -> dict[str, Any]:
    """`answer_mass` less `plurality`, in points, where confidences say nothing."""
    gaps: list[float] = []
    early_gaps: list[float] = []
    for _ in range(num_seeds):
        weights = fit_weights(simulate(num_questions, k, "uninformative", rng))
        tables = vote_tables(simulate(num_questions, k, "uninformative", rng))
        plurality = tables[-1].winners(tables[-1].camps.sum(axis=1))[1].mean()
        for stops_early, found in ((False, gaps), (True, early_gaps)):
            found.append(100 * float(replay(tables, weights, stops_early).is_right.mean() - plurality))
    return {
        "num_seeds": num_seeds,
        "worst_points": min(gaps),
        "mean_points": float(np.mean(gaps)),
        "worst_points_early_stop": min(early_gaps),
        "mean_points_early_stop": float(np.mean(early_gaps)),
    }


def certificate_redraws(
    redraws: int,
    k: int,
    confidence: str,
    rng: np.random.Generator,
    num_learned: int = 200,
    num_certified: int = 300,
    num_population: int = 10_000,
) -> dict[str, Any]:
    """Calibrate anew `redraws` times, and ask a population how often its wrong answers exceed what was promised.

    Where nothing can be certified, nothing is promised, and the promise is kept.
    """
    population = vote_tables(simulate(num_population, k, confidence, rng))
    risks, coverages = [], []
    for _ in range(redraws):
        learned_from, certified_on = (simulate(n, k, confidence, rng) for n in (num_learned, num_certified))
        try:
            weights = fit_weights(learned_from)
            weights = certify_abstention(weights, certified_on, order_on=learned_from, alpha=ALPHA, delta=DELTA)
        except Infeasible:
            continue
        replayed = replay(population, weights)
        is_answered = replayed.shares >= (weights.abstain_below or 0)
        risks.append(float(1 - replayed.is_right[is_answered].mean()))
        coverages.append(float(is_answered.mean()))
    held = redraws - sum(risk > ALPHA for risk in risks)
    return {
        "confidence": confidence,
        "alpha": ALPHA,
        "delta": DELTA,
        "redraws": redraws,
        "certified": len(risks),
        "held": held,
        "mean_risk": float(np.mean(risks)) if risks else None,
        "mean_coverage": float(np.mean(coverages)) if coverages else None,
        "learned_from": num_learned,
        "certified_on": num_certified,
        "population": num_population,
    }


def _row(
    arm: str, confidence: str, questions: Sequence[Question], drawn: Sequence[tuple[Selection, Sequence[Trial]]]
) -> dict[str, Any]:
    answered = [
        is_right(selection.answer, question)
        for (selection, _), question in zip(drawn, questions, strict=True)
        if not selection.abstained
    ]
    return _summary(arm, confidence, answered, _tokens(trials for _, trials in drawn), 1 - len(answered) / len(drawn))


def _summary(
    arm: str, confidence: str, is_right: Sequence[bool], tokens_per_question: float, abstained: float
) -> dict[str, Any]:
    low, high = wilson_interval(sum(is_right), len(is_right))
    return {
        "arm": arm,
        "task": "simulated",
        "confidence": confidence,
        "n": len(is_right),
        "accuracy": sum(is_right) / len(is_right),
        "accuracy_low": low,
        "accuracy_high": high,
        "tokens_per_question": tokens_per_question,
        "abstained": abstained,
    }


def _tokens(groups: Iterable[Sequence[Trial]]) -> float:
    """Per question."""
    return float(np.mean([sum(trial.num_tokens for trial in trials) for trials in groups]))
