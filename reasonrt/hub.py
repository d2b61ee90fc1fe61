"""Models of the Hugging Face hub by their ids: found in the local cache, or fetched into it."""

import re
from pathlib import Path

from reasonrt.errors import ConfigError

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]


def is_hub_id(name: str) -> bool:
    """Whether a name could be that of a model on the hub, such as `Qwen/Qwen3-0.6B`."""
    return bool(_ID.fullmatch(name))


def hub_folder(name: str, *, may_fetch: bool = True) -> Path:
    """The folder of a hub model: as it is in the cache, where it is whole, else fetched.

    Args:
        may_fetch: also go to the hub.

    Raises:
        ConfigError: it is not in the cache and cannot be fetched, or may not be.
    """
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    cache = f"the Hugging Face cache {constants.HF_HUB_CACHE}"
    reason = ""
    for is_local in (True, False) if may_fetch else (True,):
        try:
            folder = Path(
                snapshot_download(
                    name, allow_patterns=_FILES, local_files_only=is_local, cache_dir=constants.HF_HUB_CACHE
                )
            )
        except (OSError, ValueError, RuntimeError, HfHubHTTPError, httpx.HTTPError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:120].rstrip(".")
        else:
            if not is_local or _is_whole(folder):
                return folder
    if not may_fetch:
        raise ConfigError(f"{name} is no folder, and not in {cache}; it is fetched when it is first used")
    raise ConfigError(
        f"{name} is no folder, is not in {cache}, and cannot be fetched: {reason}; fetch it with `hf download {name}` "
        "where there is a network, or give a folder"
    )


def _is_whole(folder: Path) -> bool:
    """A tokenizer alone, or a part of the weights, may have been fetched before."""
    index = folder / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        weights = set(re.findall(r'"([^"]+\.safetensors)"', index.read_text()))
    return all((folder / name).is_file() for name in ("config.json", *weights))
