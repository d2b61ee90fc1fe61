"""Judges: labels stand where steps end, every step is judged once, and what is learned is found in new problems."""

import random
from pathlib import Path

import numpy as np
import pytest

from reasonrt.calibration.routers.step_pairs import RecordedProblem
from reasonrt.calibration.routers.training import advantages
from reasonrt.config import ZOO_FOLDER
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.zoo.judges import UNLABELLED, JudgeRecipe, crossed_scores, examples, judge_scores, train_judge


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(ZOO_FOLDER / "nano-draft")


def records(num: int, seed: int = 0) -> list[RecordedProblem]:
    """The draft is wrong exactly where it writes 13; the target never is."""
    rng = random.Random(seed)
    found = []
    for index in range(num):
        pairs = []
        for _ in range(5):
            is_wrong = rng.random() < 0.3
            pairs.append(
                {
                    "draft": f"{rng.randint(20, 99)} + 1 = {13 if is_wrong else 50}\n\n", "target": "20 + 1 = 21\n\n",
                    "draft_tokens": 3, "target_tokens": 3, "logprobs": [-0.1] * 3, "top_logprobs": [[-0.1]] * 3,
                    "draft_value": 0.0 if is_wrong else 1.0, "target_value": 1.0,
                    "taken": "target" if is_wrong and rng.random() < 0.7 else "draft",
                }
            )  # fmt: skip
        found.append(RecordedProblem(f"p{seed}-{index}", f"Add {index}", "g", pairs))
    return found


def test_router_examples_are_balanced_and_end_with_their_step(tokenizer: HFTokenizer) -> None:
    known = records(40)
    found = examples("nano-router", known, tokenizer)

    labels = [label for example in found for label in example.labels if label > UNLABELLED]
    assert labels.count(1.0) == int((advantages(known) > 0).sum())
    assert labels.count(0.0) == pytest.approx(labels.count(1.0), rel=0.35)
    for example in found:
        for place, label in enumerate(example.labels):
            if label > UNLABELLED:
                said = tokenizer.decode(example.token_ids[: place + 1])
                assert said.endswith("\n\n")
                step = said.rstrip("\n").rpartition("\n\n")[2]
                assert "Model 0: " in step
                assert (label == 1.0) == step.endswith("13")


def test_reward_examples_hold_the_value_of_both_steps_once(tokenizer: HFTokenizer) -> None:
    known = records(10)
    found = examples("nano-reward", known, tokenizer)

    labels = [label for example in found for label in example.labels if label > UNLABELLED]
    values = [value for r in known for pair in r.pairs for value in (pair["draft_value"], pair["target_value"])]
    assert sorted(labels) == sorted(values)


def test_judge_learns_what_tells_wrong_steps(tmp_path: Path) -> None:
    """About 10 s: the mark is one number."""
    train_judge("nano-router", records(120), tmp_path, JudgeRecipe(epochs=4, batch_tokens=2048))
    fresh = records(30, seed=1)

    scores = judge_scores("nano-router", fresh, tmp_path)

    wrong = advantages(fresh) > 0
    assert np.mean(scores[wrong]) > np.mean(scores[~wrong]) + 0.5


def test_crossed_scores_are_in_the_order_of_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reasonrt.zoo.judges as judges

    known = records(7)
    numbers = iter(np.split(np.arange(35), 7))
    of = {record.problem: next(numbers) for record in known}
    monkeypatch.setattr(judges, "train_judge", lambda *_: None)
    monkeypatch.setattr(
        judges, "judge_scores", lambda name, mine, folder: np.concatenate([of[r.problem] for r in mine])
    )

    assert crossed_scores("nano-router", known, tmp_path).tolist() == list(range(35))
