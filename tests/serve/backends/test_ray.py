"""On Ray, with scripted engines: replicas, deaths, affinity, engines apart; one cluster, about two minutes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from reasonrt import Completion, Request, Runtime, Step
from reasonrt.calibration import TraceSet, certify, upper_threshold_rules
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.policies.single import Target
from reasonrt.policies.stopping.evidence import GatewayLink, Vote
from reasonrt.runtime import Prepared
from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.resume import outlive
from reasonrt.serve.wire.errors import ABSENT, ApiError
from reasonrt.types import Limits, Message, Sampling
from tests.waiting import wait_until

ray_app = pytest.importorskip("reasonrt.serve.backends.ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = ["<think>\nOne.\n\n", *(f"Step {index} of it.\n\n" for index in range(20)), "</think>\n\n", r"\boxed{7}"]
TEXT = "".join(STEPS)
LONG = "So on.\n\n" * 10_000
"""Takes minutes."""


def go_on(prompt: str, sampling: Sampling) -> str:
    """What is missing of the text."""
    return (LONG if "[user] at length" in prompt else TEXT).removeprefix(prompt.rpartition("[assistant] ")[2])


def make_backend(name: str, **replicas: Any) -> Any:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    engines = {role: partial(ScriptedEngine, role, go_on, seconds_per_token=0.005) for role in ("draft", "target")}
    config = ServeConfig.model_validate({"replicas": {"num_cpus": 0.1, "cluster": "local"} | replicas, "grace_s": 5})
    return ray_app.RayBackend(engines, {}, config, name)


@pytest.mark.parametrize("queued", [0, 1])
def test_replicas_have_room_for_what_the_gateway_lets_in(queued: int) -> None:
    config = ServeConfig.model_validate({"bounds": {"running": 7, "queued": queued}})
    app = ray_app.RayBackend({}, {}, config).application("a job")

    assert app._bound_deployment.max_queued_requests == 7


class Silent:
    """In the place of the replicas: they say nothing."""

    async def ask_all(self, method: str, timeout_s: float) -> list[Any]:
        return []

    async def aclose(self) -> None:
        pass


def deployed(replicas: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend has these, and no Ray."""
    monkeypatch.setattr(ray_app.RayBackend, "_deploy", lambda backend: replicas)
    monkeypatch.setattr(ray_app.RayBackend, "_end", lambda backend: None)


async def test_watch_of_replicas_outlives_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ray_app.ReplicaState("r", True, 0, 0, 0, ())

    class Replicas(Silent):
        answers: ClassVar[list[Any]] = [[state], ZeroDivisionError(), ApiError(503, "full"), [state]]

        async def ask_all(self, method: str, timeout_s: float) -> list[Any]:
            answer = self.answers.pop(0) if self.answers else [state]
            if isinstance(answer, Exception):
                raise answer
            return list(answer)

    monkeypatch.setattr(ray_app, "_LOOK_S", 0.05)
    deployed(Replicas(), monkeypatch)
    seen = list[int]()
    async with ray_app.RayBackend({}, {}, ServeConfig()) as backend:
        async with asyncio.timeout(60):
            while [ready for ready, _ in groupby(seen)][-3:] != [1, 0, 1]:
                await asyncio.sleep(0.01)
                seen.append(backend.ready)


async def test_a_vote_is_told_until_it_is_counted() -> None:
    """A stream may be left before its vote arrives."""
    link, votes = GatewayLink(), [Vote("c", str(number), False) for number in range(2)]
    async with Worker(Runtime({"target": ScriptedEngine("target", TEXT)})) as worker:
        replica = SimpleNamespace(_worker=worker, _gateway=link, _replica_id="r")

        async def told(**counted: int) -> list[Any]:
            events = ray_app.Replica.solve(replica, Request.ask("?"), True, {}, counted)
            return [event async for event in events if isinstance(event, ray_app.NumberedVote)]

        link.add(votes[0])
        async with aclosing(ray_app.Replica.solve(replica, Request.ask("?"), True, {}, {})) as events:
            lost = await anext(events)
        link.add(votes[1])
        again, rest, none = await told(), await told(r=1), await told(r=2)

    assert lost == ray_app.NumberedVote("r", 1, votes[0])
    assert [(event.number, event.vote) for event in again] == [(1, votes[0]), (2, votes[1])]
    assert [event.number for event in rest] == [2]
    assert (none, link.votes) == ([], {})


