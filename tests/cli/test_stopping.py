"""Certifying from the command line: what it prints, and one line for whatever cannot be done."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner, Result

from reasonrt.calibration import (
    Certificate,
    Fingerprints,
    Infeasible,
    TraceSet,
    certify,
    order_rules,
    upper_threshold_rules,
    write_traces,
)
from reasonrt.calibration.stopping import provenance
from reasonrt.calibration.stopping.candidates import candidate_rules, splits
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.cli import stopping_bench
from reasonrt.cli.doctor import certificate_findings
from reasonrt.cli.main import app
from reasonrt.config import Config
from reasonrt.errors import ReasonRTError
from reasonrt.policies.stopping.evidence import KeptEvidence, Vote
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.policies.stopping.service import evidence_path
from reasonrt.policies.stopping.signature import sign as sign_certificate

TRACES = TraceSet(synthetic_traces("honest", 500).traces, Fingerprints(model="m"))
FAMILIES = ("--family", "deer", "--family", "dynasor")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), terminal_width=200)


def refused(*arguments: str) -> str:
    """The one line that `main` prints for an error of ours."""
    result = run(*arguments)
    assert isinstance(result.exception, ReasonRTError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(autouse=True)
def own_state_of_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test's tries count for another one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With traces, a certificate on them, and its plots."""
    folder = tmp_path_factory.mktemp("stopping")
    write_traces(folder / "traces.jsonl", TRACES)
    result = run(
        "calibrate", "stopping", "--traces", str(folder / "traces.jsonl"), "--risk", "lost_correct", "--alpha", ".05",
        "--delta", ".1", "-o", str(folder / "c.json"), "--plot", str(folder / "c.png"), *FAMILIES,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "lost_correct below 0.05, wrong with probability at most 0.1" in result.output
    return folder


def test_certificate_is_written_with_its_plots(folder: Path) -> None:
    certificate = Certificate.read(folder / "c.json")

    assert (certificate.risk, certificate.alpha, certificate.fingerprints.model) == ("lost_correct", 0.05, "m")
    assert set(certificate.splits) == {"train", "order", "certify"}
    assert certificate.saving.net > 0.1
    assert (folder / "c.png").stat().st_size > 10_000


def test_by_default_it_is_the_family_of_the_two_looks(folder: Path, tmp_path: Path) -> None:
    traces, file = str(folder / "traces.jsonl"), tmp_path / "c.json"

    result = run("calibrate", "stopping", "--traces", traces, "--alpha", ".1", "-o", str(file))

    assert result.exit_code == 0, result.output
    certificate = Certificate.read(file)
    assert certificate.rule.reads == {"end_of_thinking", "entropy_after_thinking"}
    assert set(certificate.splits) == {"train", "certify"}
    assert run("certificate", "verify", str(file), "--traces", traces).exit_code == 0


def test_show_and_verify(folder: Path) -> None:
    shown = run("certificate", "show", str(folder / "c.json"))
    verified = run("certificate", "verify", str(folder / "c.json"), "--traces", str(folder / "traces.jsonl"))

    assert Certificate.read(folder / "c.json").sha256 in shown.output
    assert "seen, not promised" in shown.output
    assert (shown.exit_code, verified.exit_code) == (0, 0)
    assert "traces give this certificate" in " ".join(verified.output.split())


def test_without_gold_a_certificate_verifies_too(folder: Path, tmp_path: Path) -> None:
    file, traces = str(tmp_path / "c.json"), str(folder / "traces.jsonl")
    ledger = ("--ledger", str(tmp_path / "ledger.jsonl"))
    arguments = ("calibrate", "stopping", "--traces", traces, "--alpha", ".1", "-o", file, "--no-gold", *FAMILIES)

    assert run(*arguments, *ledger).exit_code == 0
    assert run("certificate", "verify", file, "--traces", traces, *ledger).exit_code == 0


def test_logs_of_others_are_certified_too(tmp_path: Path) -> None:
    log = [
        {
            "question": trace.problem_id, "gold_answer": "right", "actual_final_answer": trace.full_answer,
            "checkpoints": [
                {"tokens_used": point.tokens, "predicted_answer": point.answer, "is_correct": point.answer == "right",
                 "confidence": point.signals["confidence"]}
                for point in trace.checkpoints
            ],
        }
        for trace in TRACES if trace.checkpoints
    ]  # fmt: skip
    (tmp_path / "log.json").write_text(json.dumps(log))
    arguments = ("--traces", str(tmp_path / "log.json"), "--alpha", ".1", "-o", str(tmp_path / "c.json"))

    result = run("calibrate", "stopping", *arguments, "--layout", "conformal-thinking", "--family", "deer")

    assert result.exit_code == 0, result.output
    assert Certificate.read(tmp_path / "c.json").saving.net > 0.1


def test_several_risks(folder: Path, tmp_path: Path) -> None:
    limits = ("--risk", "early_error", "--alpha", ".25", "--risk", "premature_give_up", "--alpha", ".1")
    traces = ("--traces", str(folder / "traces.jsonl"), "--ledger", str(tmp_path / "ledger.jsonl"))

    result = run("calibrate", "stopping", *traces, *limits, "-o", str(tmp_path / "c.json"), "--family", "joint")

    assert result.exit_code == 0, result.output
    assert [finding.alpha for finding in Certificate.read(tmp_path / "c.json").findings] == [0.25, 0.1]


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_copy_of_the_traces_is_another_try_on_the_same_set(tmp_path: Path) -> None:
    """In another folder, under another name and in another order; and under another ledger."""
    original, copy = tmp_path / "traces.jsonl", tmp_path / "copies" / "renamed.jsonl"
    write_traces(original, synthetic_traces("honest", 200))
    header, *lines = original.read_text().splitlines()
    copy.parent.mkdir()
    copy.write_text("\n".join([header, *lines[::-1]]) + "\n")

    def certified(traces: Path, family: str, *ledger: str) -> str:
        out = ("--alpha", ".2", "-o", str(tmp_path / f"{family}.json"), "--family", family)
        return words(run("calibrate", "stopping", "--traces", str(traces), *out, *ledger))

    assert "try 1 on these problems" in certified(original, "dynasor")
    assert "try 2 on these problems, all of whose certificates hold together; tested at 0.025 of" in certified(
        copy, "budget"
    )
    assert "try 2 on these problems" in certified(original, "budget")  # the same, again
    assert "try 2 on these problems" in certified(copy, "budget", "--ledger", str(tmp_path / "another.jsonl"))
    first = run("certificate", "verify", str(tmp_path / "dynasor.json"), "--traces", str(copy))
    assert "try 1 on these problems" in words(first)  # the ledger in the folder of the copy knows of it


def test_levels_are_certified_together(folder: Path, tmp_path: Path) -> None:
    traces = ("--traces", str(folder / "traces.jsonl"), "--ledger", str(tmp_path / "ledger.jsonl"))
    levels = ("--alpha", ".001", "--alpha", ".05", "--alpha", ".1")

    result = run("calibrate", "stopping", *traces, *levels, "-o", str(tmp_path / "c.json"), "--family", "dynasor")

    assert isinstance(result.exception, Infeasible)
    assert "lost_correct below 0.001 at delta 0.0167 takes at least" in str(result.exception)
    certificates = [Certificate.read(tmp_path / f"c-{alpha}.json") for alpha in ("0.05", "0.1")]
    assert [certificate.alpha for certificate in certificates] == [0.05, 0.1]
    assert words(result).count("tested at 0.0167 of delta 0.1, with 2 other levels") == 2
    assert run("certificate", "verify", str(tmp_path / "c-0.1.json"), *traces).exit_code == 0


def test_growing_traces_are_certified_again_as_one_try(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "traces.jsonl").read_text().splitlines()
    write_traces(tmp_path / "learn.jsonl", synthetic_traces("honest", 60, seed=1))
    fixed = ("--learn", str(tmp_path / "learn.jsonl"), "--alpha", ".2", "-o", str(tmp_path / "c.json"))
    outputs = []
    for size in (100, 200):
        grown = tmp_path / f"{size}.jsonl"
        grown.write_text("\n".join(lines[: size + 1]) + "\n")
        arguments = ("--traces", str(grown), *fixed, "--family", "dynasor", "--ledger", str(tmp_path / "ledger.jsonl"))
        outputs.append(words(run("calibrate", "stopping", *arguments, "--growing")))

    assert all("tested at 0.05 of delta 0.1, and may be certified again" in output for output in outputs)
    assert Certificate.read(tmp_path / "c.json").num_problems == 200
    assert "p-values that hold at any time (growing=True, --growing)" in refused("calibrate", "stopping", *arguments)
    assert "--growing needs --learn" in refused(
        "calibrate", "stopping", "--traces", str(grown), "--alpha", ".1", "--growing"
    )


def test_plan_says_how_many(tmp_path: Path) -> None:
    plan = ("calibrate", "plan", "--alpha", ".05", "--delta", ".1", "--json", str(tmp_path / "plan.json"))
    least = {}
    for more in ((), ("--try", "2"), ("--growing",)):
        assert "takes at least" in run(*plan, *more).output
        least[more] = json.loads((tmp_path / "plan.json").read_text())["least_n"]

    assert least == {(): 59, ("--try", "2"): 72, ("--growing",): 74}


def edit(file: Path, changes: dict[str, object]) -> str:
    file.with_name("edited.json").write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(file.with_name("edited.json"))


def with_traces(folder: Path, name: str, traces: Sequence[object], header: int = 1) -> str:
    lines = (folder / "traces.jsonl").read_text().splitlines()[:header]
    (folder / name).write_text("\n".join([*lines, *map(json.dumps, traces)]) + "\n")
    return str(folder / name)


def test_bad_input_is_one_line(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()[1:]]
    nan = json.loads(json.dumps(lines[0]).replace(str(lines[0]["checkpoints"][0]["signals"]["confidence"]), "NaN", 1))
    bare = [line | {"gold": None} for line in lines]

    def stopping(file: str, *arguments: str) -> str:
        return refused("calibrate", "stopping", "--traces", file, "--alpha", ".05", *FAMILIES, *arguments)

    assert "needs the right answer of every problem" in stopping(
        with_traces(folder, "bare.jsonl", bare), "--risk", "early_error"
    )
    assert "signal 'confidence' is nan at 128 tokens" in stopping(with_traces(folder, "nan.jsonl", [nan, *lines[1:]]))
    assert "is in the traces twice" in stopping(with_traces(folder, "twice.jsonl", [*lines, lines[0]]))
    assert "takes at least 59 problems" in stopping(with_traces(folder, "few.jsonl", lines[:60]))
    assert "does not begin with the schema" in stopping(with_traces(folder, "none.jsonl", lines, header=0))
    assert "unknown family 'magic'" in stopping(str(folder / "traces.jsonl"), "--family", "magic")
    assert "2 risks have 1 alphas" in stopping(
        str(folder / "traces.jsonl"), "--risk", "lost_correct", "--risk", "early_error"
    )
    assert "cannot read" in refused("certificate", "show", str(folder / "nothing.json"))
    assert "was changed after it was made" in refused("certificate", "show", edit(folder / "c.json", {"delta": 0.5}))
    assert "no n certifies a rule" in refused("calibrate", "plan", "--alpha", ".05", "--expected-risk", ".06")


def test_verify_with_other_traces_says_so(folder: Path) -> None:
    others = TraceSet(tuple(replace(trace, problem_id=f"x{trace.problem_id}") for trace in TRACES))
    write_traces(folder / "others.jsonl", others)

    message = refused("certificate", "verify", str(folder / "c.json"), "--traces", str(folder / "others.jsonl"))

    assert "not the traces that the certificate was made from" in message


def gaps(*arguments: str) -> str:
    result = run("certificate", "verify", *arguments)
    assert result.exit_code == 0, result.output
    assert "traces give this certificate" in " ".join(result.output.split())
    return result.output


FEW = TraceSet(TRACES.traces[:300], TRACES.fingerprints)
LEARN = TraceSet(synthetic_traces("honest", 150, 7).traces, TRACES.fingerprints)
PROMISE: dict[str, Any] = {"risk": "lost_correct", "alpha": 0.1, "delta": 0.1}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer traces, others to learn from, and a certificate from both."""
    folder = tmp_path_factory.mktemp("few")
    write_traces(folder / "traces.jsonl", FEW)
    write_traces(folder / "learn.jsonl", LEARN)
    train, order, held_out = splits(FEW, LEARN)
    rules = candidate_rules(train, ["dynasor"])
    learned = order_rules(order, rules, risk="lost_correct", alpha=0.1)
    certify(held_out, rules, **PROMISE, order=learned, train=train).write(folder / "c.json")
    return folder


def test_verify_shows_rules_and_order_or_says_that_it_cannot(folder: Path, few: Path) -> None:
    certified = (str(few / "c.json"), "--traces", str(few / "traces.jsonl"))

    assert "not verified" not in gaps(*certified, "--learn", str(few / "learn.jsonl"))
    assert "name the traces that they were made from by --learn" in gaps(*certified)
    assert "names other traces to" in refused(
        "certificate", "verify", *certified, "--learn", str(folder / "traces.jsonl")
    )
    # all splits are of one file
    assert "not verified" not in gaps(str(folder / "c.json"), "--traces", str(folder / "traces.jsonl"))


def test_an_order_that_was_learned_on_the_certified_problems_does_not_verify(few: Path, tmp_path: Path) -> None:
    """It names the splits of an honest one: certified traces alone cannot tell."""
    train, order, held_out = splits(FEW, LEARN)
    rules = candidate_rules(train, ["deer"])[::5]
    dredged = replace(order_rules(held_out, rules, risk="lost_correct", alpha=0.1), split=order.split)
    certify(held_out, rules, **PROMISE, order=dredged, train=train).write(tmp_path / "forged.json")
    certified = (str(tmp_path / "forged.json"), "--traces", str(few / "traces.jsonl"))

    assert "not verified" in gaps(*certified)
    message = refused("certificate", "verify", *certified, "--learn", str(few / "learn.jsonl"))
    assert "give another order than the certificate has" in message


def test_rules_of_nobody_are_not_verified(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "FAMILIES", ["deer", "budget"])
    train, order, held_out = splits(FEW, LEARN)
    own = upper_threshold_rules("confidence", [0.95, 0.999])
    learned = order_rules(order, own, risk="lost_correct", alpha=0.1)
    certify(held_out, own, **PROMISE, order=learned, train=train).write(tmp_path / "own.json")
    certify(held_out, own, **PROMISE).write(tmp_path / "bare.json")
    traces = ("--traces", str(few / "traces.jsonl"), "--learn", str(few / "learn.jsonl"))

    assert f"{len(learned.rules)} of its {len(learned.rules)} rules; no family" in gaps(
        str(tmp_path / "own.json"), *traces
    )
    bare = gaps(str(tmp_path / "bare.json"), *traces)
    assert "it was learned from no traces" in bare
    assert "they were made from no traces" in bare


def test_signing_and_who_has_signed(few: Path, tmp_path: Path) -> None:
    traces, file = str(few / "traces.jsonl"), tmp_path / "c.json"
    file.write_text((few / "c.json").read_text())
    secret = key_pair(tmp_path / "ours")
    keys = [str(key_pair(tmp_path / name).public) for name in ("theirs", "another")]

    unsigned = refused("certificate", "verify", str(file), "--traces", traces, "--public-key", str(secret.public))
    signed = run("certificate", "sign", str(file), "--key", str(secret.private))
    shown = run("certificate", "show", str(file))

    assert "is not to be trusted: it is not signed" in unsigned
    assert signed.exit_code == 0
    assert "signed yes" in " ".join(shown.output.split())
    assert Certificate.read(file).sha256 == Certificate.read(few / "c.json").sha256
    gaps(str(file), "--traces", traces, "--public-key", keys[0], "--public-key", str(secret.public))
    others = ("--public-key", keys[0], "--public-key", keys[1])
    assert "by none of the keys" in refused("certificate", "verify", str(file), "--traces", traces, *others)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "holds no Ed25519"),
        (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "holds no Ed25519"),
    ],
)
def test_what_is_no_key_is_one_line_that_quotes_nothing(
    folder: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    key, file = tmp_path / "key.pem", str(folder / "c.json")
    if content is not None:
        key.write_bytes(content)
    traces = ("--traces", str(folder / "traces.jsonl"))

    for told in (
        refused("certificate", "sign", file, "--key", str(key)),
        refused("certificate", "verify", file, *traces, "--public-key", str(key)),
    ):
        assert message in told
        assert "c2VjcmV0" not in told


def test_a_key_behind_a_password_or_of_another_kind_signs_nothing(folder: Path, tmp_path: Path) -> None:
    locked = BestAvailableEncryption(b"password")
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    (tmp_path / "locked.pem").write_bytes(text)
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "other.pem").write_bytes(other)

    for name in ("locked.pem", "other.pem"):
        told = refused("certificate", "sign", str(folder / "c.json"), "--key", str(tmp_path / name))
        assert "holds no Ed25519 private key without a password" in told


class Keys(NamedTuple):
    private: Path
    public: Path


def key_pair(folder: Path) -> Keys:
    folder.mkdir()
    keys, private = Keys(folder / "private.pem", folder / "public.pem"), Ed25519PrivateKey.generate()
    keys.private.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    keys.public.write_bytes(public)
    return keys


def test_doctor_looks_at_certificates_and_at_their_evidence(folder: Path, tmp_path: Path) -> None:
    certificate, keys = Certificate.read(folder / "c.json"), key_pair(tmp_path / "keys")
    certificate.write(tmp_path / "c.json")
    sign_certificate(certificate, keys.private).write(tmp_path / "signed.json")

    def told(name: str, **serve: Any) -> tuple[str, str]:
        policies = {"target": {"stopping": {"certificate": [str(tmp_path / name)]}}}
        (found,) = certificate_findings(Config(policies=policies, serve=serve))
        assert found.subject == f"certificate {tmp_path / name}"
        return found.status, found.way_out or found.value

    trusted = {"certificate_keys": [str(keys.public)]}
    assert told("c.json") == ("ok", "lost_correct below 0.05; no evidence yet")
    assert told("none.json")[1].startswith("cannot read")
    assert told("signed.json", **trusted)[0] == "ok"
    assert "is not signed" in told("c.json", **trusted)[1]
    path = evidence_path(certificate, tmp_path / "c.json", None)
    evidence = KeptEvidence(certificate, EvidenceFile(path, certificate.sha256))
    evidence.add(Vote(certificate.sha256, "q", True))
    assert told("c.json")[1].endswith("of 20 by 1 shadowed requests")  # while another process keeps it
    evidence.close()
    with path.open("ab") as file:
        file.write(b"rotten\n")
    assert told("c.json")[1].endswith("line 3, is not as it was written; bring back the file, or certify anew")


@pytest.mark.slow  # half a minute
def test_bench_writes_its_rows(tmp_path: Path) -> None:
    arguments = ("--part", "tightness", "--draws", "200", *FAMILIES, "--json", str(tmp_path / "bench.json"))
    result = run("bench", "stopping", *arguments)

    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert result.exit_code == 0, result.output
    assert {row["population"] for row in rows} == {"honest", "wavering", "hopeless"}
    assert {row["part"] for row in rows} == {"tightness"}


def test_bench_refuses_what_it_cannot_do_or_does_not_read(folder: Path) -> None:
    assert "unknown part 'speed'" in refused("bench", "stopping", "--part", "speed")
    without = ("--task zoo", "--split test", "--arm x", "--replayed 1", "--replayed-at-once 2", "--learn x.jsonl")
    for option in without:
        assert "is for a run with --traces" in refused("bench", "stopping", "--part", "live", *option.split())
    assert "--family is for what is simulated" in refused("bench", "stopping", "--part", "live", "--family", "deer")
    traces = ("--traces", str(folder / "traces.jsonl"))
    assert "--recorded is for a run without" in refused("bench", "stopping", *traces, "--recorded", "200")
    assert "--timed is for --part live" in refused("bench", "stopping", "--part", "validity", "--timed", "20")


@pytest.mark.parametrize(("risk_low", "exit_code"), [(0.06, 1), (0.04, 0)])
def test_bench_fails_where_a_certified_arm_loses_more_than_it_may(
    risk_low: float, exit_code: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {"part": "live", "arm": "to the end"}
    certified = full | {"arm": "all, certified", "risk_low": risk_low, "ok": risk_low <= 0.05}
    monkeypatch.setattr(stopping_bench, "_measure", lambda *arguments: {"rows": [full, certified]})

    result = run(
        "bench", "stopping", "--part", "live", "--traces", str(folder / "traces.jsonl"), "--out", str(tmp_path)
    )

    assert result.exit_code == exit_code, result.output
    assert ("does not hold" in result.output) == bool(exit_code)
