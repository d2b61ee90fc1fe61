"""The engines in replicas on Ray Serve; of what serves, the only file that imports ray.

Callers never reach Ray: the gateway in this process listens, and forwards to replicas over handles. There is no Ray
proxy, so none of its headers, and one process less whose death would cut a stream.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

# Ray reads these as it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else engines give way to everything else on the machine
# a step that goes from thread to thread waits for the interpreter in each
os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")  # a turn takes milliseconds of a core, needed or not

import grpc  # type: ignore[import-untyped]
import ray
from ray import serve as ray_serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants, services
from ray._private.state import state as ray_state
from ray._private.worker import global_worker
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException

from reasonrt.config import Config
from reasonrt.engines.build import build_engine
from reasonrt.engines.linked import BuildEngine, EngineHost, LinkedEngine
from reasonrt.engines.orphans import owned_environment, remove_at_end
from reasonrt.errors import ConfigError, EngineError
from reasonrt.policies.stopping.evidence import GatewayLink, Verdict, Vote
from reasonrt.ports import Engine, Tool
from reasonrt.runtime import Prepared, Runtime
from reasonrt.serve.backends.base import Accepted, CertificateState, states_of
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.backends.ray_token import provide_token
from reasonrt.serve.config import ReplicaConfig, ServeConfig, is_loopback
from reasonrt.serve.server import serve
from reasonrt.serve.wire.errors import ABSENT, OVERLOADED, ApiError
from reasonrt.tools import build_tools
from reasonrt.types import Event, Limits, Report, Request

MakeRuntime = Callable[[Mapping[str, Engine]], Runtime]

_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_LOOK_S = 1.0
_LOOK_FOR_GATEWAY_S = 3.0
_TRY_S = 0.5  # for one address of a cluster to answer
_STALE_S = 2.0  # for a cluster of this machine to answer, of which only the address may be left
_UNHEALTHY_AFTER = 3  # health checks without an answer, in Ray
_PLACES = 8  # that a request tries; the last one waits

_log = logging.getLogger(__name__)


class RayLink:
    """The methods of a deployment, with Ray's errors in our words. Belongs to the loop that it is first used in."""

    is_running = False  # as far as it knows

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def _options(self, **options: Any) -> Any:
        # over gRPC, which costs a third of what streams of object references do
        return self._handle.options(_by_reference=False, **options)

    def kill(self) -> None:
        """Nothing: Ray replaces what does not answer its own health check."""

    async def aclose(self) -> None:
        """End what Ray does in this loop; it would start a cluster anew to tell it of its metrics."""
        await self._handle.shutdown_async()

    async def call(self, method: str, *arguments: Any, session: str = "") -> Any:
        with _translated():
            return await self._options(method_name=method, session_id=session).remote(*arguments)

    async def stream(self, method: str, *arguments: Any, session: str = "") -> AsyncGenerator[Any, None]:
        """What the method yields; closing this cancels it."""
        answer = self._options(method_name=method, session_id=session, stream=True).remote(*arguments)
        is_over = False
        try:
            with _translated():
                async for item in answer:
                    yield item
            is_over = True
        finally:
            if not is_over:
                answer.cancel()

    async def ask_all(self, method: str, timeout_s: float) -> list[Any]:
        """The answer of each replica; an exception for one that has none."""
        with _translated():
            asked = self._options().broadcast(method)
            return list(await asked.results_async(timeout_s=timeout_s, return_exceptions=True))


class EngineReplica(EngineHost):
    """One engine in a process of its own, which every replica of the policies asks.

    Args:
        build: the engine.
        folder: the paths of the configuration are relative to it.
    """

    async def __init__(self, build: BuildEngine, folder: str) -> None:  # type: ignore[misc]
        with suppress(OSError):  # on another machine it may be missing, and absolute paths all that there are
            os.chdir(folder)
        super().__init__(await build().start())

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that does not answer again and again."""
        await self.answer(float("inf"))


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica says of itself; `running` and `served` count requests."""

    replica_id: str
    is_ready: bool
    restarts: int
    running: int
    served: int
    certificates: tuple[CertificateState, ...]


@dataclass(frozen=True, slots=True)
class NumberedVote:
    """A vote of a replica's; the numbers of each begin at 1, and none is left out."""

    replica_id: str
    number: int
    vote: Vote


