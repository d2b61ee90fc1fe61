"""Ray's token: in a file of this user alone, made once, and one line where that cannot be."""

import stat
from pathlib import Path

import pytest

from reasonrt.errors import ConfigError
from reasonrt.serve.backends.ray_token import provide_token

MODE = {"RAY_AUTH_MODE": "token"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("state", ["", "state"])
def test_token_is_made_once_and_readable_for_its_user_alone(home: Path, state: str) -> None:
    environment = MODE | ({"XDG_STATE_HOME": str(home / state)} if state else {})
    again = dict(environment)

    provide_token(environment)
    provide_token(again)

    file = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert again == environment
    assert file.is_relative_to(home / (state or ".local"))
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert len(file.read_text()) == 64
    assert [path.name for path in file.parent.iterdir()] == ["ray_token"]


@pytest.mark.parametrize(
    "chosen", [{"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_TOKEN_PATH": "/x"}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_what_the_user_has_chosen_stays(home: Path, chosen: dict[str, str]) -> None:
    environment = MODE | chosen

    provide_token(environment)

    assert environment == MODE | chosen
    assert not list(home.iterdir())


def test_token_of_rays_own_stays_and_is_closed_to_others(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("theirs")
    environment = dict(MODE)

    provide_token(environment)

    assert environment == MODE
    assert (home / ".ray" / "auth_token").read_text() == "theirs"
    assert mode(home / ".ray" / "auth_token") == 0o600


def test_home_that_cannot_be_written_is_one_line_with_the_way_out(home: Path) -> None:
    (home / ".local").write_text("no folder")

    with pytest.raises(ConfigError, match=r"cannot keep Ray's token .*; set XDG_STATE_HOME .* or RAY_AUTH_TOKEN"):
        provide_token(dict(MODE))
    provide_token(MODE | {"XDG_STATE_HOME": str(home / "state")})
