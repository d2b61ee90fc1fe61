"""Traces that others recorded, in their formats; their answers are graded here, as ours are."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.files import FILES
from reasonrt.policies.stopping.traces import TRACE, Trace, TraceSet, problem_hash

_CONFORMAL_THINKING_SIGNALS = (
    "confidence",
    "probe_confidence",
    "entropy",
    "entropy_uni",
    "eat_uni",
    "eat_uni_forced",
)
_TEXTS = ("problem_id", "answer", "full_answer", "gold")


def read_conformal_thinking(path: Path) -> TraceSet:
    """A log of github.com/xidulu/reasoning_risk_control (`signal_util.load_log`): a JSON list, or mapping, of items.

    Its own grades are kept: an answer that it calls correct becomes the gold answer. It says neither how many tokens
    the whole trace took nor what probes cost: the last checkpoint stands for the whole, and probes are free. A saving
    from such traces is no measurement.

    Raises:
        CalibrationError: the file or an item cannot be read.
    """
    items = FILES.read_json(path)
    items = list(items.values()) if isinstance(items, dict) else items
    if not isinstance(items, list):
        raise CalibrationError(f"{path} holds no list of items; give a log of Conformal Thinking")
    return TraceSet(tuple(_conformal_thinking(item, f"{path}, item {index}") for index, item in enumerate(items)))


def read_generic(
    path: Path,
    *,
    fields: Mapping[str, str],
    checkpoint_fields: Mapping[str, str],
    signals: Iterable[str],
) -> TraceSet:
    """JSON Lines with one trace per line, under other names than ours.

    Args:
        fields: names of `Trace`'s fields to theirs; "checkpoints" names a list of objects.
        checkpoint_fields: names of `Checkpoint`'s fields to theirs.
        signals: those of their fields of a checkpoint that are signals; null or missing where not measured.

    Raises:
        CalibrationError: the file or a line cannot be read, or lacks a field.
    """
    names = tuple(signals)
    traces = []
    for number, line in FILES.read_lines(path):
        where = f"{path}, line {number}"
        values = _renamed(line, fields, where)
        values["checkpoints"] = [
            _renamed(point, checkpoint_fields, where) | {"signals": _measured(point, names)}
            for point in _listed(values.get("checkpoints", []), where)
        ]
        traces.append(FILES.validate(TRACE, values, where))
    return TraceSet(tuple(traces))


def _conformal_thinking(item: Any, where: str) -> Trace:
    names = {"question": "question", "gold": "gold_answer", "full_answer": "actual_final_answer"}
    values = _renamed(item, names, where)
    question, points = values.pop("question", ""), item.get("checkpoints") or item.get("intermediate_checks")
    if not question or not isinstance(question, str) or not points:
        raise CalibrationError(f"{where} has no question or no checkpoints; mend it or leave it out")
    checkpoints = []
    for point in _listed(points, where):
        known = _renamed(point, {"tokens": "tokens_used", "answer": "predicted_answer"}, where)
        if point.get("is_correct", point.get("intermediate_correct")):
            known["answer"] = values.get("gold")
        checkpoints.append(known | {"signals": _measured(point, _CONFORMAL_THINKING_SIGNALS)})
    content_hash = problem_hash(question)
    values |= {"problem_id": str(item.get("id", content_hash)), "content_hash": content_hash}
    values |= {"checkpoints": checkpoints, "full_tokens": checkpoints[-1].get("tokens")}
    return FILES.validate(TRACE, values | {"group": "solvable" if item.get("solvable") else "unsolvable"}, where)


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise CalibrationError(f"{where} holds {type(value).__name__} in the place of a list; mend it")
    return value


def _renamed(value: Any, names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Their fields under our names; a missing one is left out."""
    if not isinstance(value, Mapping):
        raise CalibrationError(f"{where} holds {type(value).__name__} in the place of an object; mend it")
    found = {ours: value[theirs] for ours, theirs in names.items() if theirs in value}
    return {ours: str(x) if ours in _TEXTS and x is not None else x for ours, x in found.items()}


def _measured(point: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: point[name] for name in names if point.get(name) is not None}
