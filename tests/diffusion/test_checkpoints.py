"""Folders as they are published, with tiny random weights, against transformers; and what can be wrong with one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reasonrt.config import ZOO_FOLDER
from reasonrt.diffusion.checkpoints import load_for_training, load_model, read_shape, save_model
from reasonrt.diffusion.layouts import DIFFUSION
from reasonrt.diffusion.model import DiffusionModel, attend_among_rows
from reasonrt.diffusion.shape import ModelShape
from reasonrt.errors import ConfigError

VOCAB, MASK = 96, 90
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
}
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers": "model.transformer.blocks",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}
LLADA = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_size": VOCAB,
    "eos_token_id": 3,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": MASK,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": VOCAB - 2,
    "weight_tying": False,
}


def change(folder: Path, changes: dict[str, Any], file: str = "config.json") -> None:
    """Set keys of a JSON file; None takes one away."""
    path = folder / file
    values = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def random_weights(model: nn.Module) -> Any:
    """Norms and biases too: each weight that is mistaken for another shows."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) * 0.3 + (weight.dim() == 1))
    return model.eval()


def publish_sdar(folder: Path, *, is_tied: bool = False, **saving: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=is_tied, rope_theta=1e6)
    model = random_weights(Qwen3ForCausalLM(config))
    model.save_pretrained(folder, **saving)
    change(folder, {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "mask_token_id": MASK, "block_size": 8})
    return model


def publish_sdar_tied(folder: Path) -> Any:
    return publish_sdar(folder, is_tied=True)


def publish_fast_dllm(folder: Path) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = random_weights(Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_theta=1e6)))
    model.save_pretrained(folder)
    found = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 16}
    change(folder, found | {"mask_token_id": MASK})
    return model


def publish_llada(folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SIZES | {"num_key_value_heads": 4}
    model = random_weights(LlamaForCausalLM(LlamaConfig(**sizes, rope_theta=5e5, rms_norm_eps=1e-5)))
    folder.mkdir(exist_ok=True)
    weights = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in LLADA_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    save_file(weights, folder / "model.safetensors")
    change(folder, LLADA)
    return model


PUBLISHERS = (publish_sdar, publish_sdar_tied, publish_fast_dllm, publish_llada)


@pytest.fixture
def sdar(tmp_path: Path) -> Path:
    publish_sdar(tmp_path)
    return tmp_path


def hidden_states(model: DiffusionModel, token_ids: Tensor) -> Tensor:
    positions = torch.arange(len(token_ids))
    hidden: Tensor = model(model.embedding(token_ids), positions, attend_among_rows(positions + 1))
    return hidden


@pytest.mark.parametrize("publish", PUBLISHERS)
def test_each_layout_computes_what_transformers_computes(publish: Callable[[Path], Any], tmp_path: Path) -> None:
    theirs = publish(tmp_path)
    ours = load_model(tmp_path, torch.float32)
    token_ids = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        hidden = hidden_states(ours, token_ids)
        expected = theirs.model(token_ids[None]).last_hidden_state[0]
        logits, expected_logits = ours.logits(hidden), theirs(token_ids[None]).logits[0, :, : ours.shape.tokens]

    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=2e-5)
    assert (logits[:, MASK] == -torch.inf).all()
    others = torch.arange(ours.shape.tokens) != MASK
    torch.testing.assert_close(logits[:, others], expected_logits[:, others], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("publish", PUBLISHERS)
def test_in_float64_they_differ_by_rounding_alone(publish: Callable[[Path], Any], tmp_path: Path) -> None:
    theirs = publish(tmp_path).double()
    ours = load_model(tmp_path, torch.float64)
    token_ids = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(2))

    with torch.no_grad():
        expected = in_float64(theirs, ours).model(token_ids[None]).last_hidden_state[0]
        hidden = hidden_states(ours, token_ids)

    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden, expected, atol=1e-12, rtol=1e-12)