class Replica:
    """All engines and the loop that drives them, in one process: a step costs no hop.

    Args:
        engines: role to what builds its engine.
        make_runtime: from the engines to the runtime.
        handles: role to the deployment that its engine runs in, where it does not run here.
        folder: the paths of the configuration are relative to it.
        engine_silence_s: as in `Worker`.
        gateway_job: Ray's id of the process that has deployed this, and that it ends with.
    """

    async def __init__(  # type: ignore[misc]
        self,
        engines: Mapping[str, BuildEngine],
        make_runtime: MakeRuntime,
        handles: Mapping[str, Any],
        folder: str,
        engine_silence_s: float,
        gateway_job: str,
    ) -> None:
        self._replica_id = ray_serve.get_replica_context().replica_id.unique_id
        self._ending = asyncio.create_task(_end_after(gateway_job))
        with suppress(OSError):  # on another machine it may be missing, and absolute paths all that there are
            os.chdir(folder)
        built = {role: build() for role, build in engines.items()}
        built |= {role: LinkedEngine(built[role], RayLink(handle)) for role, handle in handles.items()}
        runtime, self._gateway = make_runtime(built), GatewayLink()
        runtime.certificates.report(self._gateway)
        self._worker = await Worker(runtime, engine_silence_s).__aenter__()

    async def solve(
        self, request: Request, is_patient: bool, verdicts: Mapping[str, Verdict], counted: Mapping[str, int]
    ) -> AsyncGenerator[Accepted | Report | Event | NumberedVote, None]:
        """As `Worker.solve`, and the votes that have come up, of whatever request.

        Each is told with every request until one says that it is counted: a stream may be left before it arrives.

        Args:
            verdicts: on certificates, by their SHA-256, as the gateway has them now for this caller.
            counted: the last number of each replica's votes that the gateway has counted.
        """
        self._gateway.verdicts[request.cache_salt] = verdicts
        told = counted.get(self._replica_id, 0)
        self._gateway.forget(told)
        prepared = self._worker.runtime.prepare(request)
        async with aclosing(self._worker.solve(prepared, is_patient=is_patient)) as events:
            async for event in events:
                for number, vote in self._gateway.after(told):
                    yield NumberedVote(self._replica_id, number, vote)
                    told = number
                yield event

    async def state(self) -> ReplicaState:
        worker = self._worker
        is_ready, certificates = worker.ready > 0, tuple(worker.certificates)
        return ReplicaState(self._replica_id, is_ready, worker.restarts, worker.running, worker.served, certificates)

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises again and again."""
        self._worker.check_health()

    async def __del__(self) -> None:
        self._ending.cancel()
        await self._worker.__aexit__()


class RayBackend:
    """Replicas that solve requests as the protocol of `serve.backends.base` says.

    Args:
        engines: role to what builds its engine.
        options: policy to default options.
        config: of the replicas.
        name: of the application in the cluster.
        limits: of a request that brings none.
        build_tools: the tools by name, not started.
    """

    def __init__(
        self,
        engines: Mapping[str, BuildEngine],
        options: Mapping[str, Mapping[str, Any]],
        config: ServeConfig,
        name: str = "reasonrt",
        limits: Limits | None = None,
        build_tools: Callable[[], Mapping[str, Tool]] = dict,
    ) -> None:
        make_runtime = partial(_make_runtime, dict(options), limits, build_tools)
        self.application, self._name = partial(_application, engines, make_runtime, config), name
        self.runtime = make_runtime({role: build() for role, build in engines.items()})
        self._config = config
        self.replicas: RayLink | None = None
        self.ready, self._is_own, self._is_deployed = 0, False, False
        self._states: dict[str, ReplicaState] = {}  # the last of each replica, those that have ended too
        self._most_at_once = 0
        self._counted: dict[str, int] = {}  # the last number of each replica's votes

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.runtime.check_defaults)  # a replica's own error would be one of many tries
        deploying = asyncio.ensure_future(asyncio.to_thread(self._deploy))
        try:
            self.replicas = replicas = await asyncio.shield(deploying)
        except BaseException:
            if self._is_deployed and not self._is_own:  # a cluster of our own ends with us; in others it would stay
                await asyncio.to_thread(ray_serve.delete, self._name, _blocking=False)
            await asyncio.wait({deploying})  # which nobody can end
            raise
        self._watching = asyncio.create_task(self._watch(replicas))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        try:
            if self.replicas is not None:
                await self.replicas.aclose()
        finally:  # whatever has become of the cluster, none is left running
            self.runtime.certificates.close()
            await asyncio.to_thread(self._end)

    @property
    def restarts(self) -> int:
        return sum(state.restarts for state in self._states.values()) + len(self._states) - self._most_at_once

    @property
    def certificates(self) -> Sequence[CertificateState]:
        own = states_of(self.runtime.certificates)
        return own + [certificate for state in self._states.values() for certificate in state.certificates]

    async def solve(self, prepared: Prepared, session: str) -> AsyncGenerator[Accepted | Report | Event, None]:
        if self.replicas is None:
            raise ApiError(503, "the engines are starting", code="starting", retry_after_s=5.0)
        request = replace(prepared.request, report=None)  # which belongs to this process
        certificates = self.runtime.certificates
        for place in range(_PLACES):  # a replica that starts an engine again hands on what has not begun there
            name, is_last = f"{session}@{place}" if place else session, place == _PLACES - 1
            try:
                verdicts = certificates.verdicts(request.cache_salt)
                answer = self.replicas.stream("solve", request, is_last, verdicts, self._counted, session=name)
                async with aclosing(answer) as events:
                    async for event in events:
                        if isinstance(event, NumberedVote):
                            if event.number > self._counted.get(event.replica_id, 0):
                                self._counted[event.replica_id] = event.number
                                certificates.count(event.vote)
                        else:
                            yield event
                return
            except ApiError as error:
                if error.code != ABSENT:
                    raise

    def _deploy(self) -> RayLink:
        if not ray.is_initialized():
            self._is_own = not _join(self._config.replicas.cluster, self._config.cluster_timeout_s)
        if os.environ["RAY_AUTH_MODE"].lower() != "token":
            _log.warning("whoever reaches this Ray cluster can run code in it: RAY_AUTH_MODE is not token")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(proxy_location="Disabled")
        if self._name in ray_serve.status().applications:
            raise ConfigError(
                f"an application {self._name!r} runs on this Ray cluster already; give serve.replicas.application "
                f"another name, or end that one: serve delete {self._name}"
            )
        self._warn_of_missing_room()
        self._is_deployed = True
        application = self.application(ray.get_runtime_context().get_job_id())
        return RayLink(ray_serve.run(application, name=self._name, route_prefix=None))

    def _warn_of_missing_room(self) -> None:
        wanted, free = self._config.replicas, ray.available_resources()
        num = len(self.runtime.engines) if wanted.split else wanted.min_replicas
        for kind, each in (("CPU", wanted.num_cpus), ("GPU", wanted.num_gpus)):
            if num * each > free.get(kind, 0.0):
                _log.warning(
                    "the replicas wait for room: they ask for %g %ss, and %g are free in this Ray cluster; lower "
                    "serve.replicas.num_%ss, end what holds them, or start a cluster of its own with cluster: local",
                    num * each,
                    kind,
                    free.get(kind, 0.0),
                    kind.lower(),
                )

    def _end(self) -> None:
        self.replicas, self.ready = None, 0
        ray_serve.delete(self._name)
        if self._is_own:
            ray.shutdown()

    async def _watch(self, replicas: RayLink) -> None:
        while True:
            try:
                answers = await replicas.ask_all("state", timeout_s=5 * _LOOK_S)
            except Exception as error:  # noqa: BLE001 (whatever it is, none is known to be ready, and all are asked again)
                _log.warning("no replica says how it is: %r", error)
                answers = []
            states = [answer for answer in answers if isinstance(answer, ReplicaState)]
            self.ready = sum(state.is_ready for state in states)
            self._most_at_once = max(self._most_at_once, len(states))
            self._states |= {state.replica_id: state for state in states}
            await asyncio.sleep(_LOOK_S)


def serve_on_ray(settings: Config, config: ServeConfig, announce: Callable[[str], None]) -> None:
    """Engines and policies in replicas, the endpoint in this process."""
    engines = {role: partial(build_engine, role, engine) for role, engine in settings.engines.items()}
    limits, tools = settings.limits.to_limits(), partial(build_tools, settings)
    name = config.replicas.application or f"reasonrt-{secrets.token_hex(4)}"
    serve(RayBackend(engines, settings.policies, config, name, limits, tools), config, announce)


def _make_runtime(
    options: Mapping[str, Mapping[str, Any]],
    limits: Limits | None,
    build_tools: Callable[[], Mapping[str, Tool]],
    engines: Mapping[str, Engine],
) -> Runtime:
    return Runtime(engines, options, tools=build_tools(), limits=limits)


async def _end_after(gateway_job: str) -> None:
    """End the application that this replica is of, when its server is gone: a cluster that others use goes on."""
    name = ray_serve.get_replica_context().app_name
    while True:
        await asyncio.sleep(_LOOK_FOR_GATEWAY_S)
        try:
            jobs = await asyncio.to_thread(ray_state.job_table)
            if any(job["JobID"] == gateway_job and job["IsDead"] for job in jobs):
                await asyncio.to_thread(ray_serve.delete, name, _blocking=False)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is asked again; without a cluster this ends too)
            _log.warning("the cluster does not say whether the server lives: %r", error)


def _application(
    engines: Mapping[str, BuildEngine], make_runtime: MakeRuntime, config: ServeConfig, gateway_job: str
) -> Any:
    wanted, folder = config.replicas, os.getcwd()
    common = _common_options(wanted, config)
    own_deployments: dict[str, Any] = {}
    if wanted.split:
        # a request makes many calls concurrently; replicas bound the requests
        unbounded = common | {"max_queued_requests": -1}
        server = ray_serve.deployment(**unbounded)(EngineReplica)
        own_deployments = {
            role: server.options(name=f"engine-{role}").bind(build, folder) for role, build in engines.items()
        }
        common |= {"ray_actor_options": {"num_cpus": 0}}
    scaling = AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        target_ongoing_requests=wanted.target_ongoing_requests,
    )
    replica = ray_serve.deployment(name="replica", autoscaling_config=scaling, **common)(Replica)
    silence_s = config.bounds.engine_silence_s
    return replica.bind(dict(engines), make_runtime, own_deployments, folder, silence_s, gateway_job)


def _common_options(wanted: ReplicaConfig, config: ServeConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": wanted.max_ongoing_requests,
        "max_queued_requests": config.bounds.running,  # the gateway sends no more; what waits, waits there
        "graceful_shutdown_timeout_s": config.grace_s,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": config.bounds.engine_silence_s / (_UNHEALTHY_AFTER + 1),
        "request_router_config": RequestRouterConfig(request_router_class=_ROUTER),
        "ray_actor_options": {"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus},
    }


def _join(cluster: str, timeout_s: float) -> bool:
    """Whether there was a cluster to join; if there need not be, one of our own is started.

    Raises:
        ConfigError: no cluster answers at the address that was given.
    """
    provide_token(os.environ)
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.WARNING}
    if (address := _address(cluster, timeout_s)) is not None:
        ray.init(address, **quiet)
        _log.info("joined the Ray cluster at %s", address)
        return True
    _stay_on_loopback()
    os.environ.update(owned_environment())  # and for those, that they end with us
    session = Path(get_default_ray_temp_dir(), f"session_*_{os.getpid()}")  # its name has the time, too
    if not any(session.parent.glob(session.name)):  # else one is of an earlier process with our number
        remove_at_end(session)  # before it is there: we may be ended as it starts
    ray.init("local", include_dashboard=False, **quiet)
    remove_at_end(Path(global_worker.node.get_session_dir_path()))
    return False


def _address(cluster: str, timeout_s: float) -> str | None:
    """Of the cluster to join, which answers; None where one of our own is to be started.

    Ray itself would try for minutes.
    """
    if cluster == "local" or "://" in cluster:
        return None if cluster == "local" else cluster
    is_chosen = cluster != "auto" or bool(os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE))
    try:
        given = services.get_ray_address_from_environment(cluster, None) if cluster == "auto" else cluster
        usual = given and services.canonicalize_bootstrap_address(given)
    except ConnectionError:
        given = usual = None
    except ValueError as error:
        raise ConfigError(f"serve.replicas.cluster: {error}; give HOST:PORT, auto or local") from None
    if given is None:
        return None
    # Ray takes the machine's address on its network for 127.0.0.1, where a cluster of ours does not listen
    addresses = [str(usual), str(given)] if is_loopback(str(given).rpartition(":")[0]) else [str(usual)]
    give_up = time.monotonic() + (timeout_s if is_chosen else min(timeout_s, _STALE_S))
    while time.monotonic() < give_up:
        for address in addresses:
            if _answers(address, min(_TRY_S, timeout_s)):
                if is_loopback(address.rpartition(":")[0]):
                    _stay_on_loopback()
                return address
    if not is_chosen:
        return None  # it has ended without taking its address back
    raise ConfigError(
        f"no Ray cluster answers at {given} within {timeout_s:g} s; correct serve.replicas.cluster, or raise "
        "serve.cluster_timeout_s"
    )


def _stay_on_loopback() -> None:
    """Ray takes this machine's address on the network unless it believes that clusters are not supported here."""
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for its other processes


def _answers(address: str, timeout_s: float) -> bool:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # as far as this can tell
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
    return True


@contextmanager
def _translated() -> Iterator[None]:
    """Ray's errors in our words."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except BackPressureError as error:
        raise ApiError(503, "the replicas are full", code=OVERLOADED, retry_after_s=2.0) from error
    except (RayError, RayServeException, grpc.RpcError) as error:
        raise EngineError(f"a replica died while it worked on this request: {type(error).__name__}") from error
