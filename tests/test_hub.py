"""A model of the Hugging Face hub is found in the local cache by its id; what is not there is one line."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from reasonrt.cli.serve import engines_of
from reasonrt.config import Config, model_folder
from reasonrt.errors import ConfigError

NAME = "somebody/nano-0.1"


@pytest.fixture
def cached(tmp_path: Path, nano_draft: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model in a cache of its own; nothing is fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--somebody--nano-0.1"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
    shutil.copytree(nano_draft, folder)
    return folder


def test_an_id_is_found_in_the_cache(cached: Path) -> None:
    assert model_folder(NAME) == cached


def test_a_folder_of_that_name_goes_first(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cached)
    (cached / NAME).mkdir(parents=True)

    assert model_folder(NAME) == Path(NAME)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_what_is_not_whole_is_not_taken(cached: Path, missing: str) -> None:
    (cached / missing).unlink()

    with pytest.raises(ConfigError, match=f"{NAME} is no folder, and not in the Hugging Face cache"):
        model_folder(NAME, may_fetch=False)


@pytest.mark.usefixtures("cached")
def test_what_cannot_be_fetched_is_one_line_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"cannot be fetched: .+; fetch it with `hf download no/model`") as error:
        model_folder("no/model")

    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="it is fetched when it is first used"):
        model_folder("no/model", may_fetch=False)


def test_what_is_no_id_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="there is no model folder a/b/c; give"):
        model_folder("a/b/c")


@pytest.mark.usefixtures("cached")
def test_models_are_served_by_name() -> None:
    both = Config.model_validate(engines_of("zoo:nano-target", NAME))

    assert [(role, engine.model) for role, engine in both.engines.items() if engine.kind == "vllm"] == [
        ("target", "zoo:nano-target"),
        ("draft", NAME),
    ]
    assert list(engines_of(NAME, None)["engines"]) == ["target"]
    assert engines_of(None, None) == {}
    with pytest.raises(ConfigError, match="write `reasonrt serve TARGET --draft d`"):
        engines_of(None, "d")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_model_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=f"{tmp_path} holds no model"):
        engines_of(str(tmp_path), None)
