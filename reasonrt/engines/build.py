"""From configuration to engines; the only place that knows every kind."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from reasonrt.config import (
    Config,
    DiffusionConfig,
    EngineConfig,
    PluginConfig,
    RemoteConfig,
    VllmConfig,
    model_folder,
)
from reasonrt.engines.fingerprint import cache_folder
from reasonrt.engines.linked import LinkedEngine
from reasonrt.engines.local_link import LocalLink
from reasonrt.errors import ConfigError, ReasonRTError
from reasonrt.plugins import PluginGroup, make, read_maker
from reasonrt.ports import Engine

ENGINES = PluginGroup("engine", "reasonrt.engines", read_maker)


def build_engines(config: Config, roles: Collection[str] | None = None) -> dict[str, Engine]:
    """The engines of `config` by role, not started; only those in `roles` where these are given.

    Raises:
        ConfigError: a model folder, tokenizer or plug-in is missing.
    """
    chosen = {role: engine for role, engine in config.engines.items() if roles is None or role in roles}
    return {role: build_engine(role, engine) for role, engine in chosen.items()}


def build_engine(role: str, config: EngineConfig) -> Engine:
    """One engine, not started; one with `own_process` is the near end of a link to that process."""
    if not isinstance(config, RemoteConfig) and config.own_process:
        shared = config.model_copy(update={"own_process": False})
        return LinkedEngine(build_engine(role, shared), LocalLink(role, partial(build_engine, role, shared)))
    if isinstance(config, PluginConfig):
        try:
            plugin: Engine = make(ENGINES, config.name, Engine, role, settings=config.settings)
        except ReasonRTError as error:
            raise ConfigError(f"engine {role!r}: {error}") from error
        return plugin
    if isinstance(config, RemoteConfig):
        from reasonrt.engines.remote import RemoteEngine

        return RemoteEngine(
            role,
            config.base_url.get_secret_value(),
            config.model,
            tokenizer=model_folder(str(config.tokenizer)),
            api_key=config.api_key.get_secret_value() if config.api_key else None,
            max_model_len=config.max_model_len,
            timeout_s=config.timeout_s,
            boundary=config.boundary,
            tool_parser=config.tool_parser,
            thinking_marks=config.thinking_marks,
        )
    if isinstance(config, DiffusionConfig):
        from reasonrt.engines.diffusion import DiffusionEngine, DiffusionSettings

        chosen = config.model_dump(exclude={"kind", "model", "own_process", "thinking_marks"})
        if config.reference_model is not None:
            chosen["reference_model"] = model_folder(config.reference_model)
        model = model_folder(config.model)
        return _marked(DiffusionEngine(role, model, DiffusionSettings(**chosen)), model, config)
    from reasonrt.engines.inflate import inflated
    from reasonrt.engines.vllm import VllmEngine
    from reasonrt.engines.vllm_settings import VllmSettings

    settings = config.model_dump(exclude={"kind", "model", "inflate", "own_process", "thinking_marks"})
    if config.speculative and "model" in config.speculative:
        settings["speculative"] = config.speculative | {"model": str(model_folder(str(config.speculative["model"])))}
    folder = inflated(config.model, config.inflate, cache_folder() / "inflated")
    return _marked(VllmEngine(role, folder, VllmSettings(**settings)), folder, config)


def _marked(engine: Any, tokenizer: Path, config: VllmConfig | DiffusionConfig) -> Engine:
    """`engine`, not started, with the marks of thinking that its configuration names."""
    if config.thinking_marks is not None:
        from reasonrt.engines.tokenizer import HFTokenizer

        engine.tokenizer = HFTokenizer(tokenizer, config.boundary, config.thinking_marks)
    marked: Engine = engine
    return marked
