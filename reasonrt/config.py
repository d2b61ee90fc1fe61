"""The one reader of configuration: a YAML file, changes over it, and what they stand for.

Without a file, the models that ship with reasonrt serve as `draft`, `target`, `router`, `reward` and `diffusion`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, ValidationError

from reasonrt.boundaries import BoundaryKind
from reasonrt.errors import ConfigError, in_one_line, shown
from reasonrt.files import FileKind
from reasonrt.hub import hub_folder, is_hub_id
from reasonrt.masking import MASK, is_secret, masked, masked_url
from reasonrt.types import Limits

DEFAULT_FILE = Path("reasonrt.yaml")
ZOO_FOLDER = Path(__file__).parent / "zoo" / "models"
ZOO_PREFIX = "zoo:"
_FILE = FileKind(ConfigError, "name a file with --config", most_bytes=1 << 18)
_KINDS = ("vllm", "diffusion", "remote", "plugin")
_LIMITS = Limits()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


ThinkingMarks = Annotated[
    tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] | None,
    Field(description="what its model opens and closes its thinking with; None: found from template and vocabulary"),
]


ToolParser = Annotated[
    str | None,
    Field(description="vLLM's parser of calls of tools, such as hermes; auto: found from the template; null: none"),
]


class VllmConfig(_Strict):
    """A model in vLLM. The fields after `own_process` are those of `engines.vllm_settings.VllmSettings`."""

    kind: Literal["vllm"] = "vllm"
    model: str = Field(description="a folder, the id of a model on the Hugging Face hub, or zoo:NAME")
    inflate: int = Field(1, ge=1, le=64, description="run it so many times as wide, with the same function")
    own_process: bool = Field(False, description="in a process of its own: whatever it does, this one keeps serving")
    max_model_len: int = Field(1024, ge=16, le=10_000_000)
    max_num_seqs: int = Field(64, ge=1, le=4096)
    kv_cache_mib: int | None = Field(256, ge=1)
    gpu_share: float = Field(0.45, gt=0, le=1)
    block_size: int | None = Field(None, ge=1, le=4096)
    cores: str | None = Field(None, pattern=r"^\d+([-,]\d+)*$")
    niceness: int = Field(0, ge=0, le=19, description="on CPUs, how far its threads give way to others")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="None: the fastest of the machine"
    )
    compile: bool | None = Field(None, description="torch.compile and CUDA graphs; None: on GPUs alone")
    tensor_parallel: int = Field(1, ge=1, le=1024)
    scores: bool = False
    structured: bool = Field(False, description="answers can be held to a structure; vLLM then loads a tokenizer, too")
    tool_parser: ToolParser = "auto"
    thinking_marks: ThinkingMarks = None
    boundary: BoundaryKind = Field("blank_line", description="what ends a step; `calibrate boundary` finds it")
    speculative: dict[str, Any] | None = Field(None, description="vLLM's own speculation; a `model` in it as above")


class DiffusionConfig(_Strict):
    """A model that fills blocks of masked tokens.

    The fields after `own_process` are those of `engines.diffusion.DiffusionSettings`.
    """

    kind: Literal["diffusion"]
    model: str = Field(description="a folder, the id of a model on the Hugging Face hub, or zoo:NAME")
    own_process: bool = Field(True, description="in a process of its own: whatever it does, this one keeps serving")
    max_model_len: int = Field(1024, ge=16, le=10_000_000)
    max_num_seqs: int = Field(32, ge=1, le=4096)
    kv_cache_mib: int | None = Field(None, ge=1, description="None: what max_num_seqs x max_model_len take")
    cores: str | None = Field(None, pattern=r"^\d+([-,]\d+)*$")
    niceness: int = Field(0, ge=0, le=19, description="on CPUs, how far its threads give way to others")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="None: bfloat16 on GPUs, float32 on CPUs"
    )
    compile: bool | None = Field(None, description="torch.compile; None: on GPUs alone")
    reference_model: str | None = Field(None, description="for residual_start: reference; named as `model`")
    passes_together: int = Field(1, ge=1, le=64, description="passes that follow each other before the host sees any")
    thinking_marks: ThinkingMarks = None
    decoding: dict[str, Any] = Field(default_factory=dict, description="defaults of a request's own decoding")
    boundary: BoundaryKind = Field("blank_line", description="what ends a step; `calibrate boundary` finds it")


class SecretUrl(Secret[str]):
    """An address that may hold a login, which is never printed."""

    def _display(self) -> str:
        return masked_url(self.get_secret_value())


class RemoteConfig(_Strict):
    """A model on an OpenAI-compatible server."""

    kind: Literal["remote"]
    base_url: SecretUrl
    model: str = Field(description="its name on that server")
    tokenizer: Path = Field(description="a folder with the model's tokenizer, or named as `model` of kind `vllm`")
    thinking_marks: ThinkingMarks = None
    api_key: SecretStr | None = None
    max_model_len: int = Field(4096, ge=16)
    timeout_s: float = Field(60.0, gt=0)
    tool_parser: ToolParser = "auto"
    boundary: BoundaryKind = Field("blank_line", description="what ends a step; `calibrate boundary` finds it")


class PluginConfig(_Strict):
    """An engine of somebody else's, by its entry point in `reasonrt.engines`."""

    kind: Literal["plugin"]
    name: str
    own_process: bool = Field(False, description="in a process of its own: whatever it does, this one keeps serving")
    settings: dict[str, Any] = Field(default_factory=dict, repr=False)


