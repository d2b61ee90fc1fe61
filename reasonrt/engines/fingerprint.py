"""Which model a folder holds, and what an engine computes with it: hashes of all that decides it.

Every byte of the weights is read once; the digest of each file is kept in the user's cache, under its path, size, times
of change and inode, so that a second start costs milliseconds.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reasonrt.files import write_whole

FUNCTION_OF = "function_of"
"""The key of config.json by which a folder names the fingerprint of the model that it computes the same as."""

_WEIGHTS = (".safetensors", ".bin", ".pt")
_SETTLED_NS = 2 * 10**9  # a file that changes again within a tick of the file system's clock keeps its times
_HEX = frozenset("0123456789abcdef")


def model_fingerprint(folder: Path, tokenizer_fingerprint: str) -> str:
    """Equal for folders with the same configuration, end tokens, tokenizer and weights, however they are run.

    Args:
        folder: with a config.json that is JSON.
        tokenizer_fingerprint: of the tokenizer that the engine uses.
    """
    config = (folder / "config.json").read_bytes()
    if same_as := json.loads(config).get(FUNCTION_OF):
        return str(same_as)
    digest = hashlib.sha256(hashlib.sha256(config).digest() + tokenizer_fingerprint.encode())
    parts = [file for file in folder.iterdir() if file.suffix in _WEIGHTS or file.name == "generation_config.json"]
    for file in sorted(parts):
        digest.update(hashlib.sha256(f"{file.name} {file_digest(file)}".encode()).digest())
    return digest.hexdigest()


def engine_fingerprint(model: str, settings: Mapping[str, Any]) -> str:
    """Equal for engines that compute the same.

    Args:
        model: the fingerprint of the model.
        settings: those that change what is computed from it, as JSON values: the number format, speculation, the
            schedule of a decoder. None stands for one that is not used. What only changes how fast or how much is
            computed (cores, memory, concurrency, parallelism, compilation) stays out.
    """
    used = {name: value for name, value in settings.items() if value is not None}
    return hashlib.sha256(json.dumps([model, used], sort_keys=True).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's content, from the cache where the file has not changed since it was read."""
    key = _state(file)
    cached = cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError, ValueError):
        known = cached.read_text()
        if len(known) == 64 and _HEX.issuperset(known):
            return known
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if _state(file) == key and time.time_ns() - file.stat().st_mtime_ns > _SETTLED_NS:
        with suppress(OSError):  # a cache that cannot be written costs time and nothing else
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cached, digest)
    return digest


def cache_folder() -> Path:
    """Where this user's files that can be made again are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonrt"


def _state(file: Path) -> str:
    """Changes with each change of the file; the time of the last change (ctime) cannot be set back."""
    state = file.stat()
    return f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
