"""The draft and the target that ship, started side by side and one after the other (ADR 22).

    python benchmarks/starts.py --json starts.json

Starts both by turns, `--rounds` times each, after a start that is not counted, in which files are read for the first
time and this process imports vLLM. Of each: seconds of the start, and of the end.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from reasonrt import Runtime
from reasonrt.engines.vllm import VllmEngine

Row = dict[str, Any]
SIDE_BY_SIDE = {"side by side": True, "one after the other": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = asyncio.run(measure(options.rounds))
    for name in SIDE_BY_SIDE:
        starts, ends = ([row[key] for row in rows if row["way"] == name] for key in ("start_s", "end_s"))
        print(f"{name}: start {statistics.median(starts):.1f} s ({min(starts):.1f} to {max(starts):.1f}), end "
              f"{statistics.median(ends):.1f} s")  # fmt: skip
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def measure(rounds: int) -> list[Row]:
    await start_and_end("side by side")
    return [await start_and_end(name) for _ in range(rounds) for name in SIDE_BY_SIDE]


async def start_and_end(name: str) -> Row:
    VllmEngine.starts_beside_others = property(lambda engine: SIDE_BY_SIDE[name])  # type: ignore[method-assign, assignment]
    times = [time.perf_counter()]
    async with Runtime.from_config(None, roles=("draft", "target")):
        times.append(time.perf_counter())
    times.append(time.perf_counter())
    return {"way": name, "start_s": times[1] - times[0], "end_s": times[2] - times[1]}


if __name__ == "__main__":
    main()
