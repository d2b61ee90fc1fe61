"""Weights are read back as they were written, or refused in one line."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from reasonrt.errors import CalibrationError
from reasonrt.programs.features import FEATURES
from reasonrt.programs.weights import LIMIT, Coefficient, Gate, ProgramCertificate, Weights, check_matches

WEIGHTS = Weights(
    vote=0.4,
    none_right=1.5,
    coefficients={"confidence": Coefficient(-0.4, 0.2, 3.0), "length": Coefficient(0.0, 1.0, 0.1)},
    gate=Gate(0.55, 0.8, 0.01),
    settled_at=0.92,
    certificate=ProgramCertificate(0.53, 0.1, 0.1, 835, 71, 0.08, 0.835, stops_early=True),
    direct_below_tokens=16_384,
    model="abc",
    k=8,
    task="simulated",
    n=2000,
)


@pytest.mark.parametrize("weights", [WEIGHTS, Weights(1.0), Weights(1)])
def test_weights_are_read_as_written(weights: Weights, tmp_path: Path) -> None:
    weights.write(tmp_path / "weights.json")

    again = Weights.read(tmp_path / "weights.json")

    assert again == weights
    assert again.abstain_below == (0.53 if weights is WEIGHTS else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value | {"vote": 0.5}, "was changed after it was made"),
        (lambda value: value["certificate"].update(alpha=0.01) or value, "was changed after it was made"),
        (lambda value: {key: value[key] for key in value if key != "sha256"}, "has no sha256"),
        (lambda value: [value], "has no sha256"),
    ],
)
def test_what_was_edited_by_hand_is_refused(change: object, message: str) -> None:
    value = json.loads(WEIGHTS.to_json())

    with pytest.raises(CalibrationError, match=message) as refused:
        Weights.from_json(json.dumps(change(value)))  # type: ignore[operator]

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("null", "has no sha256"),
    ],
)
def test_what_are_no_weights_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Weights.from_json(text)


def test_another_schema_and_a_wrong_type_are_named() -> None:
    def signed(**changes: object) -> str:
        value = {key: part for key, part in json.loads(WEIGHTS.to_json()).items() if key != "sha256"} | changes
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return json.dumps(value | {"sha256": hashlib.sha256(text.encode()).hexdigest()})

    with pytest.raises(CalibrationError, match=r"has the schema 'reasonrt\.program-weights/9'"):
        Weights.from_json(signed(schema="reasonrt.program-weights/9"))
    with pytest.raises(CalibrationError, match=r"the weights: k: .*, or calibrate anew"):
        Weights.from_json(signed(k="many"))
    with pytest.raises(CalibrationError, match="vote > 0, got -1"):
        Weights.from_json(signed(vote=-1.0))


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")

    with pytest.raises(CalibrationError, match=r"cannot read .*missing: No such file"):
        Weights.read(tmp_path / "missing")
    with pytest.raises(CalibrationError, match="is not UTF-8 text"):
        Weights.read(tmp_path / "binary")
    with pytest.raises(CalibrationError, match="cannot write"):
        WEIGHTS.write(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vote": 0.0}, "vote > 0, got 0"),
        ({"vote": float("nan")}, "vote > 0, got nan"),
        ({"none_right": float("inf")}, "vote > 0"),
        ({"coefficients": {"charm": Coefficient(0, 1, 1)}}, "unknown feature 'charm'; there are confidence, tail"),
        ({"coefficients": {"tail": Coefficient(0, 0, 1)}}, "a scale of 0 or a slope without bound"),
        ({"coefficients": {"tail": Coefficient(0, 1, float("inf"))}}, "a scale of 0 or a slope without bound"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        replace(WEIGHTS, **changes)  # type: ignore[arg-type]


def test_weights_are_for_one_model_and_number_of_candidates() -> None:
    check_matches(WEIGHTS, "abc", 8)

    with pytest.raises(CalibrationError, match="for the model 'abc', this is 'xyz'"):
        check_matches(WEIGHTS, "xyz", 8)
    with pytest.raises(CalibrationError, match="for 8 candidates, this is 5; take k=8"):
        check_matches(WEIGHTS, "abc", 5)
    with pytest.raises(CalibrationError, match="for early stop on, this is off; turn it on or certify anew"):
        check_matches(WEIGHTS, "abc", 8, stops_early=False)


def test_no_single_feature_outweighs_all_other_trials() -> None:
    row = [None] * len(FEATURES)
    evidence = [WEIGHTS.evidence([value, *row[1:]]) for value in (-0.4, -0.2, -0.4 + LIMIT * 0.2, 9.0, -1e9)]

    assert evidence == pytest.approx([0.4, 3.4, 0.4 + 3 * LIMIT, 0.4 + 3 * LIMIT, 0.4 - 3 * LIMIT])
