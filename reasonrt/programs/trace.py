"""What a run did, as JSON: programs, observations, votes. The server's trace page shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from reasonrt.programs.candidate import Turn
from reasonrt.programs.context import Context
from reasonrt.programs.journal import digest
from reasonrt.programs.selection import Selection
from reasonrt.programs.trials import Status, Trial

SCHEMA: Final = "reasonrt.program_trace/1"
_TIMES = frozenset({"seconds"})
_CUT_OFF = (Status.CANCELLED, Status.DEADLINE)


@dataclass(frozen=True, slots=True)
class Trace:
    """One run.

    Attributes:
        value: plain JSON data.
        sha256: of everything in it but times and candidates that were cut off: equal for a run and its
            replay.
    """

    value: Mapping[str, Any]
    sha256: str

    @classmethod
    def of(
        cls,
        *,
        question: str,
        context: Context,
        strategy: str,
        selection: Selection,
        status: Status,
        trials: Sequence[Mapping[str, Any]],
    ) -> Self:
        """The trace of a run; `trials` by `trial_as_json`."""
        documents = zip(context.names, context.documents, strict=True)
        value = {
            "schema": SCHEMA,
            "question": question,
            "context": [{"name": name, "characters": len(document.text)} for name, document in documents],
            "strategy": strategy,
            "answer": selection.answer,
            "status": status.value,
            "abstained": selection.abstained,
            "shares": dict(selection.shares),
            "trials": list(trials),
        }
        lasting = {**value, "trials": [_lasting(trial) for trial in trials if trial["status"] not in _CUT_OFF]}
        sha256 = digest(lasting)
        return cls({**value, "trace_hash": sha256}, sha256)


def trial_as_json(trial: Trial, turns: Sequence[Turn]) -> dict[str, Any]:
    """A candidate with its turns; one that was cut off has none."""
    return {**asdict(trial), "status": trial.status.value, "turns": [asdict(turn) for turn in turns]}


def _lasting(trial: Mapping[str, Any]) -> dict[str, Any]:
    turns = [{name: value for name, value in turn.items() if name not in _TIMES} for turn in trial["turns"]]
    return {**trial, "turns": turns}
