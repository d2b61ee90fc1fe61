"""One evidence for each certificate: over processes and restarts, on a disk that loses and spoils, in the gateway."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration import Certificate, certify, upper_threshold_rules
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping import evidence as evidence_module
from reasonrt.policies.stopping.drift import DriftMonitor
from reasonrt.policies.stopping.evidence import GatewayLink, KeptEvidence, ReportedEvidence, Verdict, Vote, digest
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.types import Message


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    rules = upper_threshold_rules("confidence", [0.9, 0.99, 1.0])
    return certify(synthetic_traces("honest", 200), rules, risk="lost_correct", alpha=0.1, delta=0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.evidence"


Open = Callable[[], KeptEvidence]


@pytest.fixture
def start(certificate: Certificate, path: Path) -> Iterator[Open]:
    """Start a process that keeps evidence in the file; all end with the test."""
    started: list[KeptEvidence] = []

    def begin() -> KeptEvidence:
        started.append(KeptEvidence(certificate, EvidenceFile(path, certificate.sha256)))
        return started[-1]

    yield begin
    for evidence in started:
        evidence.close()


def ask(evidence: KeptEvidence, questions: range, departs: Callable[[int], bool] = lambda number: False) -> None:
    for number in questions:
        evidence.add(Vote("", f"question {number}", departs(number)))


def sometimes(number: int) -> bool:
    return number % 7 == 0


def test_a_restart_changes_nothing(start: Open) -> None:
    unbroken = start()
    ask(unbroken, range(90), sometimes)
    unbroken.close()
    restarted = start()
    for begin in range(100, 200, 20):
        restarted.close()
        restarted = start()
        ask(restarted, range(begin, begin + 20), sometimes)
        ask(restarted, range(90), sometimes)  # have voted before the restart
    alone = DriftMonitor(unbroken.monitor.alpha, unbroken.monitor.delta)
    for number in (*range(90), *range(100, 200)):
        alone.add(sometimes(number))

    assert restarted.monitor == alone
    assert restarted.num_departed == 13 + 14


_DYING = """
import os, signal, sys
from pathlib import Path
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.evidence import KeptEvidence, Vote
from reasonrt.policies.stopping.evidence_file import EvidenceFile

certificate = Certificate.read(Path(sys.argv[1]))
evidence = KeptEvidence(certificate, EvidenceFile(Path(sys.argv[2]), certificate.sha256))
for number in range(20):
    evidence.add(Vote("", f"question {number}", number % 7 == 0))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_votes_outlive_a_process_that_is_killed(start: Open, path: Path, certificate: Certificate) -> None:
    certificate.write(path.with_suffix(".json"))

    killed = subprocess.run([sys.executable, "-c", _DYING, path.with_suffix(".json"), path], check=False)

    assert killed.returncode == -signal.SIGKILL
    evidence = start()
    assert (evidence.monitor.n, evidence.num_departed, evidence.verdict().refusal) == (20, 3, None)


def test_an_alarm_outlives_the_process(start: Open) -> None:
    before = start()
    ask(before, range(60), lambda number: True)
    refusal = before.verdict().refusal
    before.close()

    assert "no longer holds" in (refusal or "")
    assert start().verdict() == Verdict(refusal)


