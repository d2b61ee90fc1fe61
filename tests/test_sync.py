"""A runtime for code without `async`: in a script, inside a running loop, interrupted, and in the wrong loop."""

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, ReasonRTError, Request, Runtime, Step, SyncRuntime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError

TEXT = "One.\n\n\\boxed{7}"


def _runtime(script: Any = TEXT, **settings: Any) -> Runtime:
    return Runtime({"target": ScriptedEngine("target", script, **settings)})


def _ask(number: int) -> Request:
    return Request.ask(f"{number}?")


def test_results_come_in_the_order_of_the_requests() -> None:
    def reply(prompt: str, _: Any) -> str:
        return f"\\boxed{{{prompt.partition('?')[0].rpartition(' ')[2]}}}" + " padding" * (prompt.count("3") * 20)

    with SyncRuntime(_runtime(reply)) as runtime:
        solved = runtime.solve_all(map(_ask, range(6)))

    assert [result.answer for result in solved if isinstance(result, Completion)] == list("012345")


def test_steps_come_one_by_one_and_a_caller_may_leave() -> None:
    inner = _runtime(seconds_per_token=0.001)
    with SyncRuntime(inner) as runtime:
        for event in runtime.solve(_ask(1)):
            assert isinstance(event, Step)
            break
        events = list(runtime.solve(_ask(2)))

    assert [type(event).__name__ for event in events] == ["Step", "Step", "Completion"]
    engine = inner.engines["target"]
    assert isinstance(engine, ScriptedEngine)
    assert engine.running == 0


async def test_it_works_inside_a_running_loop() -> None:
    with SyncRuntime(_runtime()) as runtime:
        assert runtime.complete(_ask(1)).answer == "7"


def test_a_request_that_fails_costs_the_others_nothing() -> None:
    with SyncRuntime(_runtime()) as runtime:
        bad, good = runtime.solve_all([Request.ask("?", "draft"), _ask(1)])

    assert isinstance(bad, ReasonRTError)
    assert isinstance(good, Completion)


def test_a_progress_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with SyncRuntime(_runtime()) as runtime:
        runtime.solve_all([_ask(1), _ask(2)], has_bar=True)
        shown = capsys.readouterr()
        runtime.solve_all([_ask(1)])

    assert "2/2" in shown.err
    assert shown.out == ""
    assert capsys.readouterr().err == ""  # no terminal


def test_an_interrupt_ends_the_work_and_the_runtime_goes_on() -> None:
    inner = _runtime(TEXT * 50, seconds_per_token=0.05)
    engine = inner.engines["target"]
    assert isinstance(engine, ScriptedEngine)

    with SyncRuntime(inner) as runtime:
        main = threading.main_thread().ident
        assert main is not None
        thread = threading.Thread(target=_interrupt, args=(engine, main))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            runtime.complete(_ask(1))
        thread.join()

        assert engine.running == 0
        assert isinstance(next(iter(runtime.solve(_ask(2)))), Step)


def _interrupt(engine: ScriptedEngine, thread: int) -> None:
    while not engine.running:
        time.sleep(0.001)
    signal.pthread_kill(thread, signal.SIGINT)


def test_a_runtime_that_is_not_started_says_how() -> None:
    runtime = SyncRuntime(_runtime())
    with pytest.raises(EngineError, match="is not started; write `with Runtime"):
        runtime.complete(_ask(1))

    runtime.start().close()
    runtime.close()
    with pytest.raises(EngineError, match="is not started"):
        runtime.complete(_ask(1))


def test_what_fails_at_the_start_leaves_no_thread() -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> Any:
            raise EngineError("broken")

    before = threading.active_count()
    with pytest.raises(EngineError, match="broken"):
        SyncRuntime(Runtime({"target": Broken("target", TEXT)})).start()

    assert threading.active_count() == before


def test_engines_belong_to_the_event_loop_that_they_were_started_in() -> None:
    runtime = _runtime()

    _in_a_loop(runtime.__aenter__())
    with pytest.raises(EngineError, match=r"another event loop, .* use Runtime.sync\(\)"):
        _in_a_loop(runtime.complete(_ask(1)))
    with pytest.raises(EngineError, match="another event loop"):
        _in_a_loop(runtime.__aenter__())


def test_a_start_that_failed_can_be_tried_again() -> None:
    class Late(ScriptedEngine):
        is_there = False

        async def start(self) -> Any:
            if not self.is_there:
                self.is_there = True
                raise EngineError("not yet")
            return self

    runtime = Runtime({"target": Late("target", TEXT)})
    with pytest.raises(EngineError, match="not yet"):
        _in_a_loop(runtime.__aenter__())

    with SyncRuntime(runtime) as again:
        assert again.complete(_ask(1)).answer == "7"


def test_steps_that_nobody_takes_are_lost_with_the_runtime() -> None:
    with SyncRuntime(_runtime()) as runtime:
        steps = runtime.solve(_ask(1))
        next(steps)

    with pytest.raises(EngineError, match="it was closed"):
        next(steps)


def test_a_runtime_that_was_left_can_be_entered_in_another_loop() -> None:
    runtime = _runtime()

    async def whole() -> str | None:
        async with runtime:
            return (await runtime.complete(_ask(1))).answer

    assert [_in_a_loop(whole()) for _ in range(2)] == ["7", "7"]


def test_sync_reads_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("concurrency: 3\nengines: {}\n")

    with Runtime.sync(tmp_path / "x.yaml") as runtime:
        assert runtime.runtime.engines == {}


def _in_a_loop(work: Any) -> Any:
    """As `asyncio.run`, which would take the place of the loop that the tests share."""
    with asyncio.Runner() as runner:
        return runner.run(work)
