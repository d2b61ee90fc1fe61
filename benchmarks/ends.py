"""How a server ends: SIGTERM, SIGHUP, SIGINT and SIGKILL at random moments of its life, and what is left of it.

    python benchmarks/ends.py --json ends.json --times 20       # as one process and on Ray; --on local, --on ray

Half of the signals come while it starts, half under load. A signal that asks it to end must let every stream that
runs come to its end and give exit code 0; after any signal no process, socket or shared memory may be left.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from load import Answer, Server, ask, bodies, config_file, free_port

SIGNALS = ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"]
COMMAND = [sys.executable, "-c", "from reasonrt.cli.main import main; main()", "serve"]
LEFT_S = 15.0  # after its end, for what is to be gone
START_S = 240.0
KEPT = ("torchinductor_", "ray_current_cluster", "session_latest")  # caches, and what only points somewhere


@dataclass
class End:
    """One server, and how it ended; `left` is what there still was after `LEFT_S`."""

    on: str
    signal: str
    while_starting: bool
    after_s: float = 0.0
    ended_s: float = 0.0
    exit_code: int | None = None
    streams: int = 0
    broken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        is_asked = self.signal != "SIGKILL"
        return not self.left and (not is_asked or (self.exit_code == 0 and not self.broken))


def main() -> None:
    options = _options()
    ends: list[End] = []
    with tempfile.TemporaryDirectory() as compiled:  # torch's, for all starts: some of them are killed as they write it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        for turn in range(options.times):
            for on in options.on:
                for index, name in enumerate(options.signals):
                    dice = random.Random(f"{options.seed} {turn} {on} {name}")
                    ends.append(asyncio.run(one_end(End(on, name, (turn + index) % 2 == 0), dice, options)))
                    print(json.dumps(asdict(ends[-1])), flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(summary(ends), indent=2) + "\n")


def summary(ends: list[End]) -> dict[str, Any]:
    rows = []
    for on, name in sorted({(end.on, end.signal) for end in ends}):
        found = [end for end in ends if (end.on, end.signal) == (on, name)]
        rows.append(
            {
                "on": on,
                "signal": name,
                "ends": len(found),
                "good": sum(end.is_good for end in found),
                "streams": sum(end.streams for end in found),
                "broken": sum(len(end.broken) for end in found),
                "longest_start_end_s": max((end.ended_s for end in found if end.while_starting), default=None),
                "longest_end_s": max((end.ended_s for end in found if not end.while_starting), default=None),
            }
        )
    return {"rows": rows, "ends": [asdict(end) for end in ends]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there, after each end")
    parser.add_argument("--on", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS)
    parser.add_argument("--times", type=int, default=20, help="of each signal")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="target")
    return parser.parse_args()


async def one_end(end: End, dice: random.Random, options: argparse.Namespace) -> End:
    with tempfile.TemporaryDirectory(prefix="e") as folder, _serving(Path(folder), end.on, options) as (server, family):
        running: list[asyncio.Task[Answer]] = []
        if end.while_starting:
            end.after_s = dice.uniform(0, 20)
            await asyncio.sleep(end.after_s)
        else:
            await _until(server.is_ready, START_S)
            asked = bodies(options.streams, options.policy, stream=True)
            running = [asyncio.create_task(ask(server.port, body)) for body in asked]
            await _until(lambda: _num_running(server) > 0, START_S)  # what has not come in yet is refused, not cut
            end.after_s = dice.uniform(0.1, 0.6)
            await asyncio.sleep(end.after_s)
        runs = [task for task in running if not task.done()]
        family.look()
        segments = family.segments()
        began = time.monotonic()
        server.process.send_signal(signal.Signals[end.signal])
        answers = await asyncio.gather(*runs)
        await _until(lambda: family.look() and server.process.poll() is not None, 90)
        end.ended_s, end.exit_code = time.monotonic() - began, server.process.poll()
        answers = [answer for answer in answers if answer.status != 503]
        end.streams = len(answers)
        end.broken = [answer.error or str(answer.status) for answer in answers if answer.error or answer.status != 200]
        with contextlib.suppress(TimeoutError):
            await _until(lambda: not left(family, segments, Path(folder)), LEFT_S)
        end.left = left(family, segments, Path(folder))
    return end


class Family:
    """All processes that were ever seen below one."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: set[psutil.Process] = set()

    def look(self) -> bool:
        """See who is there; always true."""
        with contextlib.suppress(psutil.Error):
            self._seen |= set(self._root.children(recursive=True))
        return True

    def alive(self) -> list[psutil.Process]:
        return [process for process in self._seen if _is_alive(process)]

    def segments(self) -> set[str]:
        """Files of shared memory that any of them has mapped."""
        found = set()
        for process in [self._root, *self._seen]:
            with contextlib.suppress(psutil.Error, OSError):
                found |= {each.path for each in process.memory_maps() if each.path.startswith("/dev/shm/")}  # noqa: S108
        return found


def left(family: Family, segments: set[str], folder: Path) -> list[str]:
    found = []
    for process in family.alive():
        with contextlib.suppress(psutil.Error):
            found.append(f"process {process.pid}: {' '.join(process.cmdline())[:80]}")
    found += [f"shared memory {name}" for name in sorted(segments) if Path(name).exists()]
    temporary = folder / "tmp"
    found += [
        f"file {path.relative_to(temporary)}"
        for path in sorted(temporary.rglob("*"))
        if not path.is_dir() and not any(part.startswith(KEPT) for part in path.relative_to(temporary).parts)
    ]
    return found


@contextlib.contextmanager
def _serving(folder: Path, on: str, options: argparse.Namespace) -> Iterator[tuple[Server, Family]]:
    replicas = {"num_cpus": 0.5, "cluster": "local"}
    config = config_file(folder, {options.policy: {"model": f"zoo:nano-{options.policy}"}}, replicas=replicas)
    (folder / "tmp").mkdir()
    port = free_port()
    command = [*COMMAND, "--config", str(config), "--port", str(port), *(["--local"] if on == "local" else [])]
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(folder / "tmp")},
            start_new_session=True,
        )
    family = Family(process.pid)
    try:
        if process.stdout is None or not process.stdout.readline():  # it says where it listens
            raise SystemExit(f"the server did not start:\n{log.read_text()[-4000:]}")
        yield Server(f"http://127.0.0.1:{port}", process), family
    finally:
        process.kill()
        for each in family.alive():
            with contextlib.suppress(psutil.Error):
                each.kill()


async def _until(holds: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        if time.monotonic() > give_up:
            raise TimeoutError
        await asyncio.sleep(0.1)


def _num_running(server: Server) -> float:
    lines = httpx.get(server.url + "/metrics", timeout=10).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("reasonrt_running "))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