@given(num_votes=st.integers(0, 12), cut=st.integers(0, 10**6))
def test_wherever_the_process_dies_votes_before_that_are_kept(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory, num_votes: int, cut: int
) -> None:
    """A death within a line costs that line; the file begins with a line that is there whole or not at all."""
    path = tmp_path_factory.mktemp("dying") / "c.evidence"
    evidence = KeptEvidence(certificate, EvidenceFile(path, certificate.sha256))
    least = path.stat().st_size
    ask(evidence, range(num_votes))
    evidence.close()
    size = least + cut % (path.stat().st_size - least + 1)
    os.truncate(path, size)
    kept = path.read_bytes().count(b"\n") - 1

    again = KeptEvidence(certificate, EvidenceFile(path, certificate.sha256))
    assert (again.monitor.n, again.verdict().refusal) == (kept, None)
    ask(again, range(100, 103))
    again.close()
    last = KeptEvidence(certificate, EvidenceFile(path, certificate.sha256))
    last.close()
    assert last.monitor == again.monitor


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"true", b"false"), *lines[2:]], "line 2, is not as it was written"),
        (lambda lines: [lines[0], *lines[2:]], "line 2, is not as it was written"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2, is not as it was written"),
        (lambda lines: [b"\x00" * len(lines[0]), *lines[1:]], "line 1, is not as it was written"),
        (lambda lines: lines[1:], "line 1, is not as it was written"),
        (lambda lines: [], "is empty"),
    ],
)
def test_a_spoilt_file_is_no_evidence_and_no_beginning(
    start: Open, path: Path, spoil: Callable[[list[bytes]], list[bytes]], message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    before = start()
    ask(before, range(5), lambda number: True)
    before.close()
    path.write_bytes(b"".join(spoil(path.read_bytes().splitlines(keepends=True))))
    spoilt = path.read_bytes()

    after = start()
    ask(after, range(10, 20))

    assert message in (after.verdict().refusal or "")
    assert [record.message for record in caplog.records if "think to the end" in record.message] == [
        f"certificate {after._sha256[:12]}: {after.verdict().refusal}; requests think to the end"
    ]
    assert path.read_bytes() == spoilt


def test_evidence_against_another_certificate_is_not_taken_for_its_own(start: Open, path: Path) -> None:
    start().close()

    with pytest.raises(CalibrationError, match="line 1, is not as it was written"):
        EvidenceFile(path, "0" * 64).read()


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.update(schema="reasonrt.evidence/0"),
        lambda kept: kept["monitor"].update(sums=[0.0]),
        lambda kept: kept.pop("questions"),
    ],
)
def test_evidence_of_another_version_is_none_and_no_beginning(
    start: Open, path: Path, certificate: Certificate, change: Callable[[dict[str, Any]], object]
) -> None:
    start().close()
    file = EvidenceFile(path, certificate.sha256)
    (kept,) = file.open()
    change(kept)
    file.replace(kept)
    file.close()

    assert (start().verdict().refusal or "").startswith(f"{path}: ")


