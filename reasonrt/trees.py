"""A boosted ensemble of regression trees as plain data: read from JSON, evaluated in microseconds, no pickle."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_MAX_TREES = 1000
_MAX_NODES = 127


@dataclass(frozen=True, slots=True)
class Tree:
    """One regression tree; node 0 is its root, and children stand after their parent.

    Attributes:
        feature: index of the number that a node compares; -1 at a leaf.
        threshold: at most so much goes left.
        left, right: the next node.
        value: what a leaf adds.

    Raises:
        ValueError: it is no tree, or a walk from its root might not end.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __post_init__(self) -> None:
        nodes = len(self.feature)
        if any(len(column) != nodes for column in (self.threshold, self.left, self.right, self.value)):
            raise ValueError("a tree's columns differ in length")
        if not 1 <= nodes <= _MAX_NODES:
            raise ValueError(f"a tree has {nodes} nodes, and must have 1 to {_MAX_NODES}")
        for node, feature in enumerate(self.feature):
            if feature >= 0 and not (node < self.left[node] < nodes and node < self.right[node] < nodes):
                raise ValueError(f"node {node} leads out of its tree")
        if not all(map(math.isfinite, (*self.threshold, *self.value))):
            raise ValueError("a tree holds a number that is not finite")

    def __call__(self, numbers: Sequence[float]) -> float:
        node = 0
        while (feature := self.feature[node]) >= 0:
            node = self.left[node] if numbers[feature] <= self.threshold[node] else self.right[node]
        return self.value[node]


@dataclass(frozen=True, slots=True)
class Trees:
    """`base` and what each tree adds to it.

    Raises:
        ValueError: too many trees, or a base that is not finite.
    """

    base: float
    trees: tuple[Tree, ...]

    def __post_init__(self) -> None:
        if len(self.trees) > _MAX_TREES:
            raise ValueError(f"{len(self.trees)} trees are more than {_MAX_TREES}")
        if not math.isfinite(self.base):
            raise ValueError("the base of the trees is not finite")

    def __hash__(self) -> int:
        return hash((self.base, len(self.trees)))  # of all nodes it would take as long as an answer

    def __call__(self, numbers: Sequence[float]) -> float:
        return self.base + sum(tree(numbers) for tree in self.trees)

    @property
    def num_features(self) -> int:
        """So many numbers at least must be given."""
        return 1 + max((feature for tree in self.trees for feature in tree.feature), default=-1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
