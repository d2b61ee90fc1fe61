"""A batch asks nothing twice, whatever has ended it, and gives its results in the order of the requests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Limits, Request, Runtime, SyncRuntime, batch
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EvalError

_SCRIPT = """
import sys
from reasonrt import Runtime, SyncRuntime, batch
from reasonrt.engines.scripted import ScriptedEngine

if __name__ == "__main__":
    engine = ScriptedEngine("target", "One.\\n\\n\\\\boxed{7}", seconds_per_token=float(sys.argv[1]))
    with SyncRuntime(Runtime({"target": engine})) as runtime:
        results = batch("asked.jsonl", out="out", runtime=runtime, concurrency=2)
    print(len(results), engine.generated_tokens)
"""


def _engine(**settings: Any) -> ScriptedEngine:
    return ScriptedEngine("target", lambda prompt, _: f"\\boxed{{{len(prompt)}}}", **settings)


def _batch(requests: Any, folder: Path, engine: ScriptedEngine | None = None, **settings: Any) -> list[Any]:
    with SyncRuntime(Runtime({"target": engine or _engine()})) as runtime:
        return batch(requests, out=folder, runtime=runtime, **settings)


def test_lines_of_every_shape_are_asked(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How are you?"}]
    lines: list[Any] = [{"question": "a?"}, {"id": 7, "problem": "ab?"}, {"messages": said}]
    lines.append({"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": said}})
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))

    results = _batch(tmp_path / "asked.jsonl", tmp_path / "out")

    assert [result.id for result in results] == ["asked.jsonl/1", "7", "asked.jsonl/3", "x"]
    first, second, third, fourth = (int(result.answer) for result in results)
    assert second == first + 1
    assert third == fourth > second + 10


def test_what_is_there_is_not_asked_again_and_more_may_be_added(tmp_path: Path) -> None:
    first = _batch(["a", "b", "a"], tmp_path)
    engine = _engine()

    again = _batch(["b", "c", "a", "a", "a"], tmp_path, engine)

    assert {first[1].key, first[0].key, first[2].key} == {result.key for result in again[:1] + again[2:4]}
    assert [result.id for result in again] == ["0", "1", "2", "3", "4"]  # of this call
    assert engine.generated_tokens == 2 * (len("\\boxed{00}") + 1)  # c, and the third a


def test_nothing_is_started_where_nothing_is_left(tmp_path: Path) -> None:
    runtime = SyncRuntime(Runtime({"target": _engine()}))
    with runtime:
        whole = batch(["a"], out=tmp_path, runtime=runtime)

    assert batch(["a"], out=tmp_path, runtime=runtime) == whole


def test_a_request_that_cannot_be_solved_is_a_result(tmp_path: Path) -> None:
    engine = _engine(max_model_len=50)
    bad, good = _batch([Request.ask("x" * 100), Request.ask("a", limits=Limits(20))], tmp_path, engine)

    assert "the prompt has 120 tokens" in bad.error
    assert not bad.answer
    assert good.answer


def test_other_engines_and_limits_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    _batch(["a"], tmp_path)

    with pytest.raises(EvalError, match="give another --out"):
        _batch(["b"], tmp_path, _engine(fingerprint="another"))


@pytest.mark.parametrize("line", ['{"messages": []}', '{"messages": [{"role": "user"}]}', '{"answer": "7"}'])
def test_a_line_that_asks_nothing_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "asked.jsonl").write_text('{"question": "a"}\n' + line)

    with pytest.raises(EvalError, match="line 2 needs a question, or messages with role and content"):
        _batch(tmp_path / "asked.jsonl", tmp_path / "out")


def test_a_kill_costs_only_what_was_running(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"question": str(n)}) for n in range(40)))
    journal = tmp_path / "out" / "journal.jsonl"
    with subprocess.Popen([sys.executable, "script.py", "0.002"], cwd=tmp_path) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 7:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finished = journal.read_bytes().count(b"\n") - 2  # the run and its policy

    done = subprocess.run(
        [sys.executable, "script.py", "0"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )

    assert 5 <= finished < 40
    assert done.stdout.split() == ["40", str((40 - finished) * 15)]
