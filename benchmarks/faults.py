"""What happens when parts die or hang: requests under SIGKILL and SIGSTOP, callers that leave, memory of processes.

    python benchmarks/faults.py --json faults.json              # two replicas on Ray; --local for one process

The same requests run twice without faults first: where greedy text depends on what else is in the batch, the two
differ by themselves, and that is counted by itself.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from load import Answer, Server, ask, ask_all, bodies, config_file, free_port, our_server

REPLICA, CORE, ENGINE = "ServeReplica", "EngineCore", "VLLM::"
LOOK_S = 0.05


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        roles = [options.policy] if options.policy in ("draft", "target") else ["draft", "target"]
        engines = {role: {"model": f"zoo:nano-{role}"} for role in roles}
        replicas = {"min_replicas": options.replicas, "max_replicas": options.replicas}
        replicas |= {"num_cpus": 0.5, "cluster": "local"}
        bounds = {"running": 64, "queued": 512, "queue_s": 300, "engine_silence_s": options.silence_s}
        config = config_file(Path(folder), engines, bounds=bounds, replicas=replicas)
        with our_server(config, free_port(), Path(folder) / "server.log", is_local=options.local) as server:
            result: dict[str, Any] = {"local": options.local, "replicas": 1 if options.local else options.replicas}
            for name in options.parts:
                result[name] = asyncio.run(PARTS[name](server, options))
                print(json.dumps({name: result[name]}, indent=2), flush=True)
                if options.json:  # after each part: together they take many minutes
                    options.json.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--local", action="store_true", help="without Ray: only engine cores are killed")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--policy", default="target")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--hangs", type=int, default=3, help="engine cores that are stopped")
    parser.add_argument("--silence-s", type=float, default=20.0, help="after which an engine counts as one that hangs")
    parser.add_argument("--after-s", type=float, default=0.7, help="when a part dies, in its share of the requests")
    parser.add_argument("--leavers", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000, help="requests, in the memory part")
    return parser.parse_args()


async def deaths(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """All requests three times: twice in peace, once while parts are killed and stopped."""
    plain = bodies(options.requests, options.policy, stream=False)
    asked = [body | {"stream": index % 2 == 0} for index, body in enumerate(plain)]
    peace = [await ask_all(server.port, asked, options.concurrency) for _ in range(2)]
    began = time.perf_counter()
    war: list[Answer] = []
    faults = []
    signs = [signal.SIGKILL] * options.kills + [signal.SIGSTOP] * options.hangs
    for index, sign in enumerate(signs):  # each fault in the middle of its share of the requests
        share = asked[len(war) : round(len(asked) * (index + 1) / len(signs))]
        running = asyncio.create_task(ask_all(server.port, share, options.concurrency))
        await asyncio.sleep(options.after_s)
        faults.append(await strike(server, running, index, sign, options))
        war += await running
    unsteady = [i for i, (a, b) in enumerate(zip(*peace, strict=True)) if text(a) != text(b)]
    wrong = [i for i, (a, b) in enumerate(zip(peace[0], war, strict=True)) if text(a) != text(b) and i not in unsteady]
    return {
        "policy": options.policy,
        "requests": len(asked),
        "streaming": sum(body["stream"] for body in asked),
        "seconds": time.perf_counter() - began,
        "faults": faults,
        "lost": sum(bool(answer.error) or answer.status != 200 for answer in war),
        "errors": sorted({answer.error for answer in war if answer.error}),
        "steady_share_without_faults": 1 - len(unsteady) / len(asked),
        "other_text_than_without_faults": len(wrong),
        "repeated_or_retracted": sum(is_repeated(usual, answer) for *usual, answer in zip(*peace, war, strict=True)),
        "resumes": metric(server, "reasonrt_resumed_requests_total"),
        "restarts": metric(server, "reasonrt_restarts_total"),
    }


async def strike(
    server: Server, running: "asyncio.Task[Any]", index: int, sign: signal.Signals, options: argparse.Namespace
) -> dict[str, Any]:
    """Kill or stop one part while requests run, and wait until it is gone and as many parts live as before."""
    wanted = CORE if options.local or index % 2 == 0 or sign is signal.SIGSTOP else REPLICA
    before = whole(server)
    victim = random.Random(index).choice(parts(server, wanted))
    is_under_load = not running.done()
    os.kill(victim.pid, sign)
    began = time.perf_counter()
    answer = await ask(server.port, bodies(1, options.policy, stream=False)[0])
    answered_s = time.perf_counter() - began
    while victim in parts(server, wanted) or whole(server) != before:
        await asyncio.sleep(LOOK_S)
        if time.perf_counter() - began > 180:
            break
    return {
        "sent": sign.name,
        "to": wanted,
        "under_load": is_under_load,
        "next_answer_s": answered_s if not answer.error else None,
        "whole_again_s": time.perf_counter() - began,
    }


def whole(server: Server) -> tuple[float, ...]:
    """What there is of each part, and how many replicas are warm."""
    return (*(len(parts(server, kind)) for kind in (CORE, REPLICA)), metric(server, "reasonrt_replicas_ready"))


async def leavers(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Callers that hang up at random; afterwards no engine has work."""
    dice = random.Random(7)
    asked = [body | {"stream": dice.random() < 0.5} for body in bodies(options.leavers, options.policy, stream=False)]
    idle_share = await load_of(server)
    answers = await asyncio.gather(*(ask(server.port, body, dice.uniform(0, 1.5)) for body in asked))
    await asyncio.sleep(0.2)  # a step
    running = metric(server, "reasonrt_running") + metric(server, "reasonrt_queued")
    return {
        "callers": len(asked),
        "left": sum(answer.error == "left" for answer in answers),  # the others had their answer by then
        "running_after": running,
        "engine_cpu_share_idle": idle_share,
        "engine_cpu_share_after": await load_of(server),
    }


