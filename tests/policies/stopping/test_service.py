"""Under a certificate: it stops what it is for, refuses what it is not for, and gives up when it no longer holds."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Completion, Request, Runtime, Step
from reasonrt.calibration import (
    Certificate,
    Ledger,
    Level,
    TraceSet,
    certify,
    certify_levels,
    replay,
    upper_threshold_rules,
)
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.errors import ConfigError, RequestError
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.registry import build_policy
from reasonrt.policies.stopping.drift import DriftMonitor
from reasonrt.policies.stopping.evidence import GatewayLink, KeptEvidence
from reasonrt.policies.stopping.files import canonical
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.service import ServedCertificate
from reasonrt.policies.stopping.signals import Agreement
from reasonrt.policies.stopping.signature import PublicKeys, sign
from reasonrt.types import Message, Penalties, Sampling

SCHEDULE = Schedule(first_tokens=16, block_tokens=16, growth=1.0, answer_tokens=8)
NUM_STEPS = 12
PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "7") for index in range(150)]
RULES = upper_threshold_rules(Agreement(), [5, 4, 3])


def settling(changes_its_mind: Callable[[int], bool] = lambda question: question % 50 == 0) -> Any:
    """A model whose probes say another thing after each step up to the fourth, then 7; some think 8 until the end."""

    def script(prompt: str, sampling: Sampling) -> str:
        question = int(prompt.partition("question ")[2].partition("\n")[0])
        text = (
            "<think>\n" + "".join(f"step {index} goes on\n\n" for index in range(NUM_STEPS)) + "</think>\n\n\\boxed{7}"
        )
        before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
        done = before.count("step")
        if probed and done < NUM_STEPS:
            settled = "8" if changes_its_mind(question) else "7"
            return f"{settled if done > 3 else done}}}"[len(begun) :]
        return continuing(text)(prompt, sampling)

    return script


def make_runtime(options: Any = None, script: Any = None, name: str = "target", **settings: Any) -> Runtime:
    policies = {"target": {"stopping": options}} if options else {}
    return Runtime({"target": ScriptedEngine(name, script or settling(), **settings)}, policies)


@pytest.fixture(scope="module")
async def traces(tmp_path_factory: pytest.TempPathFactory) -> TraceSet:
    settings = TraceSettings(schedule=SCHEDULE)
    return await record_traces(make_runtime(), PROBLEMS, settings, tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def certificate(traces: TraceSet) -> Certificate:
    return certify(traces, RULES, risk="lost_correct", alpha=0.1, delta=0.1)


@pytest.fixture
def file(certificate: Certificate, tmp_path: Path) -> str:
    certificate.write(tmp_path / "c.json")
    return str(tmp_path / "c.json")


async def ask(runtime: Runtime, question: int = 1, **fields: Any) -> Completion:
    return await runtime.complete(Request.ask(f"question {question}", **fields))


def told(completion: Completion) -> dict[str, Any]:
    found: dict[str, Any] = completion.details["stopping"]
    return found


def evidence_of(served: ServedCertificate) -> KeptEvidence:
    assert isinstance(served.evidence, KeptEvidence)
    return served.evidence


def monitor_of(served: ServedCertificate) -> DriftMonitor:
    return evidence_of(served).monitor


async def test_served_requests_stop_where_the_certified_ones_did(
    file: str, certificate: Certificate, traces: TraceSet
) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 0})

    for trace, problem in list(zip(traces, PROBLEMS, strict=True))[:60]:
        completion = await runtime.complete(Request.ask(problem.question))
        replayed = replay(certificate.rule, trace)
        assert replayed.index is not None
        assert told(completion)["tokens"] == trace.checkpoints[replayed.index].tokens
        assert told(completion)["certificate"] == certificate.sha256
        assert completion.content == f"\\boxed{{{replayed.answer}}}"

    (guard,) = runtime.certificates
    assert guard.counts == {"answer": 60, "dropped": 0}


async def test_option_of_the_request_and_of_the_runtime(file: str) -> None:
    by_request = await ask(make_runtime(), options={"stopping": {"certificate": file, "shadow": 0}})
    switched_off = await ask(make_runtime({"certificate": file, "shadow": 0}), options={"stopping": None})

    assert told(by_request)["action"] == "answer"
    assert "stopping" not in switched_off.details


@pytest.mark.parametrize(
    ("runtime", "fields", "message"),
    [
        ({"fingerprint": "other"}, {}, "the certificate is for model 'target', this is 'other'"),
        ({}, {"temperature": 0.7}, "the certificate is for sampling"),
        ({}, {"penalties": Penalties(presence=1.0)}, "the certificate is for sampling"),
        ({}, {"policy": "draft"}, "the certificate is for"),
    ],
)
async def test_mismatch_thinks_to_the_end_and_warns_once(
    file: str, runtime: dict[str, Any], fields: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = make_runtime(**runtime)
    served.engines["draft"] = served.engines["target"]
    options = {"stopping": {"certificate": file, "shadow": 0}}

    with caplog.at_level(logging.WARNING):
        completions = [await ask(served, options=options, **fields) for _ in range(3)]

    assert {completion.content for completion in completions} == {r"\boxed{7}"}
    assert all(told(completion)["fallback"].startswith(message) for completion in completions)
    assert all(completion.usage["target"].discarded == 0 for completion in completions)
    assert len([record for record in caplog.records if "think to the end" in record.message]) == 1
    (guard,) = served.certificates
    assert guard.counts["refused"] == 3


@pytest.mark.parametrize("role", ["system", "assistant"])
async def test_a_template_that_differs_for_one_role_only_is_another_one(file: str, role: str) -> None:
    class Other(CharacterTokenizer):
        def chat(self, messages: Sequence[Message]) -> list[int]:
            return super().chat([Message("tool" if m.role == role else m.role, m.content) for m in messages])

    runtime = make_runtime({"certificate": file, "shadow": 0})
    runtime.engines["target"].tokenizer = Other()  # type: ignore[misc]

    assert told(completion := await ask(runtime))["fallback"].startswith("the certificate is for template")
    assert completion.warnings == {"stopping": told(completion)["fallback"]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("{"), "is no JSON"),
        (
            lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"delta": 0.5})),
            "was changed after it was made",
        ),
    ],
)
async def test_spoilt_certificate_thinks_to_the_end(
    file: str, spoil: Callable[[Path], object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(Path(file))
    runtime = make_runtime({"certificate": file})

    completions = [await ask(runtime) for _ in range(2)]

    assert all(message in told(completion)["fallback"] for completion in completions)
    assert len([record for record in caplog.records if "think to the end" in record.message]) == 1


async def test_engine_without_log_probabilities_thinks_to_the_end(file: str) -> None:
    runtime = make_runtime({"certificate": file})
    runtime.engines["target"].capabilities = frozenset()  # type: ignore[misc]

    assert "returns no log-probabilities" in told(await ask(runtime))["fallback"]


def together(traces: TraceSet, folder: Path, *levels: Level) -> list[Certificate]:
    """Certified together, and written by their place."""
    found = [each for each in certify_levels(traces, RULES, levels, delta=0.1) if isinstance(each, Certificate)]
    for index, each in enumerate(found):
        each.write(folder / f"{index}.json")
    assert len(found) == len(levels)
    return found


async def test_risk_picks_among_certified_levels(traces: TraceSet, tmp_path: Path) -> None:
    certificate, loose = together(traces, tmp_path, Level("lost_correct", 0.1), Level("lost_correct", 0.2))
    runtime = make_runtime({"certificate": [str(tmp_path / f"{index}.json") for index in range(2)], "shadow": 0})

    found = {risk: told(await ask(runtime, options={"risk": risk})) for risk in (None, 0.05, 0.1, 0.15, 0.2, 1)}

    assert [found[risk].get("certificate") for risk in (None, 0.1, 0.15)] == [certificate.sha256] * 3
    assert [found[risk].get("certificate") for risk in (0.2, 1)] == [loose.sha256] * 2
    assert found[0.05]["fallback"] == (
        "no certificate promises lost_correct below 0.05; lost_correct below 0.1, lost_correct below 0.2 are there"
    )


@pytest.mark.parametrize("keeps_ledger", [False, True])
async def test_levels_that_were_certified_apart_are_not_served(
    traces: TraceSet, tmp_path: Path, keeps_ledger: bool
) -> None:
    """Each may be wrong with all of delta, and a request could pick the one that is; a ledger has them share it."""
    ledger = Ledger(tmp_path / "ledger.jsonl") if keeps_ledger else None
    files = [str(tmp_path / f"{alpha}.json") for alpha in (0.1, 0.2)]
    for alpha, name in zip((0.1, 0.2), files, strict=True):
        certify(traces, RULES, risk="lost_correct", alpha=alpha, delta=0.1, ledger=ledger).write(Path(name))
    runtime = make_runtime({"certificate": files, "shadow": 0})
    policy = build_policy("target", {"stopping": {"certificate": files}})

    completion = await ask(runtime)

    if keeps_ledger:
        policy.check(runtime.engines)
        assert told(completion)["action"] == "answer"
    else:
        assert "were certified apart, and need not hold together" in told(completion)["fallback"]
        with pytest.raises(ConfigError, match=r"policy target: .*0\.1\.json and .*0\.2\.json were certified apart"):
            policy.check(runtime.engines)


async def test_a_level_is_that_of_a_named_risk_and_never_of_another(traces: TraceSet, tmp_path: Path) -> None:
    """Who tolerates 3 % of lost answers is not served by what promises that of something else."""
    _, certificate, both = together(
        traces,
        tmp_path,
        Level("premature_give_up", 0.03),
        Level("lost_correct", 0.1),
        Level(["early_error", "lost_correct"], [0.3, 0.2]),
    )
    runtime = make_runtime({"certificate": [str(tmp_path / f"{index}.json") for index in range(3)], "shadow": 0})

    async def picked(risk: Any) -> Any:
        return told(await ask(runtime, options={"risk": risk})).get("certificate")

    assert await picked(0.03) is None  # to the end
    assert await picked(0.1) == await picked({"lost_correct": 0.1}) == certificate.sha256
    assert await picked({"lost_correct": 0.2, "early_error": 0.3}) == both.sha256
    assert await picked({"lost_correct": 0.1, "early_error": 0.3}) is None
    assert await picked({"premature_give_up": 0.03}) not in (None, certificate.sha256, both.sha256)


async def test_shadowed_requests_run_to_the_end_and_nobody_can_choose_them(file: str) -> None:
    runtimes = [make_runtime({"certificate": file, "shadow": 0.3}) for _ in range(2)]

    shadowed = [
        [told(await ask(runtime, question, seed=7))["is_shadow"] for question in range(1, 60)] for runtime in runtimes
    ]

    assert shadowed[0] != shadowed[1]
    assert 5 < sum(shadowed[0]) < 50  # of 59 with probability 0.3 at least, and not all
    (guard,) = runtimes[0].certificates
    assert monitor_of(guard).n == sum(shadowed[0])
    assert guard.counts["answer"] == 59 - sum(shadowed[0])


async def test_one_question_has_one_vote(file: str) -> None:
    """Asked again and again, a question on which stopping departs switches nothing off."""
    runtime = make_runtime({"certificate": file, "shadow": 1}, settling(lambda question: question == 1))

    for _ in range(50):
        await ask(runtime, 1)
    for question in range(2, 12):
        await ask(runtime, question)

    (guard,) = runtime.certificates
    assert (monitor_of(guard).n, monitor_of(guard).alarm) == (11, False)
    assert evidence_of(guard).num_departed == 1


async def test_shadowed_request_returns_the_full_answer(file: str) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 1}, settling(lambda question: True))

    completion = await ask(runtime)

    assert completion.content == r"\boxed{7}"
    assert (told(completion)["action"], told(completion)["is_shadow"]) == ("go_on", True)
    assert told(completion)["tokens"] is not None  # where it would have stopped
    (guard,) = runtime.certificates
    assert evidence_of(guard).num_departed == 1


@pytest.mark.parametrize(("reads_to", "num_votes"), [("boxed", 1), ("step 2", 0)])
async def test_who_reads_no_further_than_the_answer_votes_all_the_same(
    file: str, reads_to: str, num_votes: int
) -> None:
    """As a server that meets a stop text in it; who leaves before tells nothing."""
    runtime = make_runtime({"certificate": file, "shadow": 1})

    async with aclosing(runtime.solve(Request.ask("question 1"))) as events:
        async for event in events:
            if isinstance(event, Step) and reads_to in event.text:
                break

    (guard,) = runtime.certificates
    assert (monitor_of(guard).n, guard.counts["go_on"]) == (num_votes, num_votes)


async def test_a_stop_of_which_only_the_answer_is_read_is_counted(file: str) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 0})

    async with aclosing(runtime.solve(Request.ask("question 1"))) as events:
        async for event in events:
            if isinstance(event, Step) and "7}" in event.text:
                break

    (guard,) = runtime.certificates
    assert guard.counts["answer"] == 1


async def test_drift_raises_an_alarm_and_returns_to_full_thinking(
    file: str, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 1}, settling(lambda question: question % 2 == 0))

    completions = [await ask(runtime, question) for question in range(60)]

    (guard,) = runtime.certificates
    assert monitor_of(guard).alarm
    assert monitor_of(guard).n < 40
    assert monitor_of(guard).alpha >= certificate.alpha
    assert "no longer holds" in told(completions[-1])["fallback"]
    assert [record.message for record in caplog.records if "back to full thinking" in record.message]


async def test_no_alarm_on_what_was_certified(file: str) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 1})

    for problem in PROBLEMS:
        await runtime.complete(Request.ask(problem.question))

    (guard,) = runtime.certificates
    assert not monitor_of(guard).alarm
    assert monitor_of(guard).n == len(PROBLEMS)
    assert evidence_of(guard).num_departed == 3


async def test_new_certificate_in_the_same_file_starts_anew(
    file: str, traces: TraceSet, certificate: Certificate
) -> None:
    runtime = make_runtime({"certificate": file, "shadow": 0})
    await ask(runtime)
    other = certify(traces, RULES, risk="lost_correct", alpha=0.2, delta=0.1)
    other.write(Path(file))

    completion = await ask(runtime)

    assert told(completion)["certificate"] == other.sha256 != certificate.sha256
    assert len(list(runtime.certificates)) == 1


async def test_certificate_of_traces_from_elsewhere_is_refused(traces: TraceSet, tmp_path: Path) -> None:
    foreign = TraceSet(tuple(replace(trace) for trace in traces))
    certify(foreign, RULES, risk="lost_correct", alpha=0.1, delta=0.1).write(tmp_path / "c.json")

    completion = await ask(make_runtime({"certificate": str(tmp_path / "c.json")}))

    assert told(completion)["fallback"].startswith("the certificate is for model '', this is 'target'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stopping": {}}, "stopping takes one of certificate, rule and record; give one"),
        ({"stopping": {"certificate": "c", "record": True}}, "stopping takes one of"),
        ({"stopping": "c.json"}, r"stopping: must be an object, got 'c.json'"),
        ({"stopping": {"certificate": 5}}, "stopping.certificate.* got 5"),
        ({"stopping": {"certificate": [5]}}, "stopping.certificate.* got"),
        ({"stopping": {"rule": {}}}, "stopping.rule: unable to extract tag"),
        ({"stopping": {}}, "stopping takes one of certificate, rule and record"),
        ({"stopping": {"rule": {"kind": "oracle"}}}, "stopping.rule: input tag 'oracle'"),
        ({"stopping": {"record": True, "schedule": {"growth": 0}}}, "growth must be in .1, 1000000., got 0"),
        ({"stopping": {"record": True, "schedule": {"every": 3}}}, "stopping.schedule.every: unexpected"),
        ({"stopping": {"certificate": "c", "shadow": 2}}, "stopping.shadow: must be less than or equal to 1, got 2"),
        ({"stopping": {"certificate": "c", "shadow": None}}, "stopping.shadow: .* valid number, got None"),
        ({"stopping": {"certificate": "c", "patience": 2}}, "stopping.patience: unexpected keyword argument"),
        (
            {"stopping": {"certificate": "c"}, "risk": "low"},
            "risk must be a number in .0, 1. or a mapping or null, got 'low'",
        ),
        ({"stopping": {"certificate": "c"}, "risk": {"lost": 0.1}}, "risk 'lost' is not known; there are early_error"),
        (
            {"stopping": {"certificate": "c"}, "risk": {"lost_correct": 2}},
            "risk must be a number in .0, 1. or a mapping",
        ),
        ({"risk": 0.05}, "risk picks among certificates; give stopping some"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        build_policy("target", options)

    assert "\n" not in str(refused.value)


def test_roles_are_those_of_the_inner_policy() -> None:
    assert Runtime({}).asked_roles("rsd", {"stopping": {"record": True}}) == (("draft", "target"), ("reward",))


async def test_a_request_that_goes_on_behind_committed_steps_thinks_to_the_end(file: str) -> None:
    """After an engine's death, say: what the rule has seen before is gone, and it would stop elsewhere."""
    runtime = make_runtime({"certificate": file, "shadow": 0})
    stopped = await ask(runtime)

    resumed = await ask(runtime, committed=stopped.steps[:2])

    assert told(stopped)["action"] == "answer"
    assert "after committed steps" in told(resumed)["fallback"]
    assert resumed.content.endswith("\\boxed{7}")


