"""A certificate as a file: it comes back as it was, shows every edit, and is for one model only."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt.calibration import (
    Certificate,
    Fingerprints,
    TraceSet,
    certify,
    check_matches,
    upper_threshold_rules,
    verify,
)
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import SCHEMA
from reasonrt.policies.stopping.files import canonical

PRINTS = Fingerprints("model", "tokenizer", "template", "engine", "greedy", "every 128", {"answer": (7, 8)})
TRACES = TraceSet(synthetic_traces("honest", 200).traces, PRINTS)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    rules = upper_threshold_rules("confidence", [0.9, 0.99, 0.999, 1])  # an int among floats must not change the hash
    return certify(TRACES, rules, risk="lost_correct", alpha=0.1, delta=0.1, train=synthetic_traces("honest", 5, 9))


def test_file_round_trip(certificate: Certificate, tmp_path: Path) -> None:
    certificate.write(tmp_path / "c.json")
    again = Certificate.read(tmp_path / "c.json")

    assert again == certificate
    assert again.sha256 == certificate.sha256
    verify(again, TRACES)


def test_any_edit_by_hand_is_refused(certificate: Certificate) -> None:
    value = json.loads(certificate.to_json())
    edits = [name for name in value if name != "sha256"]

    for name in edits:
        edited = value | {name: 0.01 if isinstance(value[name], float) else "edited"}
        with pytest.raises(CalibrationError, match="was changed after it was made"):
            Certificate.from_json(json.dumps(edited))
    value["rule"]["threshold"] = 0.5
    with pytest.raises(CalibrationError, match="was changed after it was made"):
        Certificate.from_json(json.dumps(value))


def test_certificate_of_another_version_is_refused_with_both_versions(certificate: Certificate) -> None:
    value = json.loads(certificate.to_json()) | {"schema": "reasonrt.certificate/1", "of": "another shape"}
    value.pop("sha256")
    value["sha256"] = hashlib.sha256(canonical(value).encode()).hexdigest()

    with pytest.raises(
        CalibrationError, match=f"'reasonrt.certificate/1', this version reads '{SCHEMA}'; certify anew"
    ):
        Certificate.from_json(json.dumps(value))


def test_layout_of_the_file_does_not_matter(certificate: Certificate) -> None:
    text = json.dumps(json.loads(certificate.to_json()), indent=4)

    assert Certificate.from_json(text) == certificate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has no sha256"),
        ('{"rule": 1}', "has no sha256"),
    ],
)
def test_what_is_no_certificate_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Certificate.from_json(text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        Certificate.read(tmp_path / "none.json")


def test_other_traces_do_not_verify(certificate: Certificate) -> None:
    with pytest.raises(CalibrationError, match="not the traces that the certificate was made from"):
        verify(certificate, synthetic_traces("honest", 200, seed=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_certified", 1),
        ("num_problems", 201),
        ("p_values", "without the first"),
    ],
)
def test_a_certificate_that_its_traces_do_not_give_is_refused(
    certificate: Certificate, field: str, value: object
) -> None:
    """Made up and hashed anew: only recomputing finds it."""
    if field == "p_values":
        worst, at = max(finding.p_value for finding in certificate.findings), certificate.order.index(certificate.rule)
        value = tuple(worst if n == at else 0.0 for n in range(len(certificate.order)))
    with pytest.raises(CalibrationError, match=f"the traces give another {field}"):
        verify(replace(certificate, **{field: value}), TRACES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(findings=[]), "has no findings"),
        (lambda value: value.update(delta=0.0), "has delta 0, which must be"),
        (lambda value: value.update(delta=1.0), "has delta 1, which must be"),
        (lambda value: value["findings"][0].update(alpha=0.0), "no one can have made"),
        (lambda value: value["findings"][0].update(k=10**6), "no one can have made"),
        (lambda value: value["findings"][0].update(risk="luck"), "no one can have made"),
        (lambda value: value["unlabelled"].update(upper_bound=1.5), "no one can have made"),
        (lambda value: value["unlabelled"].update(upper_bound=0.0), "no one can have made"),  # no alarm could watch it
        (lambda value: value["findings"][0].update(p_value=0.2), "a p-value of its rule above 0.1"),
        (lambda value: value["attempt"].update(number=50), "what its try was tested at"),
        (lambda value: value["attempt"].update(number=10**9), "no try 1000000000"),
        (lambda value: value["attempt"].update(levels=[]), "no try None of 0 levels"),
        (lambda value: value["rule"].update(threshold=-1e300), "a rule that it has not tested"),
        (lambda value: value.update(p_values=[0.0]), "has 1 p-values of 4 rules"),
        (lambda value: value.update(p_values=[-1.0] * 4), "outside of"),
        (lambda value: value.update(num_certified=0), "counts 0 certified rules"),
        (lambda value: value.update(num_certified=5), "counts 5 certified rules"),
        (
            lambda value: value.update(rule=next(rule for rule in value["order"] if rule != value["rule"])),
            "for its rule, and another along its order",
        ),
        (lambda value: value["findings"][0].update(k=value["findings"][0]["n"]), "no one can have made"),
        (lambda value: value["findings"][0].update(k=value["findings"][0]["k"] + 1), "no one can have made"),
        (lambda value: value["findings"][0].update(n=10**18), "no one can have made"),
    ],
)
def test_what_contradicts_itself_is_refused_when_it_is_opened(
    certificate: Certificate, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """A hash is no signature: whoever edits a certificate can hash it anew."""
    value = json.loads(certificate.to_json())
    del value["sha256"]
    change(value)
    sha256 = hashlib.sha256(canonical(value).encode()).hexdigest()

    with pytest.raises(CalibrationError, match=message) as refused:
        Certificate.from_json(json.dumps(value | {"sha256": sha256}))
    assert "\n" not in str(refused.value)


def test_a_risk_among_the_stopped_holds_for_the_recorded_limit_alone() -> None:
    """A smaller limit leaves other problems among the stopped ones: the early ones, which may be the wrong ones."""
    traces = TraceSet(TRACES.traces, replace(PRINTS, max_tokens=256))
    rules = upper_threshold_rules("confidence", [0.99, 0.999])
    certificate = certify(traces, rules, risk="selective_error", alpha=0.3, delta=0.1)

    check_matches(certificate, replace(PRINTS, max_tokens=256))
    whole = replace(certificate, fingerprints=replace(PRINTS, max_tokens=256, is_cut_off=False))
    check_matches(whole, replace(PRINTS, max_tokens=256))
    with pytest.raises(CalibrationError, match="for max_tokens 256, this is 128"):
        check_matches(certificate, replace(PRINTS, max_tokens=128))


@pytest.mark.parametrize("is_cut_off", [True, False])
@pytest.mark.parametrize(("recorded", "served", "is_fine"), [
    (None, 4096, True), (None, None, True), (256, 128, True), (256, 256, True), (256, 257, False), (256, None, False),
])  # fmt: skip
def test_who_may_think_longer_than_cut_off_traces_is_refused(
    certificate: Certificate, recorded: int | None, served: int | None, is_fine: bool, is_cut_off: bool
) -> None:
    """Beyond the limit the full answers, which nobody knows, may be right."""
    certificate = replace(certificate, fingerprints=replace(PRINTS, max_tokens=recorded, is_cut_off=is_cut_off))
    served_prints = replace(PRINTS, max_tokens=served)
    if is_fine or not is_cut_off:
        check_matches(certificate, served_prints)
    else:
        with pytest.raises(CalibrationError, match="for max_tokens 256"):
            check_matches(certificate, served_prints)


@pytest.mark.parametrize(
    "field", [field.name for field in fields(Fingerprints) if field.name not in ("max_tokens", "is_cut_off")]
)
def test_a_mismatch_names_its_field(certificate: Certificate, field: str) -> None:
    check_matches(certificate, PRINTS)

    other = {"answer": (7, 9)} if field == "probes" else "other"
    with pytest.raises(CalibrationError, match=f"the certificate is for {field} "):
        check_matches(certificate, replace(PRINTS, **{field: other}))  # type: ignore[arg-type]


def test_unknown_is_not_a_match(certificate: Certificate) -> None:
    with pytest.raises(CalibrationError, match="for model 'model', this is ''"):
        check_matches(certificate, Fingerprints())
