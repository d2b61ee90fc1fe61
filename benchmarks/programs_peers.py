"""Other packages' program search on our questions, with the same model, through an OpenAI-compatible endpoint.

    python benchmarks/programs_peers.py --base-url http://127.0.0.1:8000/v1 --model M --problems P.jsonl --json F

The problems are lines of `reasonrt.evals.contexts.write_problems`. The packages live in a virtual environment of their
own, made in `--folder` at the first run. Each question may use the same for all: turns, tokens of a call, tokens and
calls of the question, seconds. Tokens are prompts and generations as the endpoint counts them; what is refused, ends
without an answer or runs out of time is failed, and wrong. The packages run what the model writes as this user: use a
machine on which that does no harm.
"""

import argparse
import json
import math
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recording_proxy import QuestionLimits, RecordingProxy, Spent, recording_proxy

PACKAGES = {"rlms": "rlms==0.1.3", "prehend": "prehend==0.3.0", "droste": "droste==0.26.0"}
START_S = 120  # imports of a package on a busy machine
GRACE_S = 5  # in which a package may still end by itself
DRAIN_S = 120  # for calls that the endpoint still works on


@dataclass(frozen=True)
class Outcome:
    """One question by one package; a score of a failed one is 0."""

    score: float
    spent: Spent
    seconds: float
    error: str = ""


@dataclass
class Client:
    """A package in a process of its own, which is ended when a question takes too long, and started anew."""

    command: list[str]
    folder: Path
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def ask(self, question: dict[str, Any], timeout_s: float) -> tuple[dict[str, str], float]:
        """What it replies, and the seconds that it took."""
        process = self._running()
        if process.stdin is None:
            raise SystemExit("a peer has no pipe")
        began = time.monotonic()
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
            line = self._line(timeout_s)
        except BrokenPipeError:
            line = ""
        seconds = time.monotonic() - began
        if line is None or not line:
            self.close()
            return {"error": "the process ended" if line == "" else f"no answer in {timeout_s:g} s"}, seconds
        reply: dict[str, str] = json.loads(line)
        return reply, seconds

    def close(self) -> None:
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)}  # programs can read it
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env=environment,
            )
            if self._line(START_S) != "ready\n":
                raise SystemExit(f"this did not start: {' '.join(self.command)}")
        return self._process

    def _line(self, timeout_s: float) -> str | None:
        """Empty at the end of the process, None at the deadline."""
        if self._process is None or self._process.stdout is None:
            return ""
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        return self._process.stdout.readline() if readable else None


def main() -> None:
    options = _options()
    from reasonrt.evals.contexts import read_problems

    problems = read_problems(options.problems)[: options.limit]
    if not problems:
        raise SystemExit(f"{options.problems} holds no problem")
    python = python_of(options.folder.resolve(), options.arms)
    limits = QuestionLimits(options.max_tokens, options.question_tokens, options.max_calls, options.temperature)
    rows: list[dict[str, Any]] = []
    with recording_proxy(options.base_url, limits, options.timeout_s) as proxy:
        for arm in options.arms:
            outcomes = solve_all(python, arm, proxy, problems, options)
            rows += summaries(arm, problems, outcomes)
            if options.json:  # after each arm: together they take hours
                settings = {
                    name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
                }
                options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="of the endpoint, with /v1")
    parser.add_argument("--model", required=True, help="what the endpoint calls it")
    parser.add_argument("--problems", type=Path, required=True, help="JSON lines")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--arms", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--limit", type=int, help="only so many problems")
    parser.add_argument("--concurrency", type=int, default=4, help="questions at a time, each in its own process")
    parser.add_argument("--max-turns", type=int, default=12, help="of one trajectory")
    parser.add_argument("--max-tokens", type=int, default=1024, help="generated by one call")
    parser.add_argument("--question-tokens", type=int, default=400_000, help="prompts and generations of one question")
    parser.add_argument("--max-calls", type=int, default=500, help="of one question")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one question")
    parser.add_argument("--candidates", type=int, default=8, help="of prehend's SRLM")
    parser.add_argument("--temperature", type=float, default=0.7, help="where a package asks for none")
    parser.add_argument("--folder", type=Path, default=Path("runs/programs-peers-venv"), help="their environment")
    return parser.parse_args()


