"""An installed package with an engine, and that engine in a process of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from reasonrt.config import PluginConfig
from reasonrt.engines.build import build_engine
from reasonrt.ports import Engine

SETTINGS = {"seconds_per_token": 0.001, "max_model_len": 1024}


@pytest.fixture(scope="session")
def hosted_package() -> Iterator[None]:
    """`hosted/` is installed: its engine is the plug-in `scripted`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "hosted"))
        yield


@pytest.fixture(scope="session")
def scripted_engine(hosted_package: None) -> Engine:
    return build_engine("scripted", PluginConfig(kind="plugin", name="scripted", settings=SETTINGS))


@pytest.fixture(scope="session")
async def linked_engine(hosted_package: None) -> AsyncIterator[Engine]:
    config = PluginConfig(kind="plugin", name="scripted", own_process=True, settings=SETTINGS)
    engine = await build_engine("linked", config).start()
    yield engine
    await engine.aclose()