EngineConfig = Annotated[VllmConfig | DiffusionConfig | RemoteConfig | PluginConfig, Field(discriminator="kind")]


class LimitsConfig(_Strict):
    max_tokens: int = Field(_LIMITS.max_tokens, ge=1, le=1_000_000)
    deadline_s: float | None = Field(None, gt=0)
    max_engine_calls: int = Field(_LIMITS.max_engine_calls, ge=1)
    max_generated_tokens: int | None = Field(None, ge=1)
    max_depth: int = Field(_LIMITS.max_depth, ge=0)
    max_sub_requests: int = Field(_LIMITS.max_sub_requests, ge=1)

    def to_limits(self) -> Limits:
        return Limits(**self.model_dump())


class ToolConfig(_Strict):
    """A tool: `sandbox`, which is ours, or one of another package, by its entry point in `reasonrt.tools`."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict, repr=False)


def _zoo() -> dict[str, EngineConfig]:
    models: dict[str, EngineConfig] = {
        role: VllmConfig(model=f"{ZOO_PREFIX}nano-{role}") for role in ("draft", "target")
    }
    judges = {role: VllmConfig(model=f"{ZOO_PREFIX}nano-{role}", scores=True) for role in ("router", "reward")}
    # lossless against what the same weights write token by token: a stranger's first answers should be right
    decoding = {"strategy": "self_speculation"}
    diffusion = DiffusionConfig(kind="diffusion", model=f"{ZOO_PREFIX}nano-diffusion-rcd", decoding=decoding)
    return models | judges | {"diffusion": diffusion}


class Config(_Strict):
    """The whole of `reasonrt.yaml`."""

    engines: dict[str, EngineConfig] = Field(default_factory=_zoo)
    policies: dict[str, dict[str, Any]] = Field(
        default_factory=dict, repr=False, description="policy to its default options"
    )
    tools: dict[str, ToolConfig] = Field(default_factory=dict, description="tool to the package's tool that it is")
    limits: LimitsConfig = LimitsConfig()
    concurrency: int = Field(16, ge=1, le=4096, description="concurrent requests, in evaluations")
    serve: dict[str, Any] = Field(
        default_factory=dict, exclude=True, repr=False, description="the endpoint, below; it may hold keys"
    )


def load_config(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Config:
    """Read `path` (default: `reasonrt.yaml` where it exists) and put `changes` over its top-level keys.

    Raises:
        ConfigError: no such file, no YAML, or a key or value that is not known; the message names it.
    """
    file = Path(path) if path is not None else DEFAULT_FILE
    values: Any = {}
    if path is not None or file.exists():
        values = _FILE.read_yaml(file) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold keys and values, it holds {shown(masked(values))}; {_FILE.way_out}")
    engines = values.get("engines")
    if isinstance(engines, dict):
        values["engines"] = {
            name: {"kind": "vllm"} | engine if isinstance(engine, dict) else engine for name, engine in engines.items()
        }
    try:
        return Config.model_validate(values | dict(changes or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = [str(part) for part in first["loc"] if part not in _KINDS]
        told = f"{file}: {in_one_line('.'.join(where))}: {in_one_line(first['msg'].lower(), 200)}"
        raise ConfigError(f"{told}, got {_shown_at(where, first['type'], first['input'])}") from None


def _shown_at(where: list[str], error: str, value: Any) -> str:
    """A value that is refused, unless there may be a key in it: of a section, of a secret, of what nobody knows."""
    if isinstance(value, dict | list) or error in ("dict_type", "model_type", "model_attributes_type"):
        return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a single value"
    is_open = error != "extra_forbidden" and where[:1] != ["serve"] and not any(map(is_secret, where))
    return shown(masked(value)) if is_open else MASK


def dump_config(config: Config) -> str:
    """`config`, but for its key `serve`, as YAML that `load_config` reads back to the same, secrets masked."""
    return yaml.safe_dump(masked(config.model_dump(mode="json", exclude_none=True)), sort_keys=False)


def model_folder(model: str, *, may_fetch: bool = True) -> Path:
    """The folder that a config's `model` stands for.

    Args:
        may_fetch: a model of the hub that is not in the local cache is fetched.

    Raises:
        ConfigError: there is no such folder, or it cannot be fetched.
    """
    if model.startswith(ZOO_PREFIX):
        folder = ZOO_FOLDER / model.removeprefix(ZOO_PREFIX)
        if not folder.is_dir():
            known = ", ".join(sorted(child.name for child in ZOO_FOLDER.glob("*") if child.is_dir())) or "none"
            raise ConfigError(f"the zoo has no model {shown(model)}; it has {known}")
        return folder
    try:
        folder = Path(model).expanduser()
        is_there = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a zero byte, nobody's home
        is_there = False
    if is_there:
        return folder
    if is_hub_id(model):
        return hub_folder(model, may_fetch=may_fetch)
    raise ConfigError(
        f"there is no model folder {in_one_line(model, 200)}; give a Hugging Face folder, the id of a model on its "
        f"hub, such as Qwen/Qwen3-0.6B, or {ZOO_PREFIX}NAME"
    )
