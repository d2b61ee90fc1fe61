"""The token that the processes of one Ray cluster show each other: in a file that nobody but this user can read."""

import os
import secrets
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from reasonrt.errors import ConfigError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def provide_token(environment: MutableMapping[str, str]) -> None:
    """Name the file with the token in `environment`, where Ray looks for it; it is made where there is none.

    What the user has chosen stays: the variables of Ray, and its own file, `~/.ray/auth_token`, which clusters that run
    already may use. Ray would make that one readable for everybody.

    Raises:
        ConfigError: it cannot be written.
    """
    if environment.get(_MODE, "").lower() != "token" or environment.get(_TOKEN) or environment.get(_PATH):
        return
    try:
        file = Path.home() / ".ray" / "auth_token"
        if not file.exists():
            state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
            file = Path(state) / "reasonrt" / "ray_token"
            if not file.exists():
                _write(file)
            environment[_PATH] = str(file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
    except (OSError, RuntimeError) as error:  # the second: there is no home
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot keep Ray's token in a file of this user: {reason}; set XDG_STATE_HOME to a folder that can be "
            f"written, or {_TOKEN} to a secret"
        ) from None


def _write(file: Path) -> None:
    """Another server that starts now finds all of it or nothing, and the first one's counts."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent) as written:  # which is this user's alone
        written.write(secrets.token_hex(32))
        written.flush()
        with suppress(FileExistsError):
            os.link(written.name, file)
