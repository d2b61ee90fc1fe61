"""The option `own_process`: which engines take it, and vLLM under it."""

from pathlib import Path

import pytest

from reasonrt.config import PluginConfig, VllmConfig, load_config
from reasonrt.engines.build import build_engine
from reasonrt.engines.linked import LinkedEngine
from reasonrt.errors import ConfigError
from reasonrt.ports import Engine
from reasonrt.types import Message, Sampling


@pytest.mark.parametrize("own_process", [True, False])
def test_engine_is_linked_where_the_configuration_says_so(
    own_process: bool, tmp_path: Path, hosted_package: None
) -> None:
    (tmp_path / "reasonrt.yaml").write_text(
        f"engines:\n  draft: {{model: zoo:nano-draft, max_model_len: 77, own_process: {own_process}}}\n"
        f"  target: {{kind: plugin, name: scripted, own_process: {own_process}}}\n"
    )
    config = load_config(tmp_path / "reasonrt.yaml")

    for role, engine_config in config.engines.items():
        engine = build_engine(role, engine_config)
        assert isinstance(engine, LinkedEngine) is own_process
        assert engine.name == role
    plain = build_engine("draft", VllmConfig(model="zoo:nano-draft", max_model_len=77))
    draft = build_engine("draft", config.engines["draft"])
    assert (draft.max_model_len, draft.capabilities) == (77, plain.capabilities)
    assert draft.model_fingerprint == plain.model_fingerprint
    assert (draft.fingerprint, draft.tokenizer.fingerprint) == (plain.fingerprint, plain.tokenizer.fingerprint)


def test_remote_engine_has_its_process_already(tmp_path: Path) -> None:
    (tmp_path / "reasonrt.yaml").write_text(
        "engines: {target: {kind: remote, base_url: 'http://x', model: m, tokenizer: t, own_process: true}}"
    )

    with pytest.raises(ConfigError, match="own_process: extra inputs are not permitted"):
        load_config(tmp_path / "reasonrt.yaml")


def test_what_is_wrong_is_said_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no installed package offers the engine 'quantum'"):
        build_engine("target", PluginConfig(kind="plugin", name="quantum", own_process=True))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build_engine("target", VllmConfig(model=str(tmp_path), own_process=True))


@pytest.mark.vllm
async def test_vllm_writes_the_same_in_a_process_of_its_own(draft_engine: Engine) -> None:
    config = VllmConfig(model="zoo:nano-draft", own_process=True, kv_cache_mib=64)
    linked = await build_engine("draft", config).start()
    try:
        found = await written_by(linked)
    finally:
        await linked.aclose()

    assert found == await written_by(draft_engine)
    assert found[0]


async def written_by(engine: Engine) -> tuple[list[int], str]:
    """The tokens that the engine begins with, and its fingerprint; with other cores, it rounds otherwise."""
    prompt = engine.tokenizer.chat((Message("user", "What is 12 + 30?"),))
    stream = engine.generate(prompt, Sampling(40))
    token_ids = [token_id async for delta in stream for token_id in delta.token_ids]
    assert stream.generated_tokens == len(token_ids)
    return token_ids[:8], engine.fingerprint
