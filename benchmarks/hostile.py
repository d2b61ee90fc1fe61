"""Hostile callers, files and upstreams, kind by kind, while a caller with a key is served.

    python benchmarks/hostile.py --json hostile.json            # on the models that ship; --scripted without any
    python benchmarks/hostile.py --parts openapi --json openapi.json
    python benchmarks/hostile.py --parts leaks --json leaks.json

A kind is held when each of its inputs is; the caller's p95 is compared with what it was just before and after. The
attacks are those of `attacks.py` and `spoilt_files.py`; tests/hostile/ runs the same ones, fewer of each.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from attacks import OVER_THE_WIRE, MortalScript, Outcome, Target, chat, head, mixed, post, send, settling
from load import Server, config_file, free_port, percentile, running, tail
from spoilt_files import ON_FILES

HONEST, HOSTILE = "key-of-an-honest-caller", "key-of-a-hostile-caller"
QUIET_S, PAUSE_S = 3.0, 0.02
MOST_RATIO = 1.5
MOST_GROWN_MIB = {"1 oversized heads": 64, "2 slow callers": 64, "25 many bodies": 192}
"""Of kinds that are about the server's memory, too; bodies may take `serve.bounds.bodies_bytes`, 128 MiB."""

ON_SCRIPTED = {"8 one-sided votes", "16 odd hosts", "23 told secrets"}
"""Kinds whose server must have a certificate, no keys, or an upstream that fails."""

NUMBERS = {"1 oversized heads": 400, "2 slow callers": 1100, "3 odd options": 3000, "malformed": 2000}
NUMBERS |= {"6 control tokens": 40, "7 one key for all": 32, "25 many bodies": 400, "16 odd hosts": 500}
DESCRIPTORS = 1024
SHARED = "/dev/shm"  # noqa: S108 (what is there is counted)


