"""A fingerprint changes with whatever changes what the model says."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonrt.engines.fingerprint import model_fingerprint
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.vllm import VllmEngine

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    for part in (1, 2):
        (folder / f"model-{part}.safetensors").write_bytes(bytes([part]) * (3 * MIB))
    return folder


def overwrite(file: Path, offset: int) -> None:
    with file.open("r+b") as content:
        content.seek(offset)
        content.write(b"x")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text('{"hidden_size": 9}'),
        lambda folder: overwrite(folder / "model-1.safetensors", 0),
        lambda folder: overwrite(folder / "model-2.safetensors", 3 * MIB - 1),
        lambda folder: os.truncate(folder / "model-2.safetensors", 2 * MIB),
        lambda folder: (folder / "model-2.safetensors").unlink(),
        lambda folder: (folder / "model-2.safetensors").rename(folder / "model-3.safetensors"),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
        lambda folder: (folder / "chat_template.jinja").write_text("assistant:"),
    ],
)
def test_it_knows_configuration_weights_and_tokenizer(folder: Path, change: Callable[[Path], None]) -> None:
    before = VllmEngine("a", folder).fingerprint

    change(folder)

    assert VllmEngine("a", folder).fingerprint != before


def test_it_knows_neither_the_place_nor_the_name(folder: Path, tmp_path: Path) -> None:
    before = VllmEngine("a", folder).fingerprint
    (folder / "README.md").write_text("about")

    assert VllmEngine("b", shutil.copytree(folder, tmp_path / "copy")).fingerprint == before


def test_a_model_may_say_whose_function_it_has(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 16, "function_of": "another"}))

    assert model_fingerprint(folder, "any") == "another"


def test_a_served_model_is_known_by_its_name_and_tokenizer(tokenizer_folder: Path, nano_draft: Path) -> None:
    def engine(name: str, host: str, model: str, tokenizer: Path) -> str:
        return RemoteEngine(name, f"http://{host}/v1", model, tokenizer=tokenizer).fingerprint

    one = engine("a", "here", "m", tokenizer_folder)
    assert engine("b", "there", "m", tokenizer_folder) == one
    assert engine("a", "here", "n", tokenizer_folder) != one
    assert engine("a", "here", "m", nano_draft) != one


def test_a_script_has_the_one_that_it_is_given() -> None:
    assert ScriptedEngine("fake", "").fingerprint == "fake"
    assert ScriptedEngine("fake", "", fingerprint="model").fingerprint == "model"
