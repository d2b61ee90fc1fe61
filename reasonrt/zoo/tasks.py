"""The zoo's problems as evaluation tasks: `zoo`, each family by its name, and one level as `gcd:3`."""

from collections.abc import Sequence

from reasonrt.errors import EvalError, shown
from reasonrt.evals.tasks import TaskProblem
from reasonrt.zoo.problems import FAMILIES, LEVELS, MIXTURE, SPLITS, is_split, mixture


class ZooTasks:
    """The object that the entry point `reasonrt.tasks` names. `unsolvable` has no answers and so is no task."""

    def names(self) -> Sequence[str]:
        return ["zoo", *sorted(set(FAMILIES) - {"unsolvable"})]

    def load(self, name: str, split: str, limit: int) -> list[TaskProblem]:
        if not is_split(split):
            raise EvalError(
                f"unknown split {shown(split)}; there are {', '.join(SPLITS)}, and drawn again test-2, test-3, ..."
            )
        return [
            TaskProblem(
                problem.id, problem.question, problem.answer, f"{problem.family}/{problem.level}", is_exact=True
            )
            for problem in mixture(split, limit, self._shares(name))
        ]

    def _shares(self, name: str) -> dict[tuple[str, int], float]:
        family, colon, level = name.partition(":")
        if family == "zoo" and not colon:
            return MIXTURE
        if not colon:
            of_family = {key: share for key, share in MIXTURE.items() if key[0] == family}
            return {key: share / sum(of_family.values()) for key, share in of_family.items()}
        if family == "zoo" or level not in map(str, LEVELS) or (family == "gsm_symbolic" and level != "1"):
            raise EvalError(
                f"unknown task {shown(name)}; a level is FAMILY:1 to FAMILY:{LEVELS[-1]}, gsm_symbolic has one"
            )
        return {(family, int(level)): 1.0}


zoo_task = ZooTasks()
