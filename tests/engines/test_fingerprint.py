"""A fingerprint changes with whatever changes what the model says."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.engines.fingerprint import file_digest, model_fingerprint
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings, is_cpu_build, number_format

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    for part in (1, 2):
        (folder / f"model-{part}.safetensors").write_bytes(bytes([part]) * (3 * MIB))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached digests, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reasonrt" / "digests"


def age(folder: Path) -> None:
    """Make the files old enough to have their digests cached."""
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))


def overwrite(file: Path, offset: int) -> None:
    with file.open("r+b") as content:
        content.seek(offset)
        content.write(b"x")


def retrain_unseen(file: Path) -> None:
    """Change a byte, and leave the size and the time of change as they were."""
    before = file.stat()
    overwrite(file, MIB)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text('{"hidden_size": 9}'),
        lambda folder: overwrite(folder / "model-1.safetensors", 0),
        lambda folder: overwrite(folder / "model-1.safetensors", 3 * MIB // 2),
        lambda folder: overwrite(folder / "model-2.safetensors", 3 * MIB - 1),
        lambda folder: retrain_unseen(folder / "model-2.safetensors"),
        lambda folder: os.truncate(folder / "model-2.safetensors", 2 * MIB),
        lambda folder: (folder / "model-2.safetensors").unlink(),
        lambda folder: (folder / "model-2.safetensors").rename(folder / "model-3.safetensors"),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": 3}'),
        lambda folder: (folder / "chat_template.jinja").write_text("assistant:"),
    ],
)
def test_it_knows_configuration_weights_and_tokenizer(folder: Path, change: Callable[[Path], None]) -> None:
    age(folder)
    before = VllmEngine("a", folder)
    old = (before.fingerprint, before.model_fingerprint)

    change(folder)

    after = VllmEngine("a", folder)
    assert after.fingerprint != old[0]
    assert after.model_fingerprint != old[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3 * MIB), st.data())
def test_every_byte_of_the_weights_counts(size: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.json").write_text("{}")
        weights = folder / "model.safetensors"
        weights.write_bytes(bytes(size))
        before = model_fingerprint(folder, "t")

        overwrite(weights, data.draw(st.integers(0, size - 1)))

        assert model_fingerprint(folder, "t") != before


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


def test_digest_is_read_from_the_cache_while_the_file_has_not_changed(folder: Path, cache: Path) -> None:
    file = folder / "model-1.safetensors"
    age(folder)
    assert file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    (cached,) = cache.iterdir()
    assert cached.read_text() == file_digest(file)

    cached.write_text("ab" * 32)
    assert file_digest(file) == "ab" * 32

    overwrite(file, MIB)
    age(folder)
    assert file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["", "ab" * 31, "zz" * 32, "ab" * 33, b"\xff\xfe"])
def test_damaged_cache_is_ignored_and_mended(folder: Path, cache: Path, damage: str | bytes) -> None:
    file = folder / "model-1.safetensors"
    age(folder)
    right = file_digest(file)
    (cached,) = cache.iterdir()

    cached.write_bytes(damage if isinstance(damage, bytes) else damage.encode())

    assert file_digest(file) == right == cached.read_text()


def test_file_that_was_changed_just_now_is_not_cached(folder: Path, cache: Path) -> None:
    (folder / "model-1.safetensors").write_bytes(b"new")

    file_digest(folder / "model-1.safetensors")

    assert not cache.exists()


def test_cache_that_cannot_be_written_costs_only_time(folder: Path, cache: Path) -> None:
    age(folder)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")

    assert file_digest(folder / "model-1.safetensors") == file_digest(folder / "model-1.safetensors")


def test_processes_that_fill_the_cache_concurrently_agree(folder: Path, cache: Path) -> None:
    age(folder)
    code = (
        "import sys, pathlib; from reasonrt.engines.fingerprint import model_fingerprint; "
        "print(model_fingerprint(pathlib.Path(sys.argv[1]), 't'))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(4)]

    said = {process.communicate(timeout=60)[0].strip() for process in running}

    assert said == {model_fingerprint(folder, "t")}
    assert all(len(file.read_text()) == 64 for file in cache.iterdir())


def fingerprints(folder: Path, **changes: Any) -> tuple[str, str]:
    engine = VllmEngine("a", folder, VllmSettings(**changes))
    return engine.fingerprint, engine.model_fingerprint


NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"speculative": NGRAM}])
def test_settings_that_change_what_is_computed_change_the_fingerprint_and_not_the_models(
    folder: Path, changes: dict[str, Any]
) -> None:
    before, after = fingerprints(folder), fingerprints(folder, **changes)

    assert before[0] != after[0]
    assert before[1] == after[1]


def test_settings_of_speed_and_size_change_nothing(folder: Path) -> None:
    """Every field of the settings is one or the other: a new one must choose."""
    harmless = {
        "max_model_len": 99, "max_num_seqs": 3, "kv_cache_mib": 7, "gpu_share": 0.1, "block_size": 64, "cores": "0",
        "niceness": 5, "compile": True, "tensor_parallel": 2, "scores": True, "structured": True,
        "tool_parser": None,
    }  # fmt: skip
    computing = {"boundary", "dtype", "speculative"}
    assert {field.name for field in dataclasses.fields(VllmSettings)} == harmless.keys() | computing

    assert fingerprints(folder, **harmless) == fingerprints(folder)


def test_number_format_is_the_one_that_is_used(folder: Path) -> None:
    used = number_format(VllmSettings(), is_cpu_build())

    assert fingerprints(folder, dtype=used) == fingerprints(folder)
    other = "float32" if used == "bfloat16" else "bfloat16"
    assert fingerprints(folder, dtype=other) != fingerprints(folder)


def test_draft_model_of_the_speculation_counts_by_its_content(folder: Path, tmp_path: Path) -> None:
    def speculating(draft: Path, **more: Any) -> str:
        config = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 4} | more
        return fingerprints(folder, speculative=config)[0]

    draft = shutil.copytree(folder, tmp_path / "draft")
    before = speculating(draft)

    assert speculating(shutil.copytree(draft, tmp_path / "moved"), draft_tensor_parallel_size=2) == before
    overwrite(draft / "model-1.safetensors", MIB)
    assert speculating(draft) != before


def test_a_script_has_the_one_that_it_is_given() -> None:
    assert ScriptedEngine("fake", "").fingerprint == "fake"
    assert ScriptedEngine("fake", "", fingerprint="model").fingerprint == "model"
