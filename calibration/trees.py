"""From scikit-learn's gradient boosting to the trees that are served."""

from typing import Any

from reasonrt.trees import Tree, Trees


def as_trees(model: Any) -> Trees:
    """A fitted `GradientBoostingRegressor`, or `GradientBoostingClassifier` of two classes: the log-odds of the second.

    Numbers keep six digits. What lies on a threshold may fall elsewhere: scikit-learn compares in float32.
    """
    trees = tuple(_as_tree(estimator.tree_, model.learning_rate) for (estimator,) in model.estimators_)
    nothing = [0.0] * model.n_features_in_
    score = getattr(model, "decision_function", model.predict)
    return Trees(float(score([nothing])[0]) - sum(tree(nothing) for tree in trees), trees)


def _as_tree(tree: Any, weight: float) -> Tree:
    return Tree(
        feature=tuple(max(-1, int(feature)) for feature in tree.feature),
        threshold=tuple(map(_short, tree.threshold)),
        left=tuple(map(int, tree.children_left)),
        right=tuple(map(int, tree.children_right)),
        value=tuple(_short(weight * value) for value in tree.value[:, 0, 0]),
    )


def _short(number: float) -> float:
    return float(f"{number:.6g}")