async def test_what_commits_only_at_its_end_is_not_stopped(file: str) -> None:
    with pytest.raises(RequestError, match="self_consistency commits nothing before"):
        await ask(make_runtime(), policy="self_consistency", options={"stopping": {"certificate": file}})


async def test_drift_is_held_against_the_limit_of_lost_answers(traces: TraceSet, tmp_path: Path) -> None:
    certificate = certify(traces, RULES, risk=["early_error", "lost_correct"], alpha=[0.4, 0.1], delta=0.1)

    assert KeptEvidence(certificate).monitor.alpha < 0.4


async def test_under_another_risk_drift_is_held_against_what_was_seen_of_lost_answers(traces: TraceSet) -> None:
    """A limit of 0.4 on wrong answers says nothing of how many are lost."""
    certificate = certify(traces, RULES, risk="early_error", alpha=0.4, delta=0.1)

    assert KeptEvidence(certificate).monitor.alpha == certificate.unlabelled.upper_bound < 0.1


ODD: tuple[Any, ...] = (None, True, -1, 0, 1e300, -1e300, 10**400, float("nan"), float("inf"), "", "x", [], [{}], {})


def forge(certificate: Certificate, change: Callable[[dict[str, Any]], object], file: str) -> None:
    """Write it changed, and hashed anew as anybody can."""
    value = json.loads(certificate.to_json())
    del value["sha256"]
    change(value)
    hashed = {name: part for name, part in value.items() if name != "signature"}
    sha256 = hashlib.sha256(canonical(hashed).encode()).hexdigest()
    Path(file).write_text(json.dumps(value | {"sha256": sha256}))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(findings=[]),
        lambda value: value.update(delta=0),
        lambda value: value.update(delta=float("nan")),
        lambda value: value["findings"][0].update(alpha=float("nan")),
        lambda value: value["rule"].update(threshold=-1e300),
        lambda value: value["rule"].update(threshold=float("nan")),
        lambda value: value.update(p_values=[]),
        lambda value: value["fingerprints"].update(schedule="{}"),
    ],
)
async def test_a_forged_certificate_thinks_to_the_end(
    file: str, certificate: Certificate, change: Callable[[dict[str, Any]], object]
) -> None:
    forge(certificate, change, file)

    completion = await ask(make_runtime({"certificate": file, "shadow": 0}))

    assert completion.content == r"\boxed{7}"
    assert told(completion)["fallback"]
    assert "\n" not in told(completion)["fallback"]