async def memory(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of all processes of the server, before and after many requests."""
    asked = bodies(200, options.policy, stream=True)
    await ask_all(server.port, asked, options.concurrency)
    before = resident_mib(server)
    for _ in range(0, options.many, len(asked)):
        await ask_all(server.port, asked, options.concurrency)
    after = resident_mib(server)
    grown = {name: round(after[name] - before.get(name, 0.0), 1) for name in after}
    return {"requests": options.many, "mib_before": sum(before.values()), "mib_grown": grown}


def parts(server: Server, kind: str) -> list[psutil.Process]:
    """The processes below the server's whose title holds `kind`."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if kind in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def load_of(server: Server, seconds: float = 1.0) -> float:
    """Cores that the engines use."""
    cores = parts(server, ENGINE)
    before = sum(sum(core.cpu_times()[:2]) for core in cores)
    await asyncio.sleep(seconds)
    return (sum(sum(core.cpu_times()[:2]) for core in cores) - before) / seconds


def resident_mib(server: Server) -> dict[str, float]:
    own = psutil.Process(server.process.pid)
    groups = {"gateway": [own], "replicas": parts(server, REPLICA), "engines": parts(server, ENGINE)}
    return {name: sum(process.memory_info().rss for process in group) / 2**20 for name, group in groups.items()}


def metric(server: Server, name: str) -> float:
    import httpx

    lines = httpx.get(server.url + "/metrics", timeout=10).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{")))


def text(answer: Answer) -> tuple[str, str]:
    return answer.reasoning, answer.content


def is_repeated(peaceful: list[Answer], answer: Answer) -> bool:
    """Whether some step of the answer stands in it more often than in any answer without faults."""
    said, usual = "\n\n".join(text(answer)), ["\n\n".join(text(each)) for each in peaceful]
    steps = [step for step in said.split("\n\n") if len(step) > 20]
    return any(said.count(step) > max(1, *(each.count(step) for each in usual)) for step in steps)


PARTS = {"deaths": deaths, "leavers": leavers, "memory": memory}

if __name__ == "__main__":
    main()
