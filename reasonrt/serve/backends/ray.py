"""The engines in replicas on Ray Serve; the only file that imports ray.

Callers never reach Ray: the gateway in this process listens, and forwards to replicas over handles. There is no Ray
proxy, so none of its headers, and one process less whose death would cut a stream.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
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

import ray
from grpc import RpcError  # type: ignore[import-untyped]
from ray import serve as ray_serve
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException

from reasonrt.config import Config
from reasonrt.engines.build import build_engine
from reasonrt.engines.linked import BuildEngine, EngineHost, LinkedEngine
from reasonrt.errors import ConfigError, EngineError
from reasonrt.policies.stopping.evidence import GatewayLink, Verdict, Vote
from reasonrt.ports import Engine, Tool
from reasonrt.runtime import Prepared, Runtime
from reasonrt.serve.backends.base import Accepted, CertificateState, states_of
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.backends.ray_token import provide_token
from reasonrt.serve.config import ReplicaConfig, ServeConfig
from reasonrt.serve.server import serve
from reasonrt.serve.wire.errors import ABSENT, OVERLOADED, ApiError
from reasonrt.tools import build_tools
from reasonrt.types import Event, Limits, Request

MakeRuntime = Callable[[Mapping[str, Engine]], Runtime]

_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_LOOK_S = 1.0
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


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica says of itself; `running` and `served` count requests."""

    replica_id: str
    is_ready: bool
    restarts: int
    running: int
    served: int
    certificates: tuple[CertificateState, ...]


class Replica:
    """All engines and the loop that drives them, in one process: a step costs no hop.

    Args:
        engines: role to what builds its engine.
        make_runtime: from the engines to the runtime.
        handles: role to the deployment that its engine runs in, where it does not run here.
        folder: the paths of the configuration are relative to it.
    """

    async def __init__(  # type: ignore[misc]
        self,
        engines: Mapping[str, BuildEngine],
        make_runtime: MakeRuntime,
        handles: Mapping[str, Any],
        folder: str,
    ) -> None:
        with suppress(OSError):  # on another machine it may be missing, and absolute paths all that there are
            os.chdir(folder)
        built = {role: build() for role, build in engines.items()}
        built |= {role: LinkedEngine(built[role], RayLink(handle)) for role, handle in handles.items()}
        runtime, self._gateway = make_runtime(built), GatewayLink()
        runtime.certificates.report(self._gateway)
        self._worker = await Worker(runtime).__aenter__()

    async def solve(
        self, request: Request, is_patient: bool, verdicts: Mapping[str, Verdict]
    ) -> AsyncGenerator[Accepted | Event | Vote, None]:
        """As `Worker.solve`, and the votes that have come up, of whatever request.

        Args:
            verdicts: on certificates, by their SHA-256, as the gateway has them now.
        """
        self._gateway.verdicts = verdicts
        prepared = self._worker.runtime.prepare(request)
        async with aclosing(self._worker.solve(prepared, is_patient=is_patient)) as events:
            async for event in events:
                for vote in self._gateway.take():
                    yield vote
                yield event

    async def state(self) -> ReplicaState:
        replica_id = ray_serve.get_replica_context().replica_id.unique_id
        worker = self._worker
        is_ready, certificates = worker.ready > 0, tuple(worker.certificates)
        return ReplicaState(replica_id, is_ready, worker.restarts, worker.running, worker.served, certificates)

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises again and again."""
        self._worker.check_health()

    async def __del__(self) -> None:
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
        self._app, self._name = _application(engines, make_runtime, config), name
        self.runtime = make_runtime({role: build() for role, build in engines.items()})
        self._cluster = config.replicas.cluster
        self.replicas: RayLink | None = None
        self.ready, self._is_own = 0, False
        self._states: dict[str, ReplicaState] = {}  # the last of each replica, those that have ended too
        self._most_at_once = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.runtime.check_defaults)  # a replica's own error would be one of many tries
        self.replicas = replicas = await asyncio.to_thread(self._deploy)
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

    async def solve(self, prepared: Prepared, session: str) -> AsyncGenerator[Accepted | Event, None]:
        if self.replicas is None:
            raise ApiError(503, "the engines are starting", code="starting", retry_after_s=5.0)
        request = replace(prepared.request, report=None)  # which belongs to this process
        certificates = self.runtime.certificates
        for place in range(_PLACES):  # a replica that starts an engine again hands on what has not begun there
            name, is_last = f"{session}@{place}" if place else session, place == _PLACES - 1
            try:
                answer = self.replicas.stream("solve", request, is_last, certificates.verdicts(), session=name)
                async with aclosing(answer) as events:
                    async for event in events:
                        if isinstance(event, Vote):
                            certificates.count(event)
                        else:
                            yield event
                return
            except ApiError as error:
                if error.code != ABSENT:
                    raise

    def _deploy(self) -> RayLink:
        if not ray.is_initialized():
            self._is_own = not _join(self._cluster)
        if os.environ["RAY_AUTH_MODE"].lower() != "token":
            _log.warning("whoever reaches this Ray cluster can run code in it: RAY_AUTH_MODE is not token")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(proxy_location="Disabled")
        return RayLink(ray_serve.run(self._app, name=self._name, route_prefix=None))

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
    serve(RayBackend(engines, settings.policies, config, limits=limits, build_tools=tools), config, announce)


def _make_runtime(
    options: Mapping[str, Mapping[str, Any]],
    limits: Limits | None,
    build_tools: Callable[[], Mapping[str, Tool]],
    engines: Mapping[str, Engine],
) -> Runtime:
    return Runtime(engines, options, tools=build_tools(), limits=limits)


def _application(engines: Mapping[str, BuildEngine], make_runtime: MakeRuntime, config: ServeConfig) -> Any:
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
    return replica.bind(dict(engines), make_runtime, own_deployments, folder)


def _common_options(wanted: ReplicaConfig, config: ServeConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": wanted.max_ongoing_requests,
        "max_queued_requests": config.bounds.running,  # the gateway sends no more; what waits, waits there
        "graceful_shutdown_timeout_s": config.grace_s,
        "health_check_period_s": 1.0,
        "request_router_config": RequestRouterConfig(request_router_class=_ROUTER),
        "ray_actor_options": {"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus},
    }


def _join(cluster: str) -> bool:
    """Whether there was a cluster to join; if there need not be, one of our own is started.

    Raises:
        ConfigError: no cluster answers at the address that was given.
    """
    provide_token(os.environ)
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.WARNING}
    if cluster != "local":
        try:
            ray.init(cluster, **quiet)
            return True
        except ConnectionError:
            if cluster != "auto":
                raise ConfigError(f"no Ray cluster answers at {cluster}; correct serve.replicas.cluster") from None
    # Ray takes this machine's address on the network unless it believes that clusters are not supported here
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for its other processes
    ray.init("local", include_dashboard=False, **quiet)
    return False


@contextmanager
def _translated() -> Iterator[None]:
    """Ray's errors in our words."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except BackPressureError as error:
        raise ApiError(503, "the replicas are full", code=OVERLOADED, retry_after_s=2.0) from error
    except (RayError, RayServeException, RpcError) as error:
        raise EngineError(f"a replica died while it worked on this request: {type(error).__name__}") from error