class Turns(nn.Module):  # type: ignore[misc]
    """The angles of `model`, in the place of transformers' own."""

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.cos, self.sin = model.cos, model.sin

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[position_ids], self.sin[position_ids]
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


class Norm(nn.Module):  # type: ignore[misc]
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def in_float64(theirs: Any, ours: DiffusionModel) -> Any:
    """Transformers computes angles and norms in float32, whatever the type of the model: give it others."""
    theirs.model.rotary_emb = Turns(ours)
    for parent in list(theirs.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                setattr(parent, name, Norm(child))
    return theirs


def test_shapes_say_what_each_family_was_trained_for(tmp_path: Path) -> None:
    shapes = []
    for publish in PUBLISHERS:
        publish(tmp_path / publish.__name__)
        shapes.append(read_shape(tmp_path / publish.__name__))
    sdar = ModelShape(
        hidden=32, layers=2, mlp=48, heads=4, kv_heads=2, head_dim=16, vocab_size=VOCAB, tokens=VOCAB, max_positions=64,
        mask_token_id=MASK, block_length=8, context="block", is_tied=False, rope_theta=1e6, norm_eps=1e-6,
        end_token_ids=(3,),
    )  # fmt: skip
    fast_dllm = replace(sdar, head_dim=8, block_length=16, is_shifted=True, has_qk_norm=False, has_qkv_bias=True)
    llada = replace(
        sdar, kv_heads=4, head_dim=8, tokens=VOCAB - 2, block_length=32, context="full", has_qk_norm=False,
        rope_theta=5e5, norm_eps=1e-5,
    )  # fmt: skip

    assert shapes == [sdar, replace(sdar, is_tied=True), fast_dllm, llada]


@pytest.mark.parametrize(
    ("publish", "mask", "block"),
    [(publish_sdar, 151669, 4), (publish_fast_dllm, 151665, 32), (publish_llada, 126336, 32)],
)
def test_what_config_does_not_say_is_as_the_authors_decode(
    publish: Callable[[Path], Any], mask: int, block: int, tmp_path: Path
) -> None:
    publish(tmp_path)
    rows = {"vocab_size": 151936, "embedding_size": 151936}
    change(tmp_path, rows | dict.fromkeys(("mask_token_id", "block_size", "bd_size")))

    shape = read_shape(tmp_path)

    assert (shape.mask_token_id, shape.block_length) == (mask, block)


@pytest.mark.parametrize(
    "theta", [{"rope_theta": 7.0}, {"rope_theta": 7}, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}]
)
def test_the_base_of_rotary_embeddings_is_read_in_both_spellings(theta: dict[str, Any], sdar: Path) -> None:
    change(sdar, {"rope_theta": None, "rope_parameters": None})
    change(sdar, theta)

    assert read_shape(sdar).rope_theta == 7.0


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({}, VOCAB),
        ({"tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2}]}}, 3),
        ({"tokenizer.json": {"model": {"vocab": [["a", 0.5], ["b", 0.5]]}}}, 2),
        ({"tokenizer.json": {"model": {"vocab": {"a": 0}}}, "added_tokens.json": {"<|MASK|>": MASK}}, MASK + 1),
        ({"vocab.json": {"a": 0, "b": 1}, "tokenizer_config.json": {"added_tokens_decoder": {"7": {}}}}, 8),
        ({"tokenizer.json": {"model": {"vocab": {"a": VOCAB + 5}}}}, VOCAB),
    ],
)
def test_tokens_end_where_those_of_the_tokenizer_do(files: dict[str, Any], tokens: int, sdar: Path) -> None:
    for name, values in files.items():
        change(sdar, values, name)

    assert read_shape(sdar).tokens == tokens


