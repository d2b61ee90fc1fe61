"""An installed package with an engine, and that engine in a process of its own; models that fill blocks."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from reasonrt.config import ZOO_FOLDER, PluginConfig
from reasonrt.diffusion.checkpoints import load_for_training, save_model
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.shape import ModelShape
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


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random model, by what its committed tokens attend to."""

    @cache
    def folder(context: str) -> Path:
        return write_random_model(tmp_path_factory.mktemp(context), context)

    return folder


@pytest.fixture(scope="session")
def speculating_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's draft model, which writes token by token, as one that is to draft blocks for itself."""
    folder = tmp_path_factory.mktemp("speculating")
    model = load_for_training(ZOO_FOLDER / "nano-draft", mask_token_id=0, block_length=8, is_residual=False)
    save_model(model, folder, torch.float32)
    _copy_tokenizer(folder)
    return folder


def write_random_model(folder: Path, context: str, max_positions: int = 2048) -> Path:
    """A model whose texts differ by prompt and end, since one token of 24 is an end token."""
    shape = ModelShape(
        hidden=32,
        layers=2,
        mlp=64,
        heads=2,
        kv_heads=1,
        head_dim=16,
        vocab_size=2048,
        tokens=2048,
        max_positions=max_positions,
        mask_token_id=0,
        block_length=8,
        context=context,
        is_tied=False,
        end_token_ids=(1, *range(10, 2048, 24)),
    )
    torch.manual_seed(1)
    model = DiffusionModel(shape)
    with torch.no_grad():
        model.embedding.weight.normal_()
        model.embedding.weight[0] = 0  # what stands at a masked position is up to its context
        model.head.weight.normal_(0, 0.5)
        for layer in model.layers:
            for part in (layer.qkv, layer.out, layer.gate_up, layer.down):
                part.weight.normal_(0, 0.5)
    save_model(model, folder, torch.float32)
    _copy_tokenizer(folder)
    return folder


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ZOO_FOLDER / "nano-target" / name, folder)
