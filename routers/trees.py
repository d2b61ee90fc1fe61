"""A boosted ensemble of regression trees as plain data: read from JSON, evaluated in microseconds, no pickle."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Tree:
    """One regression tree; node 0 is its root.

    Attributes:
        feature: index of the number that a node compares; -1 at a leaf.
        threshold: at most so much goes left.
        left, right: the next node.
        value: what a leaf adds.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __call__(self, numbers: Sequence[float]) -> float:
        node = 0
        while (feature := self.feature[node]) >= 0:
            node = self.left[node] if numbers[feature] <= self.threshold[node] else self.right[node]
        return self.value[node]


@dataclass(frozen=True, slots=True)
class Trees:
    """`base` and what each tree adds to it."""

    base: float
    trees: tuple[Tree, ...]

    def __call__(self, numbers: Sequence[float]) -> float:
        return self.base + sum(tree(numbers) for tree in self.trees)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises KeyError, TypeError or ValueError for what is no ensemble, or could run in circles."""
        trees = tuple(Tree(**{key: tuple(numbers) for key, numbers in tree.items()}) for tree in value["trees"])
        for tree in trees:
            nodes = len(tree.feature)
            if not nodes or any(len(column) != nodes for column in (tree.threshold, tree.left, tree.right, tree.value)):
                raise ValueError("a tree's columns differ in length")
            for node, feature in enumerate(tree.feature):
                # children stand after their parent: a walk from the root ends
                if feature >= 0 and not (node < tree.left[node] < nodes and node < tree.right[node] < nodes):
                    raise ValueError(f"node {node} leads out of its tree")
        return cls(float(value["base"]), trees)
