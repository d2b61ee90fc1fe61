"""One peer as `programs_peers.py` asks it. Runs in a virtual environment with the peer's package and without ours.

    python programs_peer_client.py PEER MODEL MAX_TURNS MAX_TOKENS TIMEOUT_S CANDIDATES

Reads lines `{"url", "question", "documents"}` and answers each with `{"answer"}` or `{"error"}`. What the model writes
runs in this process, or where the package runs it: without any confinement of ours.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One question, and what the package may use for it.

    Attributes:
        url: add `/root/v1` for turns, `/sub/v1` for sub-calls.
        documents: each with `name` and `text`.
    """

    url: str
    question: str
    documents: list[dict[str, str]]
    model: str
    max_turns: int
    max_tokens: int
    timeout_s: float
    candidates: int

    @property
    def context(self) -> str | list[str]:
        texts = [document["text"] for document in self.documents]
        return texts[0] if len(texts) == 1 else texts


def main() -> None:
    peer, model, max_turns, max_tokens, timeout_s, candidates = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")  # the packages print, and so do the programs that they run
    os.dup2(2, 1)
    PEERS[peer].imports()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = Asked(
            **json.loads(line),
            model=model,
            max_turns=int(max_turns),
            max_tokens=int(max_tokens),
            timeout_s=float(timeout_s),
            candidates=int(candidates),
        )
        try:
            reply = {"answer": str(PEERS[peer].solve(asked))}
        except Exception as error:  # noqa: BLE001 (whatever a package raises is its failure)
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=answers, flush=True)


def rlms(asked: Asked) -> str:
    """One trajectory, sub-calls to the model itself."""
    rlm = importlib.import_module("rlm").RLM(
        **_rlm_arguments(asked), sampling_args={"max_tokens": asked.max_tokens}, max_timeout=asked.timeout_s
    )
    return str(rlm.completion(asked.context, root_prompt=asked.question).response)


def prehend(asked: Asked) -> str:
    """SRLM: several candidates, one after the other, since in threads they read each other's output."""
    srlm = importlib.import_module("prehend.core.srlm").SRLM(
        **_rlm_arguments(asked),
        root_max_tokens=asked.max_tokens,
        subcall_max_tokens=asked.max_tokens,
        max_timeout=asked.timeout_s / asked.candidates,
        n_candidates=asked.candidates,
        candidate_temperature=0.7,
        confidence_elicitation=True,
    )
    return str(srlm.completion(asked.context, root_prompt=asked.question).response)


def droste(asked: Asked) -> str:
    package = importlib.import_module("droste")
    budget = package.Budget(
        tokens=1_000_000_000,  # the proxy counts
        subcalls=1_000_000,
        wall_ms=int(1000 * asked.timeout_s),
        max_iterations=asked.max_turns,
        root_output_tokens=asked.max_tokens,
        subcall_output_tokens=asked.max_tokens,
    )
    environment_config = package.EnvironmentConfig(kind="native", budget=budget)
    context = package.create_environment_context(environment_config)
    account = {"model": asked.model, "api_key": "none"}
    root = package.OpenAICompatClient(base_url=f"{asked.url}/root/v1", **account)
    subcalls = package.OpenAICompatSubcallClient(
        base_url=f"{asked.url}/sub/v1", context=context, max_output_tokens=asked.max_tokens, **account
    )
    files = [
        {"path": document["name"], "name": document["name"], "text": document["text"], "size": len(document["text"])}
        for document in asked.documents
    ]
    environment = package.create_environment(
        environment_config,
        context={"files": files},
        registry=None,
        subcalls=subcalls,
        execution_context=context,
        capability_run_id=context.trace.run_id,
        capability_parent_run_id=context.trace.parent_run_id,
        capability_observer=context.observe_capability,
    )
    result = package.run_rlm(
        asked.question,
        environment=environment,
        root_llm=root,
        subcalls=subcalls,
        config=package.RLMConfig(budget=budget, sandbox=environment_config.sandbox, root_model=asked.model),
        context=context,
    )
    if not (result.ready or result.extracted):
        raise RuntimeError(f"no answer: {result.error}")
    return str(result.answer)


@dataclass(frozen=True)
class Peer:
    module: str
    solve: Callable[[Asked], str]

    def imports(self) -> None:
        """Before the first question, whose seconds would tell of it."""
        importlib.import_module(self.module)


PEERS = {
    "rlms": Peer("rlm", rlms),
    "prehend": Peer("prehend.core.srlm", prehend),
    "droste": Peer("droste", droste),
}


def _rlm_arguments(asked: Asked) -> dict[str, Any]:
    account = {"model_name": asked.model, "api_key": "none"}
    return {
        "backend": "openai",
        "backend_kwargs": {**account, "base_url": f"{asked.url}/root/v1"},
        "other_backends": ["openai"],
        "other_backend_kwargs": [{**account, "base_url": f"{asked.url}/sub/v1"}],
        "environment": "local",
        "max_iterations": asked.max_turns,
    }


if __name__ == "__main__":
    main()
