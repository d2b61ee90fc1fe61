"""What the endpoint costs: against the SDK in process, against vLLM's own server, and under overload.

    python benchmarks/serving.py --json serving.json            # on Ray; --local without
    python benchmarks/serving.py --local --parts checkout --checkout FOLDER   # against another state of reasonrt

Arms take turns within each round, since machines drift. Zoo models; all arms may use the same cores.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

from load import (
    Answer,
    Server,
    ask,
    ask_all,
    bodies,
    config_file,
    cores,
    free_port,
    our_server,
    percentile,
    require_no_error,
    running,
)

POLICY = "target"
OVERLOAD = 4
REJECT_S = 0.1


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = Path(folder)
        settings = {"cores": len(cores()), "engine_cores": options.cores, "local": options.local}
        rows: list[dict[str, Any]] = []

        def tell(row: dict[str, Any]) -> None:  # at once: all parts together take many minutes
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(settings | {"rows": rows}, indent=2) + "\n")

        engines = {"target": {"model": "zoo:nano-target", "max_num_seqs": 64, "cores": options.cores}}
        config = config_file(here, engines, bounds={"running": 64, "queued": 64}, replicas={"cluster": "local"})
        if "sdk" in options.parts or "vllm" in options.parts:
            ours = stack.enter_context(our_server(config, free_port(), here / "ours.log", is_local=options.local))
            if "sdk" in options.parts:
                sdk = stack.enter_context(sdk_process(config))
                for concurrency in options.concurrency:
                    tell(against_sdk(ours, sdk, concurrency, options))
            if "vllm" in options.parts:
                theirs = stack.enter_context(vllm_server(here, options.cores))
                for concurrency in options.concurrency:
                    tell(against_vllm(ours, theirs, concurrency, options))
            stack.close()
        if "checkout" in options.parts:
            checkouts = {"ours": Path(__file__).parents[1], "theirs": options.checkout}
            ours, theirs = (
                stack.enter_context(
                    our_server(config, free_port(), here / name, is_local=options.local, checkout=checkout.resolve())
                )
                for name, checkout in checkouts.items()
            )
            for concurrency in options.concurrency:
                tell(against_checkout(ours, theirs, concurrency, options))
            stack.close()
        if "overload" in options.parts:
            bounds = {"running": options.running, "queued": options.queued}
            config = config_file(here, engines, bounds=bounds, replicas={"cluster": "local"})
            with our_server(config, free_port(), here / "ours.log", is_local=options.local) as server:
                tell(asyncio.run(overload(server, options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--parts", nargs="+", default=["sdk", "vllm", "overload"])
    parser.add_argument("--checkout", type=Path, help="of the part checkout: a folder with another state of reasonrt")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--cores", default=",".join(map(str, cores())), help="that compute in the engine, of every arm")
    parser.add_argument("--requests", type=int, default=64, help="per arm and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--running", type=int, default=4, help="places, in the overload part")
    parser.add_argument("--queued", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="of overload")
    return parser.parse_args()


def against_sdk(server: Server, sdk: Any, concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same requests through the endpoint, as streams, and through `Runtime.solve`."""
    num = _num(concurrency, options)
    walls: dict[str, list[float]] = {"endpoint": [], "sdk": []}
    seen: dict[str, list[Answer]] = {"endpoint": [], "sdk": []}
    for index in range(options.rounds + 1):
        asked = bodies(num, POLICY, stream=True, seed=index)
        for arm in ("endpoint", "sdk") if index % 2 else ("sdk", "endpoint"):
            began = time.perf_counter()
            if arm == "endpoint":
                answers = asyncio.run(ask_all(server.port, asked, concurrency))
                wall = time.perf_counter() - began
            else:
                wall, answers = sdk(asked, concurrency)
            if index:  # the first round warms up
                walls[arm].append(wall)
                seen[arm] += answers
    require_no_error(seen["endpoint"])
    pairs = list(zip(seen["endpoint"], seen["sdk"], strict=True))
    same, same_steps = [a.tokens == b.tokens for a, b in pairs], [len(a.step_s) == len(b.step_s) for a, b in pairs]
    ratios = [a / b - 1 for a, b in zip(walls["endpoint"], walls["sdk"], strict=True)]
    steps = sum(len(answer.step_s) for answer in seen["endpoint"])
    extra_s = sum(walls["endpoint"]) - sum(walls["sdk"])
    return {
        "part": "sdk",
        "concurrency": concurrency,
        "requests": num * options.rounds,
        "same_tokens": sum(same) / len(same),
        "same_steps": sum(same_steps) / len(same_steps),
        "overhead_of_wall_time": statistics.median(ratios),
        "overhead_of_wall_time_total": sum(walls["endpoint"]) / sum(walls["sdk"]) - 1,
        "overhead_ms_per_request": 1000 * extra_s / (num * options.rounds),
        "overhead_ms_per_step": 1000 * extra_s / max(1, steps),
        **{f"{arm}_{name}": value for arm, answers in seen.items() for name, value in _latencies(answers).items()},
    }


