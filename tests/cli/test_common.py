"""Progress, and what Ctrl-C says: in one line, at once, and true."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from reasonrt.cli import common
from reasonrt.cli.common import bars, console, how_to_continue, run


@pytest.fixture
def interrupted() -> Iterator[None]:
    """As on a terminal, also where the tests run in the background of a shell, which has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the same command begins anew"),
        (
            '{}\n{"arm": "target", "settings": {}}\n',
            "the same command begins anew",
        ),  # what the journal is of, and no record
        ('{}\n{"arm": "target", "settings": {}}\n{"label": "target"}\n', "continues from there"),
    ],
)
def test_ctrl_c_says_how_to_continue_before_engines_are_closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    if text:
        (tmp_path / "timed-1").mkdir()
        (tmp_path / "timed-1" / "journal.jsonl").write_text(text)
    told_before_closing: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(10)
        finally:
            told_before_closing.append(capsys.readouterr().err)
            await asyncio.sleep(0)

    with pytest.raises(typer.Exit) as ended:
        run(work(), tmp_path)

    assert ended.value.exit_code == 130
    (told,) = told_before_closing
    assert told.strip() == f"stopped; {how_to_continue(tmp_path)}"
    assert told.strip().endswith(says)
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_says_what_becomes_of_what_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(10)

    with pytest.raises(typer.Exit) as ended:
        run(work(), "a demo keeps nothing")

    assert ended.value.exit_code == 130
    assert capsys.readouterr().err.strip() == "stopped; a demo keeps nothing"


def test_ctrl_c_in_what_catches_it_ends_the_process_all_the_same() -> None:
    program = """
import signal, time
from reasonrt.cli.common import ends_at_once
signal.signal(signal.SIGINT, signal.default_int_handler)
with ends_at_once(lambda: "there is no checkpoint yet"):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("swallowed")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    os.kill(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=30)  # it would sleep for longer, again and again

    assert process.returncode == 130
    assert (out, error) == ("", "stopped; there is no checkpoint yet\n")


def test_without_a_terminal_each_part_is_told_in_lines_with_its_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "_LINE_S", 0.0)

    with bars() as advance:
        advance("recording", 40, 100)  # was finished before
        time.sleep(0.01)
        advance("recording", 50, 100)
    lines = capsys.readouterr().err.splitlines()

    assert lines[0] == "recording: 40 of 100, 0/s"
    assert lines[1].startswith("recording: 50 of 100, ")
    assert lines[1].endswith(" s left")

    monkeypatch.setattr(console, "quiet", True)
    with bars() as advance:
        advance("recording", 1, 1)
    assert capsys.readouterr().err == ""


def test_no_colour_where_nobody_wants_it() -> None:
    program = "from reasonrt.cli.common import console; console.print('[red]red[/] [bold]bold[/]')"
    environment = {"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1", "PYTHONPATH": ":".join(sys.path)}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "red \x1b[1mbold\x1b[0m\n"
