"""What stands after the gateway: something that solves requests, in this process or in replicas."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from reasonrt.policies.stopping.evidence import KeptEvidence
from reasonrt.policies.stopping.service import ServedCertificate, ServedCertificates
from reasonrt.runtime import Prepared, Runtime
from reasonrt.types import Event, Report


@dataclass(frozen=True, slots=True)
class Accepted:
    """The first event of every request: it can be served.

    Attributes:
        prompt_tokens: of the conversation, for the policy's first engine.
        prompt_opens_thinking: as in `Completion`.
        engines: the names of all engines there; an author that is none of them, such as the suffix of a probe,
            counts for no engine.
        call_marks: as in `Prepared`.
    """

    prompt_tokens: int
    prompt_opens_thinking: bool
    engines: frozenset[str]
    call_marks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CertificateState:
    """A stopping certificate in service, as one process knows it.

    Attributes:
        certificate: the beginning of its SHA-256.
        counts: as in `ServedCertificate`; where the evidence is, also of votes that `departed`.
        evidence, is_alarmed: nothing where votes are only reported.
    """

    certificate: str
    counts: Mapping[str, int]
    evidence: float = 0.0
    is_alarmed: bool = False


def states_of(certificates: ServedCertificates) -> list[CertificateState]:
    return [_state_of(served) for served in certificates]


class Backend(Protocol):
    """An async context manager: entering starts it and returns when it is warm, leaving ends it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def restarts(self) -> int:
        """How often an engine or a replica was replaced."""

    @property
    def certificates(self) -> Sequence[CertificateState]:
        """Of each process that requests were stopped in, and of the one that keeps the evidence."""

    @property
    def ready(self) -> int:
        """Replicas whose engines are all warm; a process without Ray is one."""

    @property
    def runtime(self) -> Runtime:
        """Prepares requests; where replicas solve them, its own engines are never started."""

    def solve(self, prepared: Prepared, session: str) -> AsyncGenerator[Accepted | Report | Event, None]:
        """First `Accepted`, then as `Runtime.solve`; the same errors, and `ApiError` for what it has no room for.

        Of a traced request also what it reports, as it comes.
        """


def _state_of(served: ServedCertificate) -> CertificateState:
    name, evidence = served.sha256[:12], served.evidence
    if not isinstance(evidence, KeptEvidence):
        return CertificateState(name, dict(served.counts))
    counts = dict(served.counts) | {"departed": evidence.num_departed}
    return CertificateState(name, counts, evidence.monitor.evidence, bool(evidence.alarmed))
