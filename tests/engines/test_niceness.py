"""An engine that gives way: every thread of its process, and of none other."""

import json
import os
import subprocess
import sys
import threading

import pytest

from reasonrt.engines.vllm_worker import WorkerExtension

PROGRAM = """
import os, threading
from reasonrt.engines.vllm_worker import WorkerExtension
stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(3)]
for thread in threads: thread.start()
WorkerExtension().give_way(7)
print(sorted(os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")))
stop.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_every_thread_gives_way() -> None:
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)

    assert set(json.loads(printed.stdout)) == {7}
    assert len(json.loads(printed.stdout)) >= 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_thread_that_ends_meanwhile_keeps_no_other_from_giving_way(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[int] = []

    def lower(which: int, thread: int, niceness: int) -> None:
        if thread == 1:
            raise ProcessLookupError(thread)
        lowered.append(thread)

    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    monkeypatch.setattr(os, "setpriority", lower)

    WorkerExtension().give_way(7)

    assert lowered == [2]


def test_without_niceness_nothing_changes() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    WorkerExtension().give_way(0)

    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