@given(name=st.sampled_from(["rule", "findings", "delta", "order", "p_values", "num_certified", "saving", "groups",
                             "unlabelled", "splits", "fingerprints", "signature", "test"]), odd=st.sampled_from(ODD),
       inner=st.integers(0, 20))  # fmt: skip
async def test_no_forged_certificate_ends_a_request(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory, name: str, odd: Any, inner: int
) -> None:
    """A part of it, or a part of that, is something odd."""

    def change(value: dict[str, Any]) -> None:
        part = value.get(name)
        part = part[0] if isinstance(part, list) and part else part
        if isinstance(part, dict) and inner < len(part):
            part[sorted(part)[inner]] = odd
        else:
            value[name] = odd

    file = str(tmp_path_factory.mktemp("forged") / "c.json")
    forge(certificate, change, file)

    completion = await ask(make_runtime({"certificate": file, "shadow": 0}))

    assert completion.content == r"\boxed{7}"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its public one."""
    private = Ed25519PrivateKey.generate()
    folder = tmp_path_factory.mktemp("keys")
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "private.pem").write_bytes(text)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem", folder / "public.pem"


@pytest.mark.parametrize("forgery", ["unsigned", "signed by another", "signed before it was changed", "signed"])
async def test_where_a_signature_is_asked_for_nothing_else_is_served(
    file: str, certificate: Certificate, keys: tuple[Path, Path], tmp_path: Path, forgery: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The forgery is one that contradicts nothing: it stops at the first look."""
    private, public = keys

    def stop_always(value: dict[str, Any]) -> None:
        for rule in (value["rule"], *value["order"]):
            rule["threshold"] = -1e300

    if forgery == "signed by another":
        other = Ed25519PrivateKey.generate()
        text = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "other.pem").write_bytes(text)
        sign(certificate, tmp_path / "other.pem").write(Path(file))
    elif forgery == "signed before it was changed":
        forge(sign(certificate, private), stop_always, file)
    elif forgery == "signed":
        sign(certificate, private).write(Path(file))
    runtime = make_runtime({"certificate": file, "shadow": 0})
    runtime.certificates.keep(None, PublicKeys.read([public]))

    completions = [await ask(runtime) for _ in range(3)]
    runtime.certificates.close()

    if forgery == "signed":
        assert told(completions[-1])["certificate"] == certificate.sha256
        return
    reason = "it is not signed" if forgery == "unsigned" else "is by none of the keys"
    assert all(reason in told(completion)["fallback"] for completion in completions)
    assert len([record for record in caplog.records if reason in record.message]) == 1