def test_tokens_are_those_that_transformers_counts() -> None:
    from transformers import AutoTokenizer

    folder = ZOO_FOLDER / "nano-target"
    model = load_for_training(folder, mask_token_id=0, block_length=4, is_residual=False)

    assert model.shape.tokens == len(AutoTokenizer.from_pretrained(folder)) < model.shape.vocab_size


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [(None, 5, (5,)), ([5, 6], 7, (5, 6)), (5, [6], (5,)), (None, [6, 7], (6, 7)), (None, None, ())],
)
def test_ends_of_text_are_those_of_generation_then_of_config(
    generation: Any, config: Any, ends: tuple[int, ...], sdar: Path
) -> None:
    change(sdar, {"eos_token_id": generation}, "generation_config.json")
    change(sdar, {"eos_token_id": config})

    assert read_shape(sdar).end_token_ids == ends


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ends", ["end", [3, "end"], True])
def test_end_of_text_that_is_no_token_is_refused(file: str, ends: Any, sdar: Path) -> None:
    change(sdar, {"eos_token_id": None}, "generation_config.json")
    change(sdar, {"eos_token_id": ends}, file)

    with pytest.raises(ConfigError, match=rf"{sdar}/{file}: eos_token_id must be one or more whole numbers, got"):
        read_shape(sdar)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shards_are_read_as_one_file_is(dtype: torch.dtype, tmp_path: Path) -> None:
    publish_sdar(tmp_path / "one")
    publish_sdar(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    save_file({"lora": torch.ones(1)}, tmp_path / "many" / "adapter_model.safetensors")  # the index does not name it

    one, many = load_model(tmp_path / "one", dtype).state_dict(), load_model(tmp_path / "many", dtype).state_dict()

    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_every_weight_and_table_has_the_type_that_was_asked_for(sdar: Path) -> None:
    model = load_model(sdar, torch.bfloat16)

    assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} == {torch.bfloat16}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert torch.equal(model.cos[0], torch.ones(8, dtype=torch.bfloat16))


SHAPES = {
    "ours": {"context": "causal", "is_residual": True, "block_length": 32},
    "untied": {"is_tied": False, "end_token_ids": (1, 2)},
    "shifted": {"is_shifted": True, "has_qkv_bias": True, "has_qk_norm": False, "end_token_ids": (1,)},
    "full": {"context": "full", "tokens": 50, "mask_token_id": 60, "rope_theta": 5e5, "norm_eps": 1e-5},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_what_is_saved_is_loaded_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    shape = ModelShape(
        hidden=16, layers=2, mlp=24, heads=4, kv_heads=2, head_dim=8, vocab_size=64, tokens=64, max_positions=32,
        mask_token_id=0, block_length=4,
    )  # fmt: skip
    model = random_weights(DiffusionModel(replace(shape, **changes))).to(torch.bfloat16)

    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder", torch.bfloat16)

    assert loaded.shape == model.shape
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    assert torch.equal(loaded.cos, model.cos)


def test_models_of_ours_are_read_without_the_keys_that_most_do_not_need(tmp_path: Path) -> None:
    publish_sdar(tmp_path)
    found = {"architectures": ["BlockDiffusionForCausalLM"], "context": "causal", "residual_context": True}
    change(tmp_path, found)

    shape = read_shape(tmp_path)

    assert (shape.context, shape.is_residual, shape.is_shifted, shape.has_qk_norm) == ("causal", True, False, True)


def test_training_begins_with_an_autoregressive_model_or_one_of_ours(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    folder = ZOO_FOLDER / "nano-target"
    token_ids = torch.arange(5, 45)

    model = load_for_training(folder, mask_token_id=7, block_length=16, is_residual=False)
    with torch.no_grad():
        expected = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).model(token_ids[None])
        hidden = hidden_states(model, token_ids)
    save_model(model, tmp_path)
    further = load_for_training(tmp_path, mask_token_id=7, block_length=32, is_residual=True)

    torch.testing.assert_close(hidden, expected.last_hidden_state[0], atol=1e-4, rtol=1e-4)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())
    assert (model.shape.context, model.shape.mask_token_id, model.shape.block_length) == ("causal", 7, 16)
    assert further.shape == replace(model.shape, block_length=32, is_residual=True)
    assert all(layer.shape is model.shape for layer in model.layers)
    with pytest.raises(ConfigError, match=r"config\.json: architecture must be one of SDAR.*, got 'Qwen3ForCausalLM'"):
        load_model(folder, torch.float32)