def main() -> None:
    options = _options()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one needs more connections than one refuses
    if options.serve:
        _serve(options.serve)
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            result[part] = PARTS[part](Path(folder), options)
            if options.json:  # after each part: together they take many minutes
                options.json.write_text(json.dumps(result, indent=2) + "\n")
    broken = [row for rows in result.values() for row in rows if not row["is_held"]]
    if broken:
        sys.exit(f"not held: {', '.join(row['kind'] for row in broken)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["kinds"])
    parser.add_argument("--kinds", nargs="+", choices=[*OVER_THE_WIRE, *ON_FILES], default=[*OVER_THE_WIRE, *ON_FILES])
    parser.add_argument("--scripted", action="store_true", help="engines without a model, which start immediately")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, of each kind over the wire")
    parser.add_argument("--requests", type=int, default=5000, help="at least so many, in the part openapi")
    parser.add_argument("--examples", type=int, default=500, help="of each route and seed, in the part openapi")
    parser.add_argument("--many", type=int, default=10_000, help="requests, in the part leaks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def attack_all(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each kind over the wire, then each that is a file."""
    rows = []
    wire = [kind for kind in options.kinds if kind in OVER_THE_WIRE]
    with ExitStack() as stack:
        servers = {}
        for name in ("main", "scripted", "keyless"):
            wanted = {"main": wire, "keyless": [k for k in wire if k == "16 odd hosts"]}.get(name)
            if wanted is None:
                wanted = [kind for kind in wire if kind in ON_SCRIPTED and kind != "16 odd hosts"]
            if wanted:
                is_zoo = name == "main" and not options.scripted
                servers[name] = stack.enter_context(hostile_server(folder / name, is_zoo, has_keys=name != "keyless"))
        for kind in wire:
            name = "keyless" if kind == "16 odd hosts" else "scripted" if kind in ON_SCRIPTED else "main"
            rows.append(attack(kind, servers[name], folder / name / "server.log", options, has_keys=name != "keyless"))
            show(rows[-1])
    for kind in options.kinds:
        if kind in ON_FILES:
            outcome = Outcome()
            (folder / kind).mkdir()
            ON_FILES[kind](folder / kind, random.Random(options.seed), options.share, outcome)
            rows.append(row_of(kind, outcome))
            show(rows[-1])
    return rows


def attack(kind: str, server: Server, log: Path, options: argparse.Namespace, *, has_keys: bool) -> dict[str, Any]:
    """One kind against a server, with the caller that is served before, meanwhile and after."""
    num = max(2, round(NUMBERS.get(kind, 200) * options.share))
    target = Target(server.port, HOSTILE if has_keys else "", control_tokens=control_tokens_of_zoo())
    with Meter(server.port, HONEST if has_keys else "") as meter, watched_memory(server) as memory:
        quiet = meter.measure_for(QUIET_S)
        meter.start()
        outcome = in_other_process(_attack, kind, target, num, options.seed, options.seconds)
        under_attack = meter.stop()
        after = meter.measure_for(QUIET_S)
    if kind == "8 one-sided votes":
        asyncio.run(check_others_are_stopped(server.port, outcome))
    if kind == "23 told secrets":
        outcome.note("SECRET" not in log.read_text(errors="replace"), "the log holds the upstream's password")
    outcome.note(server.process.poll() is None, "the server has ended")
    grown = memory["grown_mib"]
    outcome.note(grown < MOST_GROWN_MIB.get(kind, grown + 1), f"the server's memory grew by {grown:.0f} MiB")
    for failure in under_attack["failures"]:
        outcome.note(False, f"the caller with a key: {failure}")
    usual = percentile(quiet["seconds"] + after["seconds"], 0.95)
    ratio = percentile(under_attack["seconds"], 0.95) / usual if usual and under_attack["seconds"] else 0.0
    outcome.note(ratio <= MOST_RATIO, f"the caller's p95 is {ratio:.2f} times the quiet one")
    return row_of(kind, outcome) | {
        "worst_health_ms": round(1000 * max(under_attack["health"], default=0.0), 1),
        "served": len(under_attack["seconds"]),
        "p95_ms": round(1000 * percentile(under_attack["seconds"], 0.95), 1),
        "p95_ratio": round(ratio, 2),
        "grown_mib": round(memory["grown_mib"], 1),
    }


def _attack(kind: str, target: Target, num: int, seed: int, seconds: float) -> Outcome:
    os.nice(10)  # what the attacker computes for itself is to be no burden to those who are measured
    dice, outcome, until = random.Random(f"{kind} {seed}"), Outcome(), time.monotonic() + seconds
    while not outcome.inputs or time.monotonic() < until:
        asyncio.run(OVER_THE_WIRE[kind](target, dice, num, outcome))
    return outcome


def in_other_process(call: Callable[..., Outcome], *arguments: Any) -> Outcome:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def row_of(kind: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": kind,
        "inputs": outcome.inputs,
        "held": outcome.held,
        "is_held": outcome.held == outcome.inputs,
        "worst_health_ms": None,
        "broken": outcome.broken[:5],
    }


def show(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


class Meter:
    """In a process of its own: a caller with a key, one request after the other, and `/health` every 50 ms."""

    def __init__(self, port: int, key: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_measure, args=(theirs, port, key), daemon=True)

    def __enter__(self) -> "Meter":
        self._process.start()
        self.measure_for(1.0)  # its first requests open what later ones find
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.close()
        self._process.join(10)
        self._process.kill()

    def start(self) -> None:
        self._mine.send(True)

    def stop(self) -> dict[str, Any]:
        self._mine.send(False)
        seen: dict[str, Any] = self._mine.recv()
        return seen

    def measure_for(self, seconds: float) -> dict[str, Any]:
        self.start()
        time.sleep(seconds)
        return self.stop()


def _measure(orders: Connection, port: int, key: str) -> None:
    target = Target(port, key, "127.0.0.1")

    async def measure() -> dict[str, Any]:
        seen: dict[str, Any] = {"seconds": [], "health": [], "failures": []}
        is_over = False

        async def ask() -> None:
            while not is_over:
                reply = await send(target, post(target, chat(content="What is 3 + 4?", max_tokens=32)))
                if reply.status == 200:
                    seen["seconds"].append(reply.seconds)
                else:
                    seen["failures"].append(str(reply))
                await asyncio.sleep(PAUSE_S)

        async def look() -> None:
            while not is_over:
                reply = await send(target, head(target, "GET /health"))
                seen["health"].append(reply.seconds)
                if reply.status != 200:
                    seen["failures"].append(f"/health: {reply}")
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(ask()), asyncio.create_task(look())]
        await asyncio.to_thread(orders.recv)
        is_over = True
        await asyncio.gather(*tasks)
        return seen

    while True:
        try:
            orders.recv()
        except EOFError:
            return
        orders.send(asyncio.run(measure()))


async def check_others_are_stopped(port: int, outcome: Outcome) -> None:
    """After one key's votes against it, the certificate still holds for another key."""
    honest = Target(port, HONEST)
    for number in range(1, 21):
        reply = await send(honest, post(honest, chat("target", f"question {number}", max_tokens=400)))
        try:
            told = reply.value["choices"][0]["reasonrt"]["details"]["stopping"]
        except (TypeError, KeyError):
            told = {"fallback": str(reply)}
        outcome.note("fallback" not in told, f"question {number} of another key: {told}")


@contextmanager
def watched_memory(server: Server) -> Iterator[dict[str, float]]:
    """By how many MiB the server's processes have grown at most, looked at every 100 ms."""

    def resident() -> float:
        total = 0.0
        for process in processes_of(server):
            try:
                total += process.memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                continue
        return total

    seen, is_over, before = {"grown_mib": 0.0}, threading.Event(), resident()

    def watch() -> None:
        while not is_over.wait(0.1):
            seen["grown_mib"] = max(seen["grown_mib"], resident() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        is_over.set()
        watching.join()


def processes_of(server: Server) -> list[psutil.Process]:
    whole = psutil.Process(server.process.pid)
    return [whole, *whole.children(recursive=True)]


def control_tokens_of_zoo() -> list[str]:
    from reasonrt.config import model_folder

    added = json.loads((model_folder("zoo:nano-draft") / "tokenizer.json").read_text())["added_tokens"]
    return [token["content"] for token in added if token["special"]]


@contextmanager
def hostile_server(folder: Path, is_zoo: bool, *, has_keys: bool = True) -> Iterator[Server]:
    """A server with a thousand descriptors, on the models that ship, or on scripted engines and a failing upstream."""
    folder.mkdir()
    port, log = free_port(), folder / "server.log"
    keys = {"honest": HONEST, "hostile": HOSTILE} if has_keys else {}
    engines = {role: {"model": f"zoo:nano-{role}"} for role in ("draft", "target")}
    config = config_file(folder, engines, api_keys=keys, evidence_folder=str(folder), port=port)
    ours = ["-c", "from reasonrt.cli.main import main; main()", "serve", "--local", "--config", str(config)]
    started = ours if is_zoo else [str(Path(__file__).resolve()), "--serve", str(config)]
    limited = ["prlimit", f"--nofile={DESCRIPTORS}", sys.executable, *started]
    with running(limited, port, "/health", log) as server:
        wait_until_ready(Target(port, HONEST if has_keys else ""), server, log)
        yield server


def wait_until_ready(target: Target, server: Server, log: Path) -> None:
    give_up = time.monotonic() + 240
    while asyncio.run(send(target, head(target, "GET /ready"))).status != 200:
        if time.monotonic() > give_up or server.process.poll() is not None:
            raise SystemExit(f"the server did not become ready; the end of its log:\n{tail(log)}")
        time.sleep(0.2)


def _serve(config: Path) -> None:
    """The scripted server: `target` is stopped under a certificate, `away` is an upstream that fails."""
    from reasonrt import Runtime
    from reasonrt.calibration import certify, upper_threshold_rules
    from reasonrt.config import load_config, model_folder
    from reasonrt.engines.remote import RemoteEngine
    from reasonrt.engines.scripted import ScriptedEngine
    from reasonrt.evals.tasks import TaskProblem
    from reasonrt.evals.trace_recording import TraceSettings, record_traces
    from reasonrt.policies.stopping.schedule import Schedule
    from reasonrt.policies.stopping.signals import Agreement
    from reasonrt.serve.backends.local import Worker
    from reasonrt.serve.config import load_serve_config
    from reasonrt.serve.logs import log_as_json
    from reasonrt.serve.server import serve

    serving = load_serve_config(load_config(config).serve, {})
    target = ScriptedEngine("target", settling, seconds_per_token=0.0005)
    problems = [TaskProblem(f"p{number}", f"question {number}", "7") for number in range(150)]
    schedule = Schedule(first_tokens=16, block_tokens=16, growth=1.0, answer_tokens=8)
    recording = record_traces(
        Runtime({"target": ScriptedEngine("target", settling)}),
        problems,
        TraceSettings(schedule=schedule),
        config.parent / "traces",
    )
    rules = upper_threshold_rules(Agreement(), [5, 4, 3])
    certificate = certify(asyncio.run(recording), rules, risk="lost_correct", alpha=0.1, delta=0.1)
    certificate.write(config.parent / "certificate.json")
    upstream = free_port()
    multiprocessing.get_context("spawn").Process(target=_upstream, args=(upstream,), daemon=True).start()
    while asyncio.run(send(Target(upstream), head(Target(upstream)))).status != 200:
        time.sleep(0.1)
    script = MortalScript()
    script.engine = ScriptedEngine("draft", script, seconds_per_token=0.001)
    engines: dict[str, Any] = {"target": target, "draft": script.engine}
    engines["away"] = RemoteEngine(
        "away",
        f"http://user:SECRET@127.0.0.1:{upstream}/v1",
        "far",
        tokenizer=model_folder("zoo:nano-draft"),
        api_key="SECRET",
        timeout_s=2,
    )
    stopping = {"certificate": str(config.parent / "certificate.json"), "shadow": 1}
    log_as_json("INFO")

    def tell(*_: object) -> None:
        (config.parent / "tasks.json").write_text(json.dumps({"tasks": len(asyncio.all_tasks())}))

    signal.signal(signal.SIGUSR1, tell)
    serve(Worker(Runtime(engines, {"target": {"stopping": stopping}})), serving, print)


def _upstream(port: int) -> None:
    """A server of completions that answers once, and fails from then on."""
    num_asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        status, body = "200 OK", dict[str, Any]()
        start = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "/completions" not in start:
            body = {"data": [{"id": "far"}]}
        elif num_asked == 0:
            body = {"choices": [{"text": " 2", "index": 0, "finish_reason": "length"}]}
            num_asked += 1
        else:
            status, body = "500 Oops", {"error": {"message": f"upstream says: no, at http://127.0.0.1:{port}"}}
            num_asked += 1
        content = json.dumps(body).encode()
        if num_asked % 3 != 2:  # else it hangs up without a word
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n".encode())
            writer.write(content)
            await writer.drain()
        writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(listen())


def openapi(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests that schemathesis makes up from `/openapi.json`, where the options of every policy stand."""
    outcome, answers = Outcome(), dict[str, int]()
    with hostile_server(folder / "openapi", is_zoo=False) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {HOSTILE}", "--checks", "not_a_server_error"]
        command += ["--max-examples", str(options.examples), "--request-timeout", "10", "--continue-on-failure"]
        command += ["--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing"]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": python_path()}
        seed = options.seed
        first = answers_of(server)
        while sum(answers.values()) < options.requests:
            done = subprocess.run(
                [*command, "--seed", str(seed)], cwd=folder, env=environment, capture_output=True, text=True
            )
            answers = {status: num - first.get(status, 0) for status, num in answers_of(server).items()}
            print(f"seed {seed}: {answers}", flush=True)
            seed += 1
            if done.returncode:
                outcome.note(False, done.stdout[-2000:])
                break
        outcome.note(server.process.poll() is None, "the server has ended")
    outcome.inputs += sum(answers.values())
    failed = {status: num for status, num in answers.items() if num and status.startswith("5")}
    outcome.broken += [f"{num} answers with status {status}" for status, num in failed.items()]
    row = row_of("openapi", outcome) | {"answers": answers}
    show(row)
    return [row]


def python_path() -> str:
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def answers_of(server: Server) -> dict[str, int]:
    """The server's answers so far, by status."""
    target = Target(server.port, HONEST)
    told = asyncio.run(send(target, head(target, "GET /metrics"))).body.decode()
    found = re.findall(r'reasonrt_http_responses_total{status="(\w+)"} (\d+)', told)
    return {status: int(num) for status, num in found}


def leaks(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests of every kind, and what the server's processes hold after each tenth; then its end by SIGKILL."""
    outcome, samples = Outcome(), list[dict[str, Any]]()
    with hostile_server(folder / "leaks", is_zoo=False) as server:
        for _ in range(10):
            asyncio.run(mixed(Target(server.port, HOSTILE), random.Random(len(samples)), options.many // 10, outcome))
            time.sleep(1)
            samples.append(held_by(server, folder / "leaks"))
            print(json.dumps(samples[-1]), flush=True)
    warm, last = samples[1], samples[-1]
    for name, most in MOST_MORE.items():
        more = last[name] - warm[name]
        outcome.note(
            more <= most, f"{name}: {warm[name]} after a fifth of the requests, {last[name]} after all of them"
        )
    rows = [row_of("leaks", outcome) | {"samples": samples}]
    show(rows[0])
    if not options.scripted:
        rows.append(killed(folder / "killed"))
        show(rows[1])
    return rows


MOST_MORE = {"mib": 8.0, "files": 3, "threads": 2, "tasks": 3, "shared": 0, "processes": 0}
"""What may be more after all requests than after a fifth: allocators and pools of threads breathe."""


def held_by(server: Server, folder: Path) -> dict[str, Any]:
    processes = processes_of(server)
    told = folder / "tasks.json"
    told.unlink(missing_ok=True)
    asked = next(process for process in processes if "--serve" in process.cmdline())
    asked.send_signal(signal.SIGUSR1)
    give_up = time.monotonic() + 10
    while not told.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    return {
        "mib": round(sum(process.memory_info().rss for process in processes) / 2**20, 1),
        "files": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "tasks": json.loads(told.read_text())["tasks"],
        "shared": len(shared_by(processes)),
        "processes": len(processes),
    }


def shared_by(processes: list[psutil.Process]) -> set[str]:
    """Files of shared memory that they have mapped."""
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in processes)
    return set(re.findall(rf"{SHARED}/\S+", maps))


def killed(folder: Path) -> dict[str, Any]:
    """SIGKILL of a server on real engines: no process and no shared memory of it is left after 15 s."""
    outcome = Outcome()
    try:
        with hostile_server(folder, is_zoo=True) as server:
            processes = processes_of(server)
            shared = shared_by(processes)
            asyncio.run(mixed(Target(server.port, HOSTILE), random.Random(1), 40, Outcome()))
            server.process.kill()
            _, alive = psutil.wait_procs(processes, 15)
    except SystemExit:  # that it ended is what was wanted
        pass
    outcome.note(len(processes) > 1, "there were no engines")
    outcome.note(not alive, f"alive after 15 s: {[process.name() for process in alive]}")
    left = sorted(filter(os.path.exists, shared))
    outcome.note(not left, f"shared memory that is left: {left}")
    for process in alive:
        process.kill()
    return row_of("killed", outcome)


PARTS = {"kinds": attack_all, "openapi": openapi, "leaks": leaks}

if __name__ == "__main__":
    main()
