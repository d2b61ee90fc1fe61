"""From configuration to engines; the only place that knows every kind."""

from importlib.metadata import entry_points

from reasonrt.config import Config, EngineConfig, PluginConfig, RemoteConfig, model_folder
from reasonrt.engines.base import Engine
from reasonrt.errors import ConfigError


def build_engines(config: Config) -> dict[str, Engine]:
    """The engines of `config` by role, not started.

    Raises:
        ConfigError: a model folder, tokenizer or plug-in is missing.
    """
    return {role: build_engine(role, engine) for role, engine in config.engines.items()}


def build_engine(role: str, config: EngineConfig) -> Engine:
    """One engine, not started."""
    if isinstance(config, PluginConfig):
        for entry in entry_points(group="reasonrt.engines", name=config.name):
            plugin: Engine = entry.load()(role, **config.settings)
            return plugin
        raise ConfigError(f"engine {role!r}: no installed package offers the engine {config.name!r}")
    if isinstance(config, RemoteConfig):
        from reasonrt.engines.remote import RemoteEngine

        return RemoteEngine(
            role,
            config.base_url,
            config.model,
            tokenizer=config.tokenizer,
            api_key=config.api_key,
            max_model_len=config.max_model_len,
            timeout_s=config.timeout_s,
        )
    from reasonrt.engines.vllm import VllmEngine, VllmSettings

    return VllmEngine(role, model_folder(config.model), VllmSettings(**config.model_dump(exclude={"kind", "model"})))
