"""Trees as data: what scikit-learn has grown, the same in JSON, and nothing that could run in circles."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from reasonrt.trees import Tree, Trees

STUMP: dict[str, Any] = {
    "feature": (0, -1, -1),
    "threshold": (0.5, 0.0, 0.0),
    "left": (1, -1, -1),
    "right": (2, -1, -1),
    "value": (0.0, -1.0, 1.0),
}


@pytest.mark.parametrize("is_classifier", [False, True])
def test_they_are_what_scikit_learn_has_grown(is_classifier: bool) -> None:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    from reasonrt.calibration.trees import as_trees

    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(300, 3)).astype(np.float32).astype(float)  # as scikit-learn compares them
    target = numbers[:, 0] * numbers[:, 1] + 0.1 * rng.normal(size=300)
    kind = GradientBoostingClassifier if is_classifier else GradientBoostingRegressor
    model = kind(n_estimators=20, max_depth=3, random_state=0).fit(numbers, target > 0 if is_classifier else target)

    trees = as_trees(model)
    again = TypeAdapter(Trees).validate_json(json.dumps(trees.to_json()))

    expected = model.decision_function(numbers) if is_classifier else model.predict(numbers)
    assert [again(row) for row in numbers.tolist()] == pytest.approx(expected.tolist(), abs=1e-5)
    assert again == trees
    assert again.num_features == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": (0, -1, -1)}, "node 0 leads out of its tree"),  # in a circle
        ({"right": (3, -1, -1)}, "node 0 leads out of its tree"),
        ({"value": (0.0, -1.0)}, "columns differ in length"),
        ({"value": (0.0, float("nan"), 1.0)}, "not finite"),
        ({"threshold": (float("inf"), 0.0, 0.0)}, "not finite"),
        (dict.fromkeys(STUMP, ()), "has 0 nodes"),
        ({name: tuple(column) * 100 for name, column in STUMP.items()}, "has 300 nodes, and must have 1 to 127"),
    ],
)
def test_what_is_no_tree_is_refused(change: dict[str, Any], message: str) -> None:
    assert Tree(**STUMP)([0.5]) == -1.0

    with pytest.raises(ValueError, match=message):
        Tree(**STUMP | change)


def test_too_many_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 trees are more than 1000"):
        Trees(0.0, (Tree(**STUMP),) * 1001)
    with pytest.raises(ValueError, match="the base of the trees is not finite"):
        Trees(float("inf"), ())