def test_what_is_lost_in_service_is_written_anew_and_said_once(
    start: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evidence = start()
    ask(evidence, range(20), sometimes)
    path.unlink()
    ask(evidence, range(20, 40), sometimes)
    evidence.close()

    assert start().monitor == evidence.monitor
    assert [record.message for record in caplog.records if "is lost" in record.message] == [
        f"{path} is lost; it is written anew, and nothing of it is forgotten"
    ]


def test_what_was_lost_between_two_starts_is_said_once(
    start: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    assert not caplog.records  # a first beginning is none
    ask(first, range(20))
    first.close()
    path.unlink()

    second = start()
    ask(second, range(20))

    assert second.verdict().refusal is None
    assert [record.message for record in caplog.records] == [f"{path} is lost; evidence begins anew"]


def test_of_two_processes_one_decides_and_the_other_takes_over(start: Open, caplog: pytest.LogCaptureFixture) -> None:
    old = start()
    new = start()
    ask(old, range(10))

    assert "in use by another process" in (new.verdict().refusal or "")
    assert "in use by another process" in (new.verdict().refusal or "")
    assert len([record for record in caplog.records if "in use" in record.message]) == 1
    old.close()
    assert new.verdict().refusal is None
    assert new.monitor == old.monitor


def test_a_disk_that_takes_no_more_ends_stopping(start: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = start()

    def full(number: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    ask(evidence, range(3))

    assert "No space left on device; mend that" in (evidence.verdict().refusal or "")


def test_a_folder_that_is_not_there_ends_stopping(certificate: Certificate, tmp_path: Path) -> None:
    evidence = KeptEvidence(certificate, EvidenceFile(tmp_path / "none" / "c.evidence", certificate.sha256))

    assert "cannot keep evidence in" in (evidence.verdict().refusal or "")


def test_the_file_does_not_grow_for_ever(start: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "WINDOW", 10)
    evidence = start()
    for begin in range(0, 200, 5):
        ask(evidence, range(begin, begin + 5), sometimes)
        assert len(path.read_bytes().splitlines()) <= 12
    evidence.close()

    again = start()
    assert again.monitor == evidence.monitor
    ask(again, range(195, 200))  # within the window
    assert again.monitor.n == 200
    ask(again, range(5))  # long ago
    assert again.monitor.n == 205


def test_nobody_else_reads_the_file(start: Open, path: Path) -> None:
    start()

    assert path.stat().st_mode & 0o077 == 0


def test_replicas_share_what_their_gateway_keeps(certificate: Certificate, start: Open) -> None:
    """Each sees half of the questions that depart, which are too few for an alarm of its own."""
    gateway, links = start(), [GatewayLink(), GatewayLink()]
    replicas = [ReportedEvidence(certificate.sha256, link) for link in links]
    alone = [KeptEvidence(certificate) for _ in links]
    assert "the gateway keeps no evidence" in (replicas[0].verdict().refusal or "")

    for number in range(200):
        link = links[number % 2]
        link.verdicts[""] = {certificate.sha256: gateway.verdict()}
        if replicas[number % 2].verdict().refusal:
            break
        vote = Vote(certificate.sha256, f"question {number}", number % 4 < 2)
        replicas[number % 2].add(vote)
        alone[number % 2].add(vote)
        for told, taken in link.after(0):
            gateway.add(taken)
            link.forget(told)

    assert gateway.monitor.alarm
    assert gateway.monitor.n == number < 20
    assert not any(replica.monitor.alarm for replica in alone)


def ask_by_turns(evidence: KeptEvidence, num_turns: int, departs: dict[str, Callable[[int], bool]]) -> None:
    for number in range(num_turns):
        for caller, rule in departs.items():
            evidence.add(Vote("", f"{caller} asks {number}", rule(number), caller))


def is_alarmed(evidence: KeptEvidence, *callers: str) -> list[bool]:
    return [evidence.verdict(caller).refusal is not None for caller in callers]


@given(order=st.lists(st.sampled_from(["hostile", "hostile", "hostile", "one", "other", "third"]), max_size=300))
def test_no_caller_raises_an_alarm_for_another(certificate: Certificate, order: list[str]) -> None:
    """However many questions on which stopping departs it chooses, and whenever; its own alarm is its own."""
    evidence = KeptEvidence(certificate)

    for number, caller in enumerate(order + ["hostile"] * 60):
        evidence.add(Vote("", f"question {number}", caller == "hostile", caller))
        assert not any(is_alarmed(evidence, "one", "other", "third", "new"))

    assert is_alarmed(evidence, "hostile") == [True]
    assert evidence.alarmed == ("hostile",)


def test_no_caller_quiets_the_alarm_of_another(certificate: Certificate) -> None:
    """Nor by questions on which stopping departs never, nor by asking first what the other asks."""
    evidence = KeptEvidence(certificate)

    for number in range(60):
        for extra in range(20):
            evidence.add(Vote("", f"easy {number} {extra}", False, "hostile"))
        evidence.add(Vote("", f"question {number}", False, "hostile"))
        evidence.add(Vote("", f"question {number}", number % 2 == 0, "other"))

    assert not evidence.monitor.alarm
    assert is_alarmed(evidence, "hostile", "other") == [False, True]


def test_a_rise_that_all_see_is_said_to_all_and_to_new_callers(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    evidence, half = KeptEvidence(certificate), {name: lambda number: number % 2 == 0 for name in "abcd"}

    ask_by_turns(evidence, 5, half)

    assert all(is_alarmed(evidence, "a", "b", "c", "d", "new"))
    assert not any(caller.own.alarm for caller in evidence.callers.values())  # each alone knows too little
    assert [record.message.rpartition("thinking ")[2] for record in caplog.records][-1] == "for everybody"


def test_a_question_has_one_vote_of_each_caller(certificate: Certificate) -> None:
    evidence = KeptEvidence(certificate)

    for _ in range(3):
        for caller in "ab":
            evidence.add(Vote("", "the same", True, caller))
    evidence.add(Vote("", "another", False, "a"))

    assert (evidence.monitor.n, evidence.num_departed) == (2, 1)
    assert {name: (each.own.n, each.others.n) for name, each in evidence.callers.items()} == {"a": (2, 1), "b": (1, 2)}


def test_a_restart_changes_nothing_for_any_caller(start: Open) -> None:
    callers = {"a": sometimes, "b": lambda number: True, "c": lambda number: False}
    before = start()
    ask_by_turns(before, 30, callers)
    before.close()

    after = start()

    assert (after.monitor, after.callers, after.alarmed) == (before.monitor, before.callers, ("b",))
    ask_by_turns(after, 30, callers)  # have voted
    assert after.callers == before.callers


def test_callers_beyond_number_count_as_one(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "_MOST_CALLERS", 3)
    evidence = KeptEvidence(certificate)

    for number in range(20):
        evidence.add(Vote("", f"question {number}", False, f"caller {number}"))

    assert len(evidence.callers) == 4
    assert evidence.callers[""].own.n == 17


def test_what_a_caller_hears_is_false_as_seldom_as_promised(
    certificate: Certificate, exceeds: Callable[[int, int, float], bool]
) -> None:
    """The risk is at its limit for all but one, who asks what departs, or what does not; two seconds."""
    dice, num_worlds, false = random.Random(1), 120, 0

    for world in range(num_worlds):
        evidence = KeptEvidence(certificate)
        for number in range(60):
            evidence.add(Vote("", f"hostile {number}", world % 2 == 0, "hostile"))
            for caller in "abc":
                departs = dice.random() < evidence.monitor.alpha
                evidence.add(Vote("", f"{caller} {number}", departs, caller))
        false += evidence.verdict("a").refusal is not None

    assert not exceeds(false, num_worlds, certificate.delta)


def test_shadows_follow_the_suspicion() -> None:
    shares = [Verdict(suspicion=suspicion / 10).shadow(0.05) for suspicion in range(11)]

    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.05, 1.0)
    assert Verdict(suspicion=0.9).shadow(0) == 0


def test_a_digest_is_of_roles_and_texts() -> None:
    asked = [Message("user", "a"), Message("assistant", "b")]

    others = (asked[:1], [Message("user", "ab")], [Message("system", "a")])
    assert digest(asked) == "69f4c49c5dfaa48b"  # in every process
    assert len({digest(asked), *map(digest, others)}) == 4
    assert digest([Message("user", "A ?"), Message("assistant", "b")]) == digest(asked)  # no other question


@pytest.mark.parametrize("room", [0, 1, 40, 100, 200, 300, 1000])
def test_disk_that_is_full_leaves_what_was_kept(tmp_path: Path, disk_with: Any, room: int) -> None:
    def opened() -> EvidenceFile:
        file = EvidenceFile(tmp_path / "evidence.jsonl", "seed")
        file.open()
        return file

    file, kept = opened(), [{"first": 1}]
    file.replace(kept[0])
    with disk_with(room), suppress(CalibrationError):
        for number in range(9):
            if not file.add([number]):
                break
            kept.append([number])  # type: ignore[arg-type]
    file.close()

    again = EvidenceFile(tmp_path / "evidence.jsonl", "seed")
    assert again.open() == kept
    assert again.add("more")
    again.close()
    assert again.read() == [*kept, "more"]