async def test_evidence_outlives_the_runtime(file: str) -> None:
    runtimes = []
    for begin in range(0, 60, 20):
        runtime = make_runtime({"certificate": file, "shadow": 1}, settling(lambda question: question % 20 == 0))
        runtime.certificates.keep()
        async with runtime:
            for question in range(begin, begin + 20):
                await ask(runtime, question)
            runtimes.append(evidence_of(next(iter(runtime.certificates))))

    assert [evidence.monitor.n for evidence in runtimes] == [20, 40, 60]
    assert runtimes[-1].num_departed == 3
    assert [path.suffix for path in sorted(Path(file).parent.glob("*.evidence"))] == [".evidence"]


async def test_two_files_with_one_certificate_have_one_evidence(file: str, tmp_path: Path) -> None:
    copy = str(shutil.copy(file, tmp_path / "copy.json"))
    runtime = make_runtime({"certificate": file, "shadow": 1})
    runtime.certificates.keep(tmp_path)

    await ask(runtime, 1)
    completion = await ask(runtime, 2, options={"stopping": {"certificate": copy, "shadow": 1}})

    (guard,) = runtime.certificates
    assert told(completion)["is_shadow"]
    assert monitor_of(guard).n == 2
    runtime.certificates.close()


async def test_replicas_follow_their_gateway(file: str, certificate: Certificate) -> None:
    """What a replica shadows is counted there, and what is found there ends stopping in every replica."""
    gateway = make_runtime()
    gateway.certificates.keep()
    gateway.certificates.read(file)
    links, replicas = [GatewayLink(), GatewayLink()], []
    for link in links:
        replicas.append(make_runtime({"certificate": file, "shadow": 1}, settling(lambda question: question % 2 == 0)))
        replicas[-1].certificates.report(link)

    unheard = await ask(replicas[0])
    fallbacks = []
    for question in range(80):
        link = links[question % 2]
        link.verdicts[""] = gateway.certificates.verdicts()
        fallbacks.append(told(await ask(replicas[question % 2], question // 2)).get("fallback"))
        for number, vote in link.after(0):
            gateway.certificates.count(vote)
            link.forget(number)
    (served,) = gateway.certificates
    gateway.certificates.close()

    assert "the gateway keeps no evidence" in told(unheard)["fallback"]
    assert fallbacks[0] is None
    assert all("no longer holds" in str(fallback) for fallback in fallbacks[-2:])
    assert monitor_of(served).alarm
    assert monitor_of(served).n <= 40  # asked of both, a question votes once