async def test_a_vote_that_is_told_twice_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = [Vote("c", str(number), False) for number in range(3)]

    class Replicas(Silent):
        async def stream(self, *arguments: Any, session: str) -> Any:
            for replica_id, number in (("r", 1), ("r", 1), ("s", 1), ("r", 2), ("r", 1)):
                yield ray_app.NumberedVote(replica_id, number, votes[number])

    deployed(Replicas(), monkeypatch)
    counted: list[Vote] = []
    async with ray_app.RayBackend({}, {}, ServeConfig()) as entered:
        monkeypatch.setattr(entered.runtime.certificates, "count", counted.append)
        for _ in range(2):
            assert [event async for event in entered.solve(Prepared(Request.ask("?"), Target(), {}), "s")] == []

    assert counted == [votes[1], votes[1], votes[2]]


@pytest.mark.parametrize("is_own", [False, True])
async def test_what_could_not_be_deployed_does_not_stay_in_a_cluster_of_others(
    monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    deleted: list[str] = []

    def deploy(backend: Any) -> None:
        backend._is_deployed, backend._is_own = True, is_own
        raise RuntimeError("a constructor failed")

    monkeypatch.setattr(ray_app.RayBackend, "_deploy", deploy)
    monkeypatch.setattr(ray_app.ray_serve, "delete", lambda name, **options: deleted.append(name))
    with pytest.raises(RuntimeError, match="a constructor failed"):
        async with ray_app.RayBackend({}, {}, ServeConfig(), "broken"):
            pass

    assert deleted == ([] if is_own else ["broken"])


@pytest.mark.parametrize(("num_cold", "is_patient"), [(0, False), (3, False), (7, True)])
async def test_a_replica_that_lacks_an_engine_hands_on(
    monkeypatch: pytest.MonkeyPatch, num_cold: int, is_patient: bool
) -> None:
    asked: list[tuple[str, bool]] = []

    class Replicas(Silent):
        async def stream(
            self, method: str, request: Request, is_patient: bool, verdicts: Any, counted: Any, session: str
        ) -> Any:
            assert request.report is None  # it cannot travel
            asked.append((session, is_patient))
            if len(asked) <= num_cold:
                raise ApiError(503, "cold", code=ABSENT)
            yield Accepted(1, False, frozenset())

    deployed(Replicas(), monkeypatch)
    async with ray_app.RayBackend({}, {}, ServeConfig()) as entered:
        prepared = Prepared(Request.ask("?", report=print), Target(), {})
        events = [event async for event in entered.solve(prepared, "s")]

    assert events == [Accepted(1, False, frozenset())]
    assert len({session for session, _ in asked}) == len(asked) == num_cold + 1
    assert asked[-1][1] is is_patient


@pytest.mark.parametrize("is_open", [True, False])
def test_cluster_that_does_not_answer_is_told_of_in_time(is_open: bool) -> None:
    """At a port that nobody listens at, and at one that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not is_open:
            silent.close()
        began = time.monotonic()

        with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port} within 0.5 s") as raised:
            ray_app._address(f"127.0.0.1:{port}", 0.5)

    assert time.monotonic() - began < 30  # by itself, Ray would try for minutes
    assert "\n" not in str(raised.value)


def test_cluster_of_ours_is_found_where_it_listens(backend: Any) -> None:
    """On loopback alone; Ray would look for it at this machine's address on its network."""
    address = ray_app.ray.get_runtime_context().gcs_address

    assert address.startswith("127.0.0.1:")
    assert ray_app._address(address, 60) == ray_app._address("auto", 60) == address
    assert ray_app._address("local", 60) is None


def test_cluster_whose_address_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve\.replicas\.cluster: .*; give HOST:PORT, auto or local"):
        ray_app._address("nonsense", 0.5)


STARTS = """
from reasonrt.serve.backends.ray import _join

_join("local", 20)
"""


def test_a_cluster_of_ours_leaves_nothing_when_we_are_killed_as_it_starts() -> None:
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # not pytest's: names of sockets are short
        places = {"TMPDIR": folder, "RAY_TMPDIR": folder}
        with subprocess.Popen([sys.executable, "-c", STARTS], env=os.environ | places) as process:
            wait_until(lambda: any(Path(folder).glob("ray/session_*/sockets/*")), 240)
            process.kill()

        wait_until(lambda: not any(Path(folder).glob("reasonrt-*")))
        wait_until(lambda: not any(path.is_dir() for path in Path(folder).glob("ray/session_*")))


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[Any]:
    async with make_backend("two", min_replicas=2, max_replicas=2) as entered:
        yield entered


async def collect(backend: Any, request: Request, session: str = "s") -> list[Any]:
    prepared = backend.runtime.prepare(request)
    return [event async for event in outlive(backend, prepared, session, 10, lambda: None)]


def replica_pids() -> list[int]:
    pids: list[int] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "ServeRepl" in process.name():  # which a zombie has, too
                pids.append(process.pid)
    return pids


async def states_with(backend: Any, num_running: int) -> list[Any]:
    """What both replicas say of themselves, once so many requests run in them together.

    They are asked until then: one may be too slow to answer, and a request ends after its answer has come.
    """
    give_up = time.monotonic() + 60
    while True:
        with suppress(EngineError):
            states = await backend.replicas.ask_all("state", 5.0)
            have_answered = len(states) == 2 and all(isinstance(state, ray_app.ReplicaState) for state in states)
            if have_answered and sum(state.running for state in states) == num_running:
                return list(states)
        assert time.monotonic() < give_up
        await asyncio.sleep(0.1)


async def served_by(backend: Any) -> dict[str, int]:
    """How many requests each replica has served; none runs."""
    return {state.replica_id: state.served for state in await states_with(backend, num_running=0)}


async def until_ready(backend: Any, num: int) -> None:
    give_up = time.monotonic() + 240
    while backend.ready < num or len(replica_pids()) < num:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("policy", ["target", "arbitrage", "self_consistency"])
async def test_replica_solves_as_a_runtime_does(backend: Any, policy: str) -> None:
    accepted, *steps, completion = await collect(backend, Request.ask("?", policy))

    assert isinstance(accepted, Accepted)
    assert [step.text for step in steps] == STEPS
    assert completion.usage["target"].generated > 0


async def test_errors_arrive_as_what_they_are(backend: Any) -> None:
    with pytest.raises(RequestError, match="unknown policy 'magic'"):
        await collect(backend, Request.ask("?", "magic"))
    with pytest.raises(ApiError, match="there is room for") as raised:
        await collect(backend, Request((Message("user", "x" * 200_000),)))
    told = raised.value
    assert (told.status, told.param, told.code) == (400, "messages", "context_length_exceeded")
    assert told.args == (400, told.message, "messages", "context_length_exceeded", None)
    assert len({told, told}) == 1  # hashable, as what handles exceptions expects


@pytest.mark.parametrize("round_", range(2))
async def test_request_outlives_its_replica(backend: Any, round_: int) -> None:
    await until_ready(backend, 2)
    before = set(replica_pids())
    events = []

    async for event in outlive(backend, backend.runtime.prepare(Request.ask("?")), "session", 10, lambda: None):
        events.append(event)
        if len(events) == 4:
            for pid in before:  # wherever it runs
                os.kill(pid, signal.SIGKILL)

    *_, completion = events
    assert [event.text for event in events if isinstance(event, Step)] == STEPS
    assert isinstance(completion, Completion)
    assert completion.details["resumed"] >= 1
    await until_ready(backend, 2)
    assert not before & set(replica_pids())


async def test_replicas_report_to_one_evidence_and_follow_it(backend: Any, tmp_path: Path) -> None:
    """Questions that go to either replica have their votes in the gateway, and its alarm ends stopping in both."""
    await until_ready(backend, 2)
    certificates = backend.runtime.certificates
    certificates.keep(tmp_path)
    plain = backend.runtime.prepare(Request.ask("?", options={"stopping": {"record": True}}))
    recorded = TraceSet(synthetic_traces("honest", 200).traces, plain.policy.fingerprints(plain.request, plain.engines))
    rules = upper_threshold_rules("confidence", [0.9, 0.99])
    certificate = certify(recorded, rules, risk="lost_correct", alpha=0.1, delta=0.1)
    certificate.write(tmp_path / "c.json")
    options = {"stopping": {"certificate": str(tmp_path / "c.json"), "shadow": 1}}

    async def ask(number: int) -> dict[str, Any]:
        *_, completion = await collect(backend, Request.ask(f"question {number}", options=options), f"session {number}")
        return dict(completion.details["stopping"])

    before = await served_by(backend)
    told = await asyncio.gather(*map(ask, range(40)))
    after = await served_by(backend)
    (served,) = certificates
    num_votes = served.evidence.monitor.n
    for number in range(100, 160):
        certificates.count(Vote(certificate.sha256, f"question {number}", True))
    refused = await asyncio.gather(*map(ask, range(40)))
    certificates.close()

    assert [found.get("fallback") for found in told] == [None] * 40
    assert min(after[replica] - before[replica] for replica in before) > 0
    assert num_votes == 40
    assert all("no longer holds" in found["fallback"] for found in refused)


async def test_leaving_frees_the_replica(backend: Any) -> None:
    await until_ready(backend, 2)
    request = Request.ask("at length", limits=Limits(max_tokens=80_000))
    events = backend.solve(backend.runtime.prepare(request), "leaving")
    for _ in range(3):
        await anext(events)
    await states_with(backend, num_running=1)

    await events.aclose()

    await states_with(backend, num_running=0)


async def test_conversation_stays_with_its_replica(backend: Any) -> None:
    await until_ready(backend, 2)
    for session in ("a", "b", "c"):
        before = await served_by(backend)
        await asyncio.gather(*(collect(backend, Request.ask("?"), session) for _ in range(4)))
        after = await served_by(backend)
        assert sorted(after[replica] - before[replica] for replica in before) == [0, 4]


@pytest.mark.parametrize("policy", ["target", "arbitrage"])
async def test_engines_may_stand_apart(backend: Any, policy: str) -> None:
    async with make_backend("apart", split=True) as apart:
        _, *steps, completion = await collect(apart, Request.ask("?", policy))
        events = apart.solve(apart.runtime.prepare(Request.ask("?", policy)), "s")
        await anext(events)
        await events.aclose()

    assert [step.text for step in steps] == STEPS
    assert completion.usage["target"].generated > 0


async def test_a_name_that_another_server_has_is_refused_and_that_one_serves_on(backend: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"an application 'two' runs .* give serve\.replicas\.application another name"
    ):
        await make_backend("two").__aenter__()

    *_, completion = await collect(backend, Request.ask("?"))
    assert completion.content == r"\boxed{7}"


SERVER = """
import asyncio, sys
from functools import partial
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve.backends.ray import RayBackend
from reasonrt.serve.config import ServeConfig

async def main():
    config = ServeConfig.model_validate({"replicas": {"num_cpus": 0.1, "cluster": sys.argv[1]}})
    async with RayBackend({"target": partial(ScriptedEngine, "target", "")}, {}, config, "killed"):
        print("up", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_server_that_is_killed_leaves_nothing_in_a_cluster_that_others_use(backend: Any) -> None:
    address = ray_app.ray.get_runtime_context().gcs_address
    with subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=-1, text=True) as server:  # noqa: ASYNC220
        assert server.stdout is not None
        assert await asyncio.to_thread(server.stdout.readline) == "up\n"
        assert "killed" in ray_app.ray_serve.status().applications
        server.kill()

    give_up = time.monotonic() + 120
    while "killed" in ray_app.ray_serve.status().applications:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.2)
    *_, completion = await collect(backend, Request.ask("?"))
    assert completion.content == r"\boxed{7}"


async def test_only_replicas_listen_beyond_loopback(backend: Any) -> None:
    from reasonrt.serve.exposure import open_ports

    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert [port for port in open_ports() if "ServeReplica" not in port] == []  # those ask for the token
