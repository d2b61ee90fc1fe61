"""`auto` against each of its ways, on simulated engines that share a device, in a time of their own."""

import asyncio
import random
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.routers.features import FEATURES
from reasonrt.routers.learned import RouterFile
from reasonrt.trees import Tree, Trees
from reasonrt.types import Sampling

DOUBTS_DIGITS = Tree((FEATURES.index("digit_share"), -1, -1), (0.01, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0.0, 0.0, 0.5))
REPORT = {"calibration": [[0.0, 0.0]] * 8 + [[0.5, 0.5]] * 2}
STEPS = ["<think>\nfirst we add\n\n", "and then so on\n\n", "carry the one\n\n", "</think>\n\n", r"\boxed{seven}"]
PROBLEMS = 30
KNOWN = 8  # problems after which every way has been tried


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in which waiting takes no time: where nothing is ready, it is as late as what is waited for."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class BatchedEngine(ScriptedEngine):
    """Passes that hold a token, or several, of each generation that waits; passes on one device follow each other."""

    def __init__(self, name: str, script: Any, device: asyncio.Lock, pass_s: float, tokens_per_pass: int = 1) -> None:
        super().__init__(name, script, chunk_tokens=tokens_per_pass, fingerprint=name.partition("_")[0])
        self._device, self._pass_s = device, pass_s
        self._next: asyncio.Future[None] | None = None
        self._num_joined = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def work(self, num_tokens: int, life: int) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._pass())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._num_joined += 1
        await asyncio.shield(self._next)

    async def _pass(self) -> None:
        async with self._device:
            await asyncio.sleep(0)
            joined, num_joined, self._next, self._num_joined = self._next, self._num_joined, None, 0
            await asyncio.sleep(self._pass_s * (1 + 0.1 * num_joined))
            assert joined is not None
            joined.set_result(None)


def drafted(question: str, doubtful: float) -> str:
    rng = random.Random(question)
    return "".join(step.replace("n", "1") if rng.random() < doubtful else step for step in STEPS)


def make_runtime(folder: Path, draft_s: float, speculative_s: float, doubtful: float) -> Runtime:
    def script(prompt: str, sampling: Sampling) -> str:
        return continuing(drafted(prompt.partition("\n")[0], doubtful))(prompt, sampling)

    file = folder / "router.json"
    models = {"draft": "draft", "target": "target"}
    RouterFile("features", models, Trees(0.0, (DOUBTS_DIGITS,)), report=REPORT).save(file)
    device, good = asyncio.Lock(), continuing("".join(STEPS))
    engines = {
        "draft": BatchedEngine("draft", script, device, draft_s),
        "target": BatchedEngine("target", good, device, 0.02),
        "target_speculative": BatchedEngine("target_speculative", good, device, speculative_s, tokens_per_pass=8),
    }
    options = {"router_file": str(file)}
    runtime = Runtime(engines, {"auto": options, "arbitrage": options})
    for pace in runtime.paces.values():
        pace.clock = asyncio.get_running_loop().time
    return runtime


def simulate(work: Coroutine[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    loop = VirtualLoop()
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", loop.time)
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()


async def seconds_of(runtime: Runtime, policy: str, options: dict[str, Any], concurrency: int) -> float:
    """Of the problems after those in which `auto` learns."""
    loop, texts = asyncio.get_running_loop(), set()
    requests = [Request.ask(f"which, {n}?", policy, options=options) for n in range(PROBLEMS)]
    started = 0.0
    for part in (requests[:KNOWN], requests[KNOWN:]):
        started = loop.time()
        async for _, result in runtime.solve_all(part, concurrency):
            assert isinstance(result, Completion)
            texts.add(result.text)
    assert texts == {"".join(STEPS)}
    return loop.time() - started


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("draft_s", "speculative_s", "doubtful"),
    [
        (0.002, 0.06, 0.1),  # the draft is cheap and seldom doubted
        (0.002, 0.03, 0.6),  # the target speculates well, and the draft is doubted often
        (0.02, 0.4, 0.6),  # nothing pays but the target alone
    ],
)
def test_auto_is_as_fast_as_the_best_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    draft_s: float,
    speculative_s: float,
    doubtful: float,
    concurrency: int,
) -> None:
    async def measure() -> dict[str, float]:
        runtime = make_runtime(tmp_path, draft_s, speculative_s, doubtful)
        gated = {"max_loss": 0.01}
        arms: dict[str, tuple[str, dict[str, Any]]] = {
            "target": ("target", {}),
            "speculative": ("target", {"engine": "target_speculative"}),
            "arbitrage": ("arbitrage", gated),
            "hand_over": ("arbitrage", gated | {"hand_over": True, "target": "target_speculative"}),
            "auto": ("auto", {}),
        }
        return {name: await seconds_of(runtime, *arm, concurrency) for name, arm in arms.items()}

    seconds = simulate(measure(), monkeypatch)

    best = min(took for name, took in seconds.items() if name != "auto")
    assert seconds["auto"] <= 1.15 * best, seconds
    assert seconds["auto"] <= 1.05 * seconds["target"], seconds