def python_of(folder: Path, arms: Sequence[str]) -> Path:
    """The interpreter of the packages' environment, which is made if it is not there."""
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if missing := [PACKAGES[arm] for arm in arms if not (folder / PACKAGES[arm]).exists()]:
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *missing], check=True)
        for package in missing:
            (folder / package).touch()
    return folder / "bin" / "python"


@contextmanager
def client(python: Path, arm: str, options: argparse.Namespace) -> Iterator[Client]:
    script = Path(__file__).with_name("programs_peer_client.py").resolve()
    numbers = (options.max_turns, options.max_tokens, options.timeout_s, options.candidates)
    command = [str(python), "-I", str(script), arm, options.model, *map(str, numbers)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        peer = Client(command, Path(folder))
        try:
            yield peer
        finally:
            peer.close()


def solve_all(
    python: Path, arm: str, proxy: RecordingProxy, problems: Sequence[Any], options: argparse.Namespace
) -> list[Outcome]:
    """The outcomes in the order of the problems, several at a time."""
    idle: queue.Queue[Client] = queue.Queue()

    def solve_one(problem: Any) -> Outcome:
        peer = idle.get()
        try:
            return solve(peer, proxy, problem, options.timeout_s)
        finally:
            idle.put(peer)

    with ExitStack() as stack:
        for _ in range(options.concurrency):
            idle.put(stack.enter_context(client(python, arm, options)))
        with ThreadPoolExecutor(options.concurrency) as pool:
            return list(pool.map(solve_one, problems))


def solve(peer: Client, proxy: RecordingProxy, problem: Any, timeout_s: float) -> Outcome:
    from reasonrt.evals.contexts import score

    name = proxy.open()
    documents = [{"name": document.name, "text": document.text} for document in problem.documents]
    question = {"url": f"{proxy.url}/{name}", "question": problem.question, "documents": documents}
    reply, seconds = peer.ask(question, timeout_s + GRACE_S)
    spent = proxy.close(name, DRAIN_S)
    if spent.is_lost:  # no fault of the package
        raise SystemExit(f"{proxy.upstream} cannot be reached")
    outcome = Outcome(
        score(problem, reply.get("answer", "")) if "answer" in reply else 0.0, spent, seconds, reply.get("error", "")
    )
    told = reply.get("answer", outcome.error)[:80]
    print(
        f"{problem.id}: {outcome.score:g} in {seconds:.1f} s, {spent.tokens} tokens: {told!r}",
        file=sys.stderr,
        flush=True,
    )
    return outcome


def summaries(arm: str, problems: Sequence[Any], outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    """A row for each task and length."""
    from reasonrt.evals.statistics import wilson_interval

    grouped: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for problem, outcome in zip(problems, outcomes, strict=True):
        grouped[problem.task, two_digits(problem.num_characters)].append(outcome)
    for (task, characters), group in sorted(grouped.items()):
        n = len(group)
        low, high = wilson_interval(round(sum(outcome.score for outcome in group)), n)
        row = {
            "arm": arm,
            "task": task,
            "context_characters": characters,
            "n": n,
            "accuracy": sum(outcome.score for outcome in group) / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "tokens_per_question": sum(outcome.spent.tokens for outcome in group) / n,
            "sub_calls_per_question": sum(outcome.spent.sub_calls for outcome in group) / n,
            "seconds_per_question": sum(outcome.seconds for outcome in group) / n,
            "failed": sum(bool(outcome.error) for outcome in group),
        }
        print(json.dumps(row), flush=True)
        yield row


def two_digits(number: int) -> int:
    """Rounded to two digits, so that lengths that differ by a percent fall together."""
    digits = 10 ** max(0, math.floor(math.log10(number)) - 1) if number else 1
    return round(number / digits) * digits


if __name__ == "__main__":
    main()
