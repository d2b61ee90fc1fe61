"""Inflation keeps the function: the same logits from a wider model, for any factor and number format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasonrt.config import VllmConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.fingerprint import model_fingerprint
from reasonrt.engines.inflate import inflate, inflated
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import ConfigError
from reasonrt.types import Message

QUESTION = "Solve the following multiplication: 23 * 73. Give only the result as your final answer."


def fingerprint(folder: Path) -> str:
    return model_fingerprint(folder, HFTokenizer(folder).fingerprint)


def load(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def prompt(folder: Path) -> torch.Tensor:
    return torch.tensor([HFTokenizer(folder).chat((Message("user", QUESTION),))])


def logits(folder: Path, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load(folder, dtype)(ids).logits.float()
    return found


@pytest.fixture
def qwen2(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """An untrained Qwen2: biases, no norms per head, its output matrix apart from the embedding."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=259,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.3)
    folder = tmp_path / "qwen2"
    model.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize(("model", "factor"), [("nano_draft", 3), ("nano_target", 2), ("qwen2", 5)])
def test_logits_agree(request: pytest.FixtureRequest, tmp_path: Path, model: str, factor: int) -> None:
    source = request.getfixturevalue(model)
    wide = tmp_path / "wide"
    inflate(source, wide, factor)
    ids = prompt(source)

    # the weights are exact, so all that is left is the order of sums, in float32
    torch.testing.assert_close(
        logits(wide, ids, torch.float32), logits(source, ids, torch.float32), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(("model", "factor"), [("nano_draft", 3), ("nano_target", 5)])
def test_in_bfloat16_logits_agree_as_well_as_bfloat16_does(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, factor: int
) -> None:
    source = request.getfixturevalue(model)
    wide = tmp_path / "wide"
    inflate(source, wide, factor)
    ids = prompt(source)

    narrow = logits(source, ids, torch.bfloat16)
    ours = (logits(wide, ids, torch.bfloat16) - narrow).abs()

    # sums in another order round to the neighbouring number now and then, which is what bfloat16 errs by anyway
    theirs = (narrow - logits(source, ids, torch.float32)).abs()
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= 2 * theirs.max()


def test_greedy_continuation_is_the_same(tmp_path: Path, nano_draft: Path) -> None:
    wide = tmp_path / "wide"
    inflate(nano_draft, wide, 2)
    ids = prompt(nano_draft)

    narrow_ids, wide_ids = [
        load(folder, torch.float32).generate(ids, max_new_tokens=48, do_sample=False) for folder in (nano_draft, wide)
    ]

    assert wide_ids.tolist() == narrow_ids.tolist()


def test_shapes_are_those_of_the_configuration_and_the_number_format_stays(tmp_path: Path, nano_target: Path) -> None:
    inflate(nano_target, tmp_path / "wide", 6)

    config = json.loads((tmp_path / "wide" / "config.json").read_bytes())
    tensors = load_file(tmp_path / "wide" / "model.safetensors")
    narrow = load_file(nano_target / "model.safetensors")
    assert (config["hidden_size"], config["num_attention_heads"], config["head_dim"]) == (1536, 24, 64)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (1536, config["intermediate_size"])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    # what the six copies add up to is the weight itself, to the last bit
    columns = tensors["model.layers.3.mlp.up_proj.weight"][:704].double().split(256, dim=1)
    assert torch.equal(sum(columns[1:], columns[0]), narrow["model.layers.3.mlp.up_proj.weight"].double())


def test_fingerprint_is_that_of_the_source(tmp_path: Path, nano_draft: Path) -> None:
    inflate(nano_draft, tmp_path / "wide", 2)
    inflate(tmp_path / "wide", tmp_path / "wider", 2)

    assert fingerprint(tmp_path / "wide") == fingerprint(tmp_path / "wider") == fingerprint(nano_draft)


@pytest.mark.parametrize("factor", [0, 1, -2, 65, 2.0, True, "2"])
def test_factors_that_mean_nothing_are_refused(tmp_path: Path, nano_draft: Path, factor: Any) -> None:
    with pytest.raises(ConfigError, match=r"whole number in \[2, 64\], got"):
        inflate(nano_draft, tmp_path / "wide", factor)

    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "holds LlamaForCausalLM; only Qwen2ForCausalLM and Qwen3"),
        ({"architectures": ["Qwen3ForCausalLM"], "quantization_config": {}}, "holds a quantized Qwen3ForCausalLM"),
        ({}, "holds none"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "holds no \\*.safetensors"),
    ],
)
def test_other_models_are_refused_in_one_line(
    tmp_path: Path, tokenizer_folder: Path, change: dict[str, Any], message: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tokenizer_folder, source)
    (source / "config.json").write_text(json.dumps(change))

    with pytest.raises(ConfigError, match=message) as caught:
        inflated(str(source), 2, tmp_path / "cache")

    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_made_once_and_found_again(tmp_path: Path, nano_draft: Path) -> None:
    first = inflated("zoo:nano-draft", 2, tmp_path / "cache")
    made = (first / "model.safetensors").stat().st_mtime_ns

    assert inflated(str(nano_draft), 2, tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert inflated("zoo:nano-draft", 3, tmp_path / "cache") != first
    assert sorted(path.name.split("-")[2] for path in (tmp_path / "cache").iterdir()) == ["x2", "x3"]


def test_once_is_the_model_itself(tmp_path: Path, nano_draft: Path) -> None:
    assert inflated("zoo:nano-draft", 1, tmp_path / "cache") == nano_draft
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(ConfigError, match=r"cannot write .*; set XDG_CACHE_HOME"):
        inflated("zoo:nano-draft", 2, tmp_path / "cache")


def test_configuration_inflates_into_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    engine = build_engine("target", VllmConfig(model="zoo:nano-draft", inflate=2))

    (folder,) = (tmp_path / "reasonrt" / "inflated").iterdir()
    assert engine.fingerprint == build_engine("target", VllmConfig(model="zoo:nano-draft")).fingerprint
    assert fingerprint(folder) == engine.model_fingerprint
