"""How engines of vLLM share this process while they start."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.engines import vllm
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings, importing_vllm
from reasonrt.engines.vllm_start import Leads, starting


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), max_size=12), st.data())
def test_first_threads_are_spread_over_the_cores_of_engines(engines: list[list[int]], data: st.DataObject) -> None:
    leads = Leads()
    running: list[list[int]] = []
    for cores in engines:
        numbers = {core: sum(other[0] == core for other in running) for core in cores}
        taken = leads.take(cores)
        assert sorted(taken) == sorted(cores)
        assert numbers[taken[0]] == min(numbers.values())
        running.append(taken)
        if data.draw(st.booleans()):
            leads.give_back(running.pop()[0])


def test_one_thread_at_a_time_imports_vllm() -> None:
    """A parser of tools that was imported while another engine imported vLLM was found broken, and tools were lost."""
    events: list[str] = []

    def import_it() -> None:
        with importing_vllm():
            events.append("in")

    other = threading.Thread(target=import_it)
    with importing_vllm():
        other.start()
        other.join(0.2)
        events.append("out")
    other.join(5)

    assert events == ["out", "in"]


@pytest.mark.vllm
@pytest.mark.parametrize("is_beside_others", [True, False])
def test_the_environment_is_this_starts_until_its_processes_have_begun(is_beside_others: bool) -> None:
    from vllm.v1.engine import utils

    begun: list[str | None] = []

    def start_another() -> None:
        with starting({}, True, lambda: None):
            pass

    other = threading.Thread(target=start_another)
    with starting({"REASONRT_TEST": "1"}, is_beside_others, lambda: begun.append(os.environ.get("REASONRT_TEST"))):
        assert os.environ["REASONRT_TEST"] == "1"
        with pytest.raises(AttributeError):  # vLLM begins to wait for processes, of which it is told nothing here
            utils.wait_for_engine_startup(None, [], None, False, None, None)
        assert ("REASONRT_TEST" in os.environ) is not is_beside_others
        other.start()
        other.join(5 if is_beside_others else 0.2)
        assert other.is_alive() is not is_beside_others
    other.join(5)

    assert not other.is_alive()
    assert begun == ["1"]
    assert "REASONRT_TEST" not in os.environ


@pytest.mark.vllm
async def test_engines_on_cpus_start_side_by_side(nano_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    note = VllmEngine._note_begun

    def noted(engine: VllmEngine) -> None:
        note(engine)
        events.append("begun")

    monkeypatch.setattr(VllmEngine, "_note_begun", noted)
    monkeypatch.setattr(vllm, "_leads", Leads())
    engines = [VllmEngine(f"e{n}", nano_draft, VllmSettings(max_model_len=256)) for n in range(2)]
    before = dict(os.environ)
    try:
        for start in asyncio.as_completed([engine.start() for engine in engines]):
            await start
            events.append("started")
        assert events == ["begun", "begun", "started", "started"]
        assert len({engine._cores[0] for engine in engines}) == min(2, len(os.sched_getaffinity(0)))
        assert {name: os.environ.get(name) for name in before} == before
    finally:
        await asyncio.gather(*(engine.aclose() for engine in engines))