def test_no_model_of_others_is_trained_further(sdar: Path) -> None:
    with pytest.raises(ConfigError, match="one of Qwen3ForCausalLM, BlockDiffusionForCausalLM, got 'SDARForCausalLM'"):
        load_for_training(sdar, mask_token_id=0, block_length=4, is_residual=False)


REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("key", REQUIRED)
def test_what_config_must_say_is_asked_for(key: str, sdar: Path) -> None:
    change(sdar, {key: None})

    with pytest.raises(ConfigError, match=rf"config\.json has no {key}; give"):
        read_shape(sdar)


@pytest.mark.parametrize("value", ["many", -1, 0.5, [2], {}, True])
def test_values_that_no_model_has_are_named(value: Any, sdar: Path) -> None:
    original = (sdar / "config.json").read_text()
    for key in (*REQUIRED, "num_key_value_heads", "head_dim", "block_size", "mask_token_id"):
        if (key, value) in (("rms_norm_eps", 0.5), ("tie_word_embeddings", True)):
            continue
        change(sdar, {key: value})
        named = "mask token" if (key, value) == ("mask_token_id", -1) else key

        with pytest.raises(ConfigError, match=rf"{sdar}/config\.json: .*{named}") as error:
            read_shape(sdar)

        assert "\n" not in str(error.value)
        (sdar / "config.json").write_text(original)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "the dimensions of a head must be even in number, got 7"),
        ({"mask_token_id": VOCAB}, f".* has {VOCAB} rows, too few for {VOCAB} tokens and the mask token {VOCAB}"),
        ({"architectures": ["LlamaForCausalLM"]}, "architecture must be one of SDARForCausalLM, .*, got 'LlamaForC"),
        ({"architectures": []}, r"architecture must be one of SDARForCausalLM, .*, got \[\]"),
        ({"architectures": None}, "architecture must be one of SDARForCausalLM, .*, got None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only models where it is \"silu\" or absent can be run"),
        ({"attention_bias": True}, "attention_bias is True; only models where it is false or absent"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*sliding_attention.*; only models"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type is 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters.rope_type is 'yarn'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is .*; only models where it is absent"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], message: str, sdar: Path) -> None:
    change(sdar, changes)

    with pytest.raises(ConfigError, match=rf"{sdar}/config\.json: {message}") as error:
        load_model(sdar, torch.float32)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_type": "sequential"},
        {"activation_type": "swiglu"},
        {"activation_type": None},
        {"layer_norm_type": "default"},
        {"rope": False},
        {"alibi": True},
        {"include_bias": True},
        {"attention_layer_norm": True},
        {"input_emb_norm": True},
        {"scale_logits": True},
        {"multi_query_attention": True},
        {"block_group_size": 2},
    ],
)
def test_what_llada_could_be_but_never_was_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    publish_llada(tmp_path)
    change(tmp_path, changes)

    with pytest.raises(ConfigError, match=rf"config\.json: {next(iter(changes))} is .*; only models where"):
        read_shape(tmp_path)


def test_llada_without_the_size_of_its_table_has_as_many_rows_as_tokens(tmp_path: Path) -> None:
    publish_llada(tmp_path)
    change(tmp_path, {"embedding_size": None, "n_kv_heads": None})

    shape = read_shape(tmp_path)

    assert (shape.vocab_size, shape.tokens, shape.kv_heads) == (VOCAB - 2, VOCAB - 2, 4)


