"""Our self-consistency against its-hub's: k samples of the same prompts from one running vLLM server.

    python benchmarks/peers.py --json peers.json

its-hub lives in a virtual environment of its own, made in `--folder` at the first run. The peers take turns within
each round, each in a process of its own; the round that warms up is not counted. Seconds and CPU seconds are for each
problem; of the peer in process, the server is its own engine. Ratios are geometric means over rounds, with 95 %.
"""

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from load import cores
from serving import vllm_server

ITS_HUB = "its-hub[lm]==1.2.0"
PEERS = ("its-hub", "reasonrt remote", "reasonrt in process")
MODEL = Path(__file__).parents[1] / "reasonrt" / "zoo" / "models" / "nano-target"
WARM_UP = 16  # problems


@dataclass
class Peer:
    """A process that solves, and what it and its server have spent."""

    process: "subprocess.Popen[str]"
    server: psutil.Process | None  # None: the engine is its own child
    seconds: list[float] = field(default_factory=list)
    grades: list[bool] = field(default_factory=list)
    tokens: int = 0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0

    def solve(self, questions: Sequence[str], concurrency: int) -> tuple[float, list[tuple[str, int]], float, float]:
        """(seconds, text and tokens of each, CPU seconds of the server, CPU seconds of the client)."""
        to, of = self.process.stdin, self.process.stdout
        if to is None or of is None:
            raise SystemExit("a peer has no pipe")
        before = self._cpu_s()
        print(json.dumps([questions, concurrency]), file=to, flush=True)
        if not (line := of.readline()):
            raise SystemExit("a peer ended by itself; see what it said above")
        seconds, answers = json.loads(line)
        server_s, client_s = (after - was for after, was in zip(self._cpu_s(), before, strict=True))
        return seconds, [(text, tokens) for text, tokens in answers], server_s, client_s

    def _cpu_s(self) -> tuple[float, float]:
        client = psutil.Process(self.process.pid)
        server = client.children(recursive=True)
        if self.server is not None:
            server = [self.server, *self.server.children(recursive=True)]
        return sum(map(_cpu_s, server)), _cpu_s(client)


def main() -> None:
    options = _options()
    folder = options.folder.resolve()
    from reasonrt.evals.tasks import load_task

    problems = load_task("zoo", options.problems, "test")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as here, ExitStack() as stack:
        server = stack.enter_context(vllm_server(Path(here), options.cores))
        ours = [sys.executable, str(Path(__file__)), "--solve"]
        asked = [str(options.k), str(options.temperature), str(options.max_tokens)]
        commands = {
            "its-hub": [str(python_of(folder)), str(Path(__file__).with_name("its_hub_client.py")), server.url, *asked],
            "reasonrt remote": [*ours, server.url, *asked],
            "reasonrt in process": [*ours, options.cores, *asked],
        }
        for concurrency in options.concurrency:
            peers = {name: stack.enter_context(peer(commands[name], server.process.pid)) for name in options.peers}
            if "reasonrt in process" in peers:
                peers["reasonrt in process"].server = None
            for index in range(options.rounds + 1):
                chosen = problems if index else problems[:WARM_UP]
                names = options.peers[index % len(options.peers) :] + options.peers[: index % len(options.peers)]
                for name in names:
                    take_turn(peers[name], chosen, concurrency, is_counted=index > 0)
                    print(f"round {index}: {name}", file=sys.stderr, flush=True)
            for row in (*summaries(peers, concurrency), *ratios(peers, concurrency)):
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.json:
                    settings = {"cores": len(cores()), "k": options.k, "rounds": options.rounds}
                    options.json.write_text(json.dumps(settings | {"rows": rows}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[8, 32], help="problems at a time")
    parser.add_argument("--problems", type=int, default=96, help="of each peer in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, default=5, help="samples of each problem")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, default=640)
    parser.add_argument("--cores", default=str(cores()[-1]), help="that compute in the engine, of every peer")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers-venv"), help="its-hub's environment")
    return parser.parse_args()


def python_of(folder: Path) -> Path:
    """The interpreter of its-hub's environment, which is made if it is not there."""
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", ITS_HUB], check=True)
        (folder / "installed").touch()
    return folder / "bin" / "python"


@contextmanager
def peer(command: list[str], server_pid: int) -> Iterator[Peer]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None or process.stdout.readline() != "ready\n":
            raise SystemExit(f"this did not start: {' '.join(command)}")
        yield Peer(process, psutil.Process(server_pid))
        process.stdin.close()


def take_turn(peer: Peer, problems: Sequence[Any], concurrency: int, *, is_counted: bool) -> None:
    from reasonrt.answers import find_answer, same_answer

    seconds, answers, server_s, client_s = peer.solve([problem.question for problem in problems], concurrency)
    if is_counted:
        peer.seconds.append(seconds / len(problems))
        peer.server_cpu_s += server_s
        peer.client_cpu_s += client_s
        peer.tokens += sum(tokens for _, tokens in answers)
        pairs = zip(answers, problems, strict=True)
        peer.grades += [same_answer(find_answer(text), problem.answer) for (text, _), problem in pairs]


def summaries(peers: dict[str, Peer], concurrency: int) -> Iterator[dict[str, Any]]:
    for name, peer in peers.items():
        n = len(peer.grades)
        yield {
            "peer": name,
            "concurrency": concurrency,
            "n": n,
            "accuracy": sum(peer.grades) / n,
            "seconds_per_problem": statistics.mean(peer.seconds),
            "server_cpu_s": peer.server_cpu_s / n,
            "client_cpu_s": peer.client_cpu_s / n,
            "tokens_per_problem": peer.tokens / n,
        }


def ratios(peers: dict[str, Peer], concurrency: int) -> Iterator[dict[str, Any]]:
    """Seconds of each of ours over its-hub's, round by round."""
    from scipy.stats import t

    for name in [name for name in peers if name != "its-hub"] if "its-hub" in peers else ():
        logs = [math.log(a / b) for a, b in zip(peers[name].seconds, peers["its-hub"].seconds, strict=True)]
        mean, half = statistics.mean(logs), math.inf
        if len(logs) > 1:
            half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        row = {"ratio": f"{name} / its-hub", "concurrency": concurrency, "seconds": math.exp(mean)}
        yield row | {"low": math.exp(mean - half), "high": math.exp(mean + half)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def solve_ours(where: str, k: int, temperature: float, max_tokens: int) -> None:
    """The other side of `peer`: questions from stdin, answers to stdout. `where` is a URL, or cores for an engine."""
    from reasonrt import Completion, Limits, Request, Runtime
    from reasonrt.engines.remote import RemoteEngine
    from reasonrt.engines.vllm import VllmEngine
    from reasonrt.engines.vllm_settings import VllmSettings

    if where.startswith("http"):
        engine: Any = RemoteEngine("target", f"{where}/v1", "nano-target", tokenizer=MODEL)
    else:
        engine = VllmEngine("target", MODEL, VllmSettings(cores=where))
    async with Runtime({"target": engine}) as runtime:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            questions, concurrency = json.loads(line)
            options = {"k": k, "temperature": temperature}
            requests = [
                Request.ask(question, "self_consistency", options=options, limits=Limits(max_tokens))
                for question in questions
            ]
            answers: list[Any] = [None] * len(requests)
            began = time.perf_counter()
            async for index, result in runtime.solve_all(requests, concurrency):
                if not isinstance(result, Completion):
                    raise result
                answers[index] = (result.text, result.generated_tokens)
            print(json.dumps([time.perf_counter() - began, answers]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--solve"]:
        asyncio.run(solve_ours(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
    else:
        main()
