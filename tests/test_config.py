"""Configuration: what is read, what is refused, and with which words."""

from pathlib import Path

import pytest

from reasonrt.config import Config, DiffusionConfig, VllmConfig, dump_config, load_config, model_folder
from reasonrt.engines.build import build_engine, build_engines
from reasonrt.errors import ConfigError


def _write(folder: Path, text: str) -> Path:
    file = folder / "reasonrt.yaml"
    file.write_text(text)
    return file


def test_without_a_file_the_zoo_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    config = load_config()

    models = {
        role: engine.model
        for role, engine in config.engines.items()
        if isinstance(engine, VllmConfig | DiffusionConfig)
    }
    assert models == {
        "draft": "zoo:nano-draft",
        "target": "zoo:nano-target",
        "router": "zoo:nano-router",
        "reward": "zoo:nano-reward",
        "diffusion": "zoo:nano-diffusion-rcd",
    }


def test_file_in_the_working_folder_is_found_and_changes_go_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "concurrency: 3\nlimits: {max_tokens: 99}\n")
    monkeypatch.chdir(tmp_path)

    config = load_config(changes={"concurrency": 5})

    assert (config.concurrency, config.limits.max_tokens) == (5, 99)


def test_dumped_config_reads_back_to_the_same(tmp_path: Path) -> None:
    config = Config(concurrency=7)

    assert load_config(_write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine: {}", "engine: extra inputs are not permitted"),
        ("limits: {max_tokens: -5}", "limits.max_tokens: input should be greater than or equal to 1, got -5"),
        ("concurrency: many", "concurrency: .* got 'many'"),
        ("engines: {target: {model: x, colour: red}}", r"engines.target.colour: extra inputs are not permitted"),
        ("engines: {target: {kind: cloud}}", "engines.target: .*'cloud'"),
        ("engines: [target]", "engines: .* got a list"),
        ("concurrency: 1\nconcurrency: 2", r"is not YAML: a key stands twice \(line 1, column 1\)"),
        ("engines: {target: {model: x, cores: all}}", "engines.target.cores: .*'all'"),
        ("- 1", "must hold keys and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(_write(tmp_path, text))

    assert "\n" not in str(caught.value)


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no\.yaml: No such file"):
        load_config(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("zoo:giant", "the zoo has no model 'zoo:giant'; it has "), ("/no/such", "no model folder /no/such")],
)
def test_missing_model_is_named(model: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        model_folder(model)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build_engine("target", VllmConfig(model=str(tmp_path)))


def test_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        build_engine("target", VllmConfig(model=str(tmp_path)))


def test_unknown_plugin_engine_is_refused(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, "engines: {target: {kind: plugin, name: quantum}}"))

    with pytest.raises(ConfigError, match="no installed package offers the engine 'quantum'"):
        build_engines(config)