def test_context_of_ours_is_one_of_three(tmp_path: Path) -> None:
    publish_sdar(tmp_path)
    change(tmp_path, {"architectures": ["BlockDiffusionForCausalLM"], "context": "some", "residual_context": False})

    with pytest.raises(ConfigError, match="context must be one of block, causal, full, got 'some'"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; give a folder with a model as published on Hugging Face"),
        (b"{", "no JSON; give a folder"),
        (b"\xff", "no JSON; give a folder"),
        (b"[1]", r"must hold keys and values, it holds \[1\]"),
    ],
)
def test_missing_or_broken_config_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.json:? {message}"):
        read_shape(tmp_path)


@pytest.mark.parametrize("content", ['{"model": {}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": 3}', "{"])
def test_broken_tokenizer_is_named(content: str, sdar: Path) -> None:
    (sdar / "tokenizer.json").write_text(content)

    with pytest.raises(ConfigError, match=rf"{sdar}/tokenizer\.json(: no JSON| is no file of a tokenizer)"):
        read_shape(sdar)


def rewrite(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Set weights; None takes one away."""
    weights = load_file(folder / "model.safetensors") | changes
    save_file({name: weight for name, weight in weights.items() if weight is not None}, folder / "model.safetensors")


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DOWN: None}, f" lacks the weight {DOWN}, by config"),
        ({DOWN: None, "model.norm.weight": None}, " lacks the weight model.norm.weight and 1 more, by config"),
        (
            {"model.layers.2.mlp.up_proj.weight": torch.ones(2)},
            " also has the weight model.layers.2.mlp.up_proj.weight,",
        ),
        (
            {DOWN: torch.ones(32, 47)},
            rf"/model.safetensors: {DOWN} has size \[32, 47\], by config.json .*32, 48\]",
        ),
        # a table that tensor parallelism has padded
        ({"lm_head.weight": torch.ones(128, 32)}, r"/model.safetensors: lm_head.weight has size \[128, 32\]"),
        (
            {DOWN: torch.ones(32, 48, dtype=torch.int8)},
            f"/model.safetensors: {DOWN} is I8; give weights in",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, Tensor | None], message: str, sdar: Path) -> None:
    rewrite(sdar, changes)

    with pytest.raises(ConfigError, match=f"{sdar}{message}"):
        load_model(sdar, torch.float32)


def test_head_of_a_tied_model_may_be_published_but_must_be_its_table(tmp_path: Path) -> None:
    publish_sdar_tied(tmp_path)
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]

    rewrite(tmp_path, {"lm_head.weight": table.clone()})
    model = load_model(tmp_path, torch.bfloat16)
    rewrite(tmp_path, {"lm_head.weight": table + 1})

    assert model.head is model.embedding
    with pytest.raises(ConfigError, match=r"model\.safetensors: lm_head\.weight is not the embedding table"):
        load_model(tmp_path, torch.bfloat16)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors: .*not fully covered; weights must be in safetensors"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"model\.safetensors: No such file.*; weights",
        ),
        (lambda folder: change(folder, {}, "model.safetensors.index.json"), "index.json has no weight_map"),
        (lambda folder: change(folder, {"weight_map": {"a": 1}}, "model.safetensors.index.json"), "has no weight_map"),
        (
            lambda folder: change(folder, {"weight_map": {"a": "model-2.safetensors"}}, "model.safetensors.index.json"),
            r"model-2\.safetensors: No such file",
        ),
    ],
)
def test_files_that_cannot_be_read_are_named(damage: Callable[[Path], Any], message: str, sdar: Path) -> None:
    damage(sdar)

    with pytest.raises(ConfigError, match=rf"{sdar}/.*{message}") as error:
        load_model(sdar, torch.float32)

    assert "\n" not in str(error.value)


def test_every_family_names_all_parts_of_the_model_once() -> None:
    for layout in DIFFUSION.values():
        assert len(set(layout.names.values())) == len(layout.names)
