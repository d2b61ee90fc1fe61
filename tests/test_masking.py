"""Secrets: each key of the configuration that holds one, through everything that prints, and every error beside it."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.datastructures import Headers

from reasonrt.cli.main import main
from reasonrt.config import Config, RemoteConfig, SecretUrl, dump_config, load_config
from reasonrt.engines.build import build_engines
from reasonrt.errors import ReasonRTError
from reasonrt.masking import masked, masked_text, masked_url, without_folders
from reasonrt.serve.auth import KeyRing
from reasonrt.serve.config import ServeConfig, load_serve_config
from reasonrt.serve.logs import JsonFormatter

SECRET = "sk-4f1a9c-nobody-may-see"  # noqa: S105 (a made-up one)
REMOTE: dict[str, Any] = {"kind": "remote", "base_url": "http://h:1/v1", "model": "m", "tokenizer": "/no/such"}
PLACES: dict[str, tuple[str, ...]] = {
    "the key of a remote engine": ("engines", "far", "api_key"),
    "the login and the query of a remote engine": ("engines", "far", "base_url"),
    "the key of a caller": ("serve", "api_keys", "ada"),
    "a setting of a plug-in": ("engines", "own", "settings", "api_key"),
    "a setting of a tool": ("tools", "search", "settings", "password"),
    "an option of a policy": ("policies", "theirs", "access_token"),
}


def configuration(secret: Any = SECRET) -> dict[str, Any]:
    """One with a secret in each place."""
    login = f"http://user:{secret}@h:1/v1?key={secret}" if isinstance(secret, str) else secret
    return {
        "engines": {
            "far": REMOTE | {"api_key": secret, "base_url": login},
            "own": {"kind": "plugin", "name": "x", "settings": {"api_key": secret}},
        },
        "tools": {"search": {"name": "y", "settings": {"password": secret, "deep": [{"api_key": secret}]}}},
        "policies": {"theirs": {"access_token": secret}},
        "serve": {"api_keys": {"ada": secret}},
    }


def read(file: Path) -> tuple[Config, ServeConfig]:
    config = load_config(file)
    return config, load_serve_config(config.serve, {})


def message_of(file: Path) -> str:
    """Of the error that reading it, and building what it names, ends in."""
    try:
        config, _ = read(file)
        build_engines(config)
    except ReasonRTError as error:
        return str(error)
    return ""


def secret_fields(kind: type[BaseModel], seen: frozenset[type] = frozenset()) -> Iterator[tuple[type, str]]:
    for name, field in kind.model_fields.items():
        text = str(field.annotation)
        if "SecretStr" in text or "SecretUrl" in text:
            yield kind, name
        for inner in _models(field.annotation):
            if inner not in seen:
                yield from secret_fields(inner, seen | {kind})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def test_the_places_are_all_that_hold_secrets_by_their_type() -> None:
    found = {name for kind in (Config, ServeConfig) for _, name in secret_fields(kind)}

    assert found == {"api_key", "base_url", "api_keys"}
    assert RemoteConfig.model_fields["base_url"].annotation is SecretUrl


def test_nothing_that_is_printed_of_a_configuration_has_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reasonrt.yaml"
    file.write_text(yaml.safe_dump(configuration()))
    config, serving = read(file)
    monkeypatch.setattr(
        "sys.argv", ["reasonrt", "config", "show", "--config", str(file), "--json", f"{tmp_path}/c.json"]
    )

    with pytest.raises(SystemExit) as ended:
        main()

    assert not ended.value.code
    printed = (*capsys.readouterr(), (tmp_path / "c.json").read_text(), dump_config(config), repr(config))
    assert not [text for text in (*printed, str(config), repr(serving), str(serving.model_dump())) if SECRET in text]
    assert printed[0].count("**********") == len(PLACES) + 2  # one place has two, one setting is nested
    far = config.engines["far"]
    assert isinstance(far, RemoteConfig)
    assert far.base_url.get_secret_value() == f"http://user:{SECRET}@h:1/v1?key={SECRET}"


def broken(text: str) -> Iterator[str]:
    """The same file, no longer YAML, at and near each line with a secret."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if SECRET in line:
            begin, indent = line.index(SECRET), " " * (len(line) - len(line.lstrip()))
            for changed in (
                line[:begin] + '"' + line[begin:],
                line[:begin] + "[" + line[begin:],
                line[:begin] + "*" + line[begin:],
                line[:begin] + "!" + line[begin:],
                line[:begin] + "@" + line[begin:],
                line + ": x",
                line + "\t: : x",
                line + "\x00",
                f"{line}\n{indent}  y: 1",
                f"{line}\n{line}",
                f"{line}\n{indent[1:]}y: 1",
            ):
                yield "\n".join([*lines[:number], changed, *lines[number + 1 :]])