def against_vllm(server: Server, theirs: Server, concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of the same requests, ours against vLLM's own server."""
    num = _num(concurrency, options)
    rates: dict[str, list[float]] = {"ours": [], "vllm": []}
    for index in range(options.rounds + 1):
        arms = {"ours": (server, POLICY), "vllm": (theirs, "nano-target")}
        for arm in sorted(arms, reverse=index % 2 == 0):
            asked_of, model = arms[arm]
            asked = [body | {"max_tokens": 768} for body in bodies(num, model, stream=False, seed=index)]
            began = time.perf_counter()
            answers = asyncio.run(ask_all(asked_of.port, asked, concurrency))
            require_no_error(answers)
            if index:
                rates[arm].append(sum(answer.tokens for answer in answers) / (time.perf_counter() - began))
    ratios = [a / b for a, b in zip(rates["ours"], rates["vllm"], strict=True)]
    return {
        "part": "vllm",
        "concurrency": concurrency,
        "requests": num * options.rounds,
        "throughput_ratio": statistics.median(ratios),
        "ours_tokens_per_s": statistics.median(rates["ours"]),
        "vllm_tokens_per_s": statistics.median(rates["vllm"]),
    }


def against_checkout(ours: Server, theirs: Server, concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same streams, from this state of reasonrt and from another."""
    num = _num(concurrency, options)
    walls: dict[str, list[float]] = {"ours": [], "theirs": []}
    seen: dict[str, list[Answer]] = {"ours": [], "theirs": []}
    for index in range(options.rounds + 1):
        asked = bodies(num, POLICY, stream=True, seed=index)
        for arm, server in sorted({"ours": ours, "theirs": theirs}.items(), reverse=index % 2 == 0):
            began = time.perf_counter()
            answers = asyncio.run(ask_all(server.port, asked, concurrency))
            require_no_error(answers)
            if index:
                walls[arm].append(time.perf_counter() - began)
                seen[arm] += answers
    ratios = [a / b for a, b in zip(walls["ours"], walls["theirs"], strict=True)]
    return {
        "part": "checkout",
        "concurrency": concurrency,
        "requests": num * options.rounds,
        "wall_time_ratio": statistics.median(ratios),
        "wall_time_ratios": ratios,
        **{f"{arm}_{name}": value for arm, answers in seen.items() for name, value in _latencies(answers).items()},
    }


async def overload(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Requests at four times the rate that the server can take; the time from the last one until it is as before."""
    asked = bodies(256, POLICY, stream=False)
    await ask_all(server.port, asked[:16], options.running)
    unloaded = await ask_all(server.port, asked[:64], 1)
    began = time.perf_counter()
    full = await ask_all(server.port, asked[:128], options.running)
    per_s = len(full) / (time.perf_counter() - began)
    burst: list[asyncio.Task[Answer]] = []
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < options.seconds:
        while len(burst) < passed * per_s * OVERLOAD:
            burst.append(asyncio.create_task(ask(server.port, asked[len(burst) % len(asked)])))
        await asyncio.sleep(0.002)
    ended = time.perf_counter()
    usual_s, recovery_s = percentile([answer.total_s for answer in unloaded], 0.95), None
    while recovery_s is None and time.perf_counter() - ended < 60:
        sent = time.perf_counter()
        probe = await ask(server.port, asked[0])
        is_usual = probe.status == 200 and probe.total_s <= 1.2 * usual_s
        if is_usual and await asyncio.to_thread(server.is_ready):
            recovery_s = sent - ended
        await asyncio.sleep(0.05)  # what still runs of the burst is not to be slowed down
    answers = await asyncio.gather(*burst)
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status in (429, 503)]
    return {
        "part": "overload",
        "running": options.running,
        "queued": options.queued,
        "capacity_per_s": per_s,
        "sent": len(answers),
        "served": len(served),
        "refused": len(refused),
        "otherwise": len(answers) - len(served) - len(refused),
        "unloaded_p95_s": usual_s,
        "full_p95_s": percentile([answer.total_s for answer in full], 0.95),
        "served_p95_s": percentile([answer.total_s for answer in served], 0.95),
        "served_p95_ratio": percentile([answer.total_s for answer in served], 0.95) / usual_s,
        "refused_p99_ms": 1000 * percentile([answer.total_s for answer in refused], 0.99),
        "refused_max_ms": 1000 * max((answer.total_s for answer in refused), default=0.0),
        "refused_within_100_ms": sum(answer.total_s <= REJECT_S for answer in refused) / max(1, len(refused)),
        "recovery_s": recovery_s,
    }


def _num(concurrency: int, options: argparse.Namespace) -> int:
    requests: int = options.requests
    return max(2 * concurrency, requests if concurrency > 1 else requests // 4)


def _latencies(answers: list[Answer]) -> dict[str, float]:
    first = [answer.step_s[0] for answer in answers if answer.step_s]
    between = [b - a for answer in answers for a, b in zip(answer.step_s, answer.step_s[1:], strict=False)]
    values = {"first_step_ms_p50": 1000 * percentile(first, 0.5), "first_step_ms_p95": 1000 * percentile(first, 0.95)}
    return values | {f"step_ms_p{round(100 * q)}": 1000 * percentile(between, q) for q in (0.5, 0.95, 0.99)}


@contextmanager
def vllm_server(folder: Path, engine_cores: str) -> Iterator[Server]:
    """vLLM's own server of the same model, on the same cores, in as many processes as our engines (ADR 21)."""
    import reasonrt.zoo
    from reasonrt.engines.vllm_settings import ONE_PROCESS, VllmSettings, cores_of, cpu_dtype, thread_environment

    port, model = free_port(), Path(reasonrt.zoo.__file__).parent / "models" / "nano-target"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "nano-target", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "64", "--enforce-eager"]
    command += ["--worker-extension-cls", "reasonrt.engines.vllm_worker.WorkerExtension"]  # for AMX, as ours has it
    command += ["--kv-cache-memory-bytes", str(256 << 20), "--dtype", cpu_dtype()]
    command += ["--distributed-executor-backend", ONE_PROCESS]
    environment = thread_environment(cores_of(VllmSettings(cores=engine_cores)))
    environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with running(command, port, "/health", folder / "vllm.log", None, **environment) as server:
        yield server


@contextmanager
def sdk_process(config: Path) -> Iterator[Any]:
    """A function (requests, concurrency) -> (seconds, answers) that runs them in a process with the SDK."""
    command = [sys.executable, str(Path(__file__)), "--sdk-in-process", str(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to, of = process.stdin, process.stdout
        if to is None or of is None or of.readline() != "ready\n":
            raise SystemExit("the process with the SDK did not start")

        def solve(asked: list[dict[str, Any]], concurrency: int) -> tuple[float, list[Answer]]:
            print(json.dumps([asked, concurrency]), file=to, flush=True)
            wall, rows = json.loads(of.readline())
            return wall, [Answer(200, steps, total_s, tokens=tokens) for steps, total_s, tokens in rows]

        yield solve
        to.close()


async def serve_sdk(config: str) -> None:
    """The other side of `sdk_process`."""
    from reasonrt import Completion, Limits, Request, Runtime
    from reasonrt.thinking import END_THINK, THINK

    async with Runtime.from_config(config) as runtime:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked, concurrency = json.loads(line)
            places = asyncio.Semaphore(concurrency)

            async def one(body: dict[str, Any], places: asyncio.Semaphore) -> tuple[list[float], float, int]:
                request = Request.ask(body["messages"][0]["content"], body["model"], limits=Limits(768))
                times: list[float] = []
                total_s, tokens = 0.0, 0
                async with places, aclosing(runtime.solve(request)) as events:
                    sent = time.perf_counter()
                    async for event in events:
                        total_s = time.perf_counter() - sent
                        if isinstance(event, Completion):
                            tokens = event.generated_tokens
                        elif event.text.strip() not in ("", THINK, END_THINK):  # the endpoint shows no others
                            times.append(total_s)
                return times, total_s, tokens

            began = time.perf_counter()
            rows = await asyncio.gather(*(one(body, places) for body in asked))
            print(json.dumps([time.perf_counter() - began, rows]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sdk-in-process"]:
        asyncio.run(serve_sdk(sys.argv[2]))
    else:
        main()