def test_no_error_of_the_text_has_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "reasonrt.yaml"
    num_errors = 0
    for text in broken(yaml.safe_dump(configuration())):
        file.write_text(text)
        message = message_of(file)
        num_errors += bool(message)
        assert "nobody-may-see" not in message, text

    assert num_errors > 60


WRONG: list[Any] = [[SECRET], {"x": SECRET}, {SECRET: "x"}, [[{"api_key": SECRET}]], 7, "ü" + SECRET, " " + SECRET]
SECTIONS: list[Any] = [SECRET, [SECRET], {"api_key": SECRET}, [{"api_keys": {"ada": SECRET}}], f"api_keys: {SECRET}"]


def changes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each secret as what it cannot be, each section that holds one as another thing, keys where names belong."""
    for words, path in PLACES.items():
        for depth in range(1, len(path) + 1):
            for wrong in WRONG if depth == len(path) else SECTIONS[1:]:
                values = configuration()
                place = values
                for part in path[: depth - 1]:
                    place = place[part]
                is_login = path[depth - 1] == "base_url" and isinstance(wrong, str)
                place[path[depth - 1]] = f"ada:{wrong}@h:1/v1" if is_login else wrong
                yield f"{words} {depth}", values
    keys = {SECRET: "alice"}, {"a b": SECRET}, {"ada": SECRET, "bob": SECRET}, {"ada": SECRET[:15]}, {7: SECRET}
    for wrong in keys:
        yield f"names {wrong.keys()}", configuration() | {"serve": {"api_keys": wrong}}
    for extra in ({"api_keys": {"ada": SECRET}}, {"serve": {"api_key": SECRET}}, {"serve": {"password": [SECRET]}}):
        yield f"extra {extra.keys()}", configuration() | extra


@pytest.mark.parametrize(("words", "values"), list(changes()))
def test_no_error_of_a_value_has_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, values: dict[str, Any]
) -> None:
    file = tmp_path / "reasonrt.yaml"
    file.write_text(yaml.safe_dump(values))

    message = message_of(file)

    assert message, "there is no such tokenizer and no such plug-in"
    assert "nobody-may" not in message, words
    assert len(message) < 600


@pytest.mark.parametrize(
    "key", ["schlüssel-" + "x" * 16, " " + "x" * 20, "x" * 20 + "\n", "x" * 20 + "\x00", "\u2003" * 20]
)
def test_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(ReasonRTError, match="the API key 'ada' can never match"):
        load_serve_config({"api_keys": {"ada": key}}, {})


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=16, max_size=40))
def test_keys_that_are_taken_are_found_again_in_a_header(key: str) -> None:
    if key != key.strip():
        with pytest.raises(ReasonRTError, match="can never match"):
            load_serve_config({"api_keys": {"ada": key}}, {})
        return
    config = load_serve_config({"api_keys": {"ada": key}}, {})

    ring = KeyRing({name: secret.get_secret_value() for name, secret in config.api_keys.items()})
    header = Headers({"authorization": f"Bearer {key}"})["authorization"]
    assert ring.owner(header.partition(" ")[2].strip()) == "ada"


def test_a_key_of_two_names_is_refused() -> None:
    with pytest.raises(ReasonRTError, match="two names have the same API key"):
        load_serve_config({"api_keys": {"ada": SECRET, "bob": SECRET}}, {})


@pytest.mark.parametrize("keys", [{SECRET: SECRET}, {SECRET: f"{SECRET}-2", "ada": SECRET}])
def test_a_key_that_stands_in_the_place_of_its_name_is_refused_unsaid(keys: dict[str, str]) -> None:
    with pytest.raises(ReasonRTError, match="the name of an API key is an API key itself") as told:
        load_serve_config({"api_keys": keys}, {})
    assert SECRET not in str(told.value)


TEXTS = [
    f"GET http://user:{SECRET}@h:1/v1/models failed",
    f"http://user:a@{SECRET}/x@h:1",
    f"Authorization: Bearer {SECRET}",
    f"header b'Bearer {SECRET}'",
    f"api_key={SECRET}&x=1",
    f"GET http://h:1/v1/models?key={SECRET}&x=1 failed",
    f"http://h/?x=1&access_token={SECRET}#top",
    f'{{"api_keys": {{"ada": "{SECRET}"}}}}',
    f"password: '{SECRET}'",
]


@pytest.mark.parametrize("text", TEXTS)
def test_traceback_of_the_command_line_is_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    def fail() -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("reasonrt.cli.main.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "RuntimeError: " in printed
    assert "nobody-may-see" not in printed


@pytest.mark.parametrize("text", TEXTS)
def test_logs_and_tracebacks_are_masked(text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "it failed: %s", (text,), (type(error), error, None))

    line = json.loads(JsonFormatter().format(record))

    assert "nobody-may-see" not in str(line)
    assert line["message"].startswith("it failed: ")
    assert "RuntimeError" in line["exception"]


def test_what_is_no_secret_is_left_as_it_is() -> None:
    values = {"tokenizer": "x", "max_tokens": 3, "certificate_keys": ["a.pem"], "api_key": None, "url": "http://h/v1"}
    text = "no valid API key; send it as Authorization. 3 tokens: [1, 2], see http://h:1/v1 and a@b.example"

    assert masked(values) == values
    assert masked_text(text) == text
    assert [masked_url(url) for url in ("http://h/v1", "u:p@h", "http://u:p@h/v1", "http://u:p@x@h")] == [
        "http://h/v1", "**********@h", "http://**********@h/v1", "http://**********@h",
    ]  # fmt: skip


FILE_NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,8}\.[a-z]{2,6}", fullmatch=True)
FOLDER_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(lambda name: name != "v1")
MESSAGES = [
    "{path}: no such file; make it again",
    "cannot read {path}",
    "the router {path} was not measured",
    "'{path}' is no folder (see {path}, line 3)",
    "policy arbitrage: {path}: it is nested deeper than 64, in {path}.",
]


@given(
    begin=st.sampled_from(["/", "~/", "./", "../", ""]),
    folders=st.lists(FOLDER_NAMES, min_size=1, max_size=4),
    name=FILE_NAMES,
    message=st.sampled_from(MESSAGES),
)
def test_of_a_path_the_name_of_the_file_is_left(begin: str, folders: list[str], name: str, message: str) -> None:
    path = f"{begin}{'/'.join(folders)}/{name}"

    assert without_folders(message.format(path=path)) == message.format(path=name)


@pytest.mark.parametrize(
    "text",
    [
        "use echo and logprobs of /v1/completions; POST /v1/chat/completions",
        "nothing answers at http://127.0.0.1:8000/v1; start the server",
        "no model folder Qwen/Qwen3-0.6B, got 'a/b' and/or 3/4",
        "the body must be of content-type application/json",
        "<think>hm</think> 7 </think>",
        "schema: #/$defs/unit.name",
        "zoo:nano-target",
    ],
)
def test_what_is_no_path_of_the_operator_stays(text: str) -> None:
    assert without_folders(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("engine 'target': /models/Qwen3-8B holds no model", "engine 'target': Qwen3-8B holds no model"),
        ("got '/my models/the router.json'", "got 'the router.json'"),
        ("/srv/a.json and runs/b.json differ", "a.json and b.json differ"),
    ],
)
def test_of_a_folder_its_name_is_left(text: str, left: str) -> None:
    assert without_folders(text) == left
