"""Files, upstreams and disks that are not what they should be, given to the command line, by kind.

Each command must end by itself: with what was asked, or with one line on standard error and exit code 2.
"""

import asyncio
import json
import os
import random
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attacks import Outcome

MOST_S = 60.0
SECRET = "s3cr3t-that-nobody-may-see"  # noqa: S105
_REASONRT = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]

Spoil = Callable[[Path, random.Random, float, Outcome], None]


def command(folder: Path, *arguments: str, most_bytes: int | None = None, **environment: str) -> tuple[int, str]:
    """The exit code of a command and what it says on standard error; of one that does not end, -1.

    Args:
        most_bytes: of each file that it writes.
    """

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    try:
        done = subprocess.run(
            [*_REASONRT, *arguments],
            cwd=folder,
            env=os.environ | {"COLUMNS": "1000", "XDG_STATE_HOME": str(folder)} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MOST_S,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return -1, f"did not end within {MOST_S:g} s"
    said = done.stderr.decode(errors="replace")
    return done.returncode, said if done.returncode else said + done.stdout.decode(errors="replace")


def is_one_line(code: int, said: str) -> bool:
    """Whether a command has ended as one does that was given something wrong."""
    return code == 2 and len(said.strip().splitlines()) == 1 and len(said) < 1000 and "Traceback" not in said


def _every(values: Mapping[str, Any], dice: random.Random, share: float) -> list[tuple[str, Any]]:
    """A share of them, in any order; all of them for 1."""
    return dice.sample([*values.items()], max(1, min(len(values), round(len(values) * share))))


def remote(url: str, **more: Any) -> dict[str, Any]:
    from reasonrt.config import model_folder

    tokenizer = str(model_folder("zoo:nano-draft"))
    return {"engines": {"draft": {"kind": "remote", "base_url": url, "model": "far", "tokenizer": tokenizer} | more}}


def printed_secrets(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """A secret at, in or near what is wrong with a configuration is not printed, nor is one in a right one."""
    away, key = "http://127.0.0.1:1/v1", f"{SECRET}-0123456789"
    configs: dict[str, Any] = {
        "key of an engine": remote(away, api_key=SECRET),
        "password in a URL": remote(f"http://u:{SECRET}@127.0.0.1:1/v1"),
        "password in no URL": remote(f"htp://u:{SECRET}@127.0.0.1:1/v1"),
        "user in a URL": remote(f"http://{SECRET}@127.0.0.1:1/v1"),
        "key in a query": remote(f"{away}?api_key={SECRET}"),
        "key that is a list": remote(away, api_key=[SECRET]),
        "key that is a mapping": remote(away, api_key={"key": SECRET}),
        "key beside a wrong field": remote(away, api_key=SECRET, modell="x"),
        "key under a wrong name": remote(away, api_keys=SECRET),
        "keys": {"serve": {"api_keys": {"a": key}}},
        "keys that are a list": {"serve": {"api_keys": [key]}},
        "keys that are a text": {"serve": {"api_keys": key}},
        "key that is nested": {"serve": {"api_keys": {"a": {"b": key}}}},
        "key that is short": {"serve": {"api_keys": {"a": SECRET[:8]}}},
        "key with a wrong name": {"serve": {"api_keys": {key: key}}},
        "key beside a wrong port": {"serve": {"api_keys": {"a": key}, "port": "x"}},
        "key in the wrong place": {"serve": {"api_key": key}},
        "key at the top": {"api_keys": {"a": key}},
        "no YAML after a key": f"serve: {{api_keys: {{a: {key}",
        "no YAML at a key": f"serve:\n  api_keys:\n    a: {key}: b\n",
        "a tab before a key": f"serve:\n\tapi_keys: {key}\n",
        "the same key twice": f"serve:\n  api_keys:\n    a: {key}\n    a: {key}x\n",
    }
    for name, config in _every(configs, dice, share):
        file = folder / "reasonrt.yaml"
        file.write_text(config if isinstance(config, str) else json.dumps(config))
        code, said = command(folder, "config", "show", "--config", str(file))
        outcome.note(code in (0, 2) and SECRET[:8] not in said and "Traceback" not in said, f"{name}: {code} {said}")
    code, said = command(folder, "config", "show", REASONRT_API_KEYS=key)
    outcome.note(code == 2 and SECRET[:8] not in said, f"key in the environment without a name: {code} {said}")


def wrong_files(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """A configuration, a certificate, a router that is not what its name says: one line."""
    deep = 100_000
    contents: dict[str, bytes] = {
        "binary": bytes(range(256)) * 40,
        "UTF-16": "serve: {}".encode("utf-16"),
        "latin-1": "serve: {host: ä}".encode("latin-1"),
        "large": b"a: " + b"x" * 6_000_000,
        "deep": b"a: " + b"[" * deep + b"]" * deep,
        "deep mapping": b"{a: " * deep,
        "of itself": b"engines: &a [*a]",
        "a mapping of itself": b"engines: &a {b: *a}",
        "many of one": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)),
        "keys twice": b"serve: {}\nserve: {port: 1}\n",
        "a list": b"- serve\n",
        "a text": b"serve",
        "a list for a mapping": b"engines: [1, 2]\n",
        "null for a mapping": b"policies: {target: 3}\n",
        "a date": b"2001-01-01: 2001-01-01\n",
        "a long number": b"concurrency: " + b"9" * 5000,
        "NUL": b"serve: {host: '\x00'}",
        "an object": b"a: !!python/object:os.system {}",
        "many documents": b"---\na: 1\n---\nb: 2\n",
    }
    for name, content in _every(contents, dice, share):
        (folder / "file").write_bytes(content)
        outcome.note(*_judged(f"configuration, {name}", command(folder, "config", "show", "--config", "file")))
        (folder / "file.json").write_bytes(content)
        outcome.note(*_judged(f"certificate, {name}", command(folder, "certificate", "show", "file.json")))
    for path in ("/dev/zero", "/dev/null/x", str(folder), "a\nb", "x" * 300):
        outcome.note(*_judged(f"configuration {path[:20]!r}", command(folder, "config", "show", "--config", path)))
        outcome.note(*_judged(f"certificate {path[:20]!r}", command(folder, "certificate", "show", path)))


def _judged(name: str, ended: tuple[int, str]) -> tuple[bool, str]:
    return is_one_line(*ended), f"{name}: {ended[0]} {ended[1][-200:]}"


LIES: dict[str, Any] = {
    "usage": b'{"choices": [{"text": "2", "finish_reason": "stop"}], "usage": {"completion_tokens": 1e400}}',
    "ids": b'{"choices": [{"text": "2", "token_ids": [4294967296], "index": 0, "finish_reason": "stop"}]}',
    "ids of text": b'{"choices": [{"text": "2", "token_ids": ["a"], "index": 0, "finish_reason": "stop"}]}',
    "a logprob": b'{"choices": [{"text": "2", "index": 0, "logprobs": {"token_logprobs": [-%s]}}]}' % (b"9" * 5000),
    "deep": b'{"choices": ' + b"[" * 100_000,
    "no choices": b'{"choices": null}',
    "a choice of text": b'{"choices": ["x"]}',
    "a text of null": b'{"choices": [{"text": null, "index": 0, "finish_reason": "stop"}]}',
    "another index": b'{"choices": [{"text": "2", "index": 7, "finish_reason": "stop"}]}',
    "a reason": b'{"choices": [{"text": "2", "index": 0, "finish_reason": {"a": 1}}]}',
    "binary": bytes(range(256)),
    "nothing": b"",
    "half": b'{"choices": [{"te',
    "a surrogate": b'{"choices": [{"text": "\\ud800", "index": 0, "finish_reason": "stop"}]}',
    "much": b'{"error": "' + b"x" * (64 << 20),
}


class Upstream:
    """A server of completions in a thread: right answers, and from a point on a lie.

    Args:
        lie: the body of what is asked for, from the second completion on; None for right answers.
        status: of HTTP, with it.
    """

    def __init__(self, lie: bytes | None = None, status: int = 200) -> None:
        self._lie, self._status, self.num_asked = lie, status, 0
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Upstream":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            start = (await reader.readuntil(b"\r\n\r\n")).decode()
            found = re.search(r"content-length: (\d+)", start, re.I)
            asked = await reader.readexactly(int(found[1]) if found else 0)
            status, body = self._reply(start, json.loads(asked or b"{}"))
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n".encode())
            writer.write(f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _reply(self, start: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        if "/completions" not in start:
            return 200, b'{"data": [{"id": "far", "max_model_len": 4096}]}'
        self.num_asked += 1
        is_stream = asked.get("stream")
        if self._lie is not None and self.num_asked > 1:
            is_event = is_stream and self._status == 200
            return self._status, b"data: " + self._lie + b"\n\ndata: [DONE]\n\n" if is_event else self._lie
        choice = {"text": " So it is \\boxed{7}.", "index": 0, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}).encode()
        return 200, b"data: " + body + b"\n\ndata: [DONE]\n\n" if is_stream else body


def lying_upstreams(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """An upstream's answer that is none: an error in one line, or an answer; never its own text at length."""
    for name, lie in _every(LIES, dice, share):
        for status in (200, 500):
            with Upstream(lie, status) as upstream:
                file = folder / "reasonrt.yaml"
                file.write_text(json.dumps(remote(f"http://127.0.0.1:{upstream.port}/v1")))
                code, said = command(folder, "solve", "1 + 1?", "--policy", "draft", "--config", str(file))
            is_held = (code == 0 and status == 200) or is_one_line(code, said)
            outcome.note(is_held, f"{name}, {status}: {code} {said[-300:]}")


def evaluate(folder: Path, upstream: Upstream, num: int, most_bytes: int | None = None) -> tuple[int, str]:
    file = folder / "reasonrt.yaml"
    file.write_text(json.dumps(remote("http://127.0.0.1:1/v1")).replace(":1/v1", f":{upstream.port}/v1"))
    arguments = ["--task", "zoo", "--policy", "draft", "--limit", str(num), "--out", "run", "--config", str(file)]
    return command(folder, "eval", *arguments, most_bytes=most_bytes)


def full_disks(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """A disk that is full at any byte: the same command continues when there is room, with nothing done twice."""
    for index in range(max(1, round(12 * share))):
        place, num, most_bytes = folder / str(index), 8, dice.randint(1, 6000)
        place.mkdir()
        with Upstream() as upstream:
            first = evaluate(place, upstream, num, most_bytes)
            journal = place / "run" / "journal.jsonl"
            kept = max(0, len(journal.read_bytes().splitlines()) - 2) if journal.exists() else 0
            before = upstream.num_asked
            code, said = evaluate(place, upstream, num)
            asked = upstream.num_asked - before - 1  # its start asks for one token
        is_held = "Traceback" not in first[1] and code == 0 and asked <= num - kept
        what = f"{most_bytes} bytes: first {first[0]} {first[1][-100:]}, then {code} {said[-200:]}, {asked} of {num}"
        outcome.note(is_held, f"{what} asked again, {kept} were kept")


def broken_journals(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """A journal with a line that is none: one line, which says which."""
    lines: dict[str, bytes] = {
        "deep": b"[" * 100_000,
        "null": b"null",
        "a long number": b'{"problem": ' + b"9" * 5000 + b"}",
        "binary": bytes(range(1, 10)) + b"\xff\xfe",
        "another record": b'{"problem": "x"}',
        "a text": b'"x"',
        "NaN": b'{"problem": NaN, "label": 1}',
        "NUL": b"\x00" * 100,
    }
    with Upstream() as upstream:
        code, said = evaluate(folder, upstream, 4)
        outcome.note(code == 0, f"an evaluation: {code} {said[-300:]}")
        journal = folder / "run" / "journal.jsonl"
        whole = journal.read_bytes().splitlines(keepends=True) if journal.exists() else [b"{}\n"]
        for name, line in _every(lines, dice, share):
            at = dice.randrange(1, len(whole)) if len(whole) > 1 else 0
            journal.write_bytes(b"".join([*whole[:at], line + b"\n", *whole[at:]]))
            code, said = evaluate(folder, upstream, 4)
            outcome.note(is_one_line(code, said) and f"line {at + 1}" in said, f"{name}: {code} {said[-300:]}")
        for change in ({"settings": None}, {"settings": 1}, {"format": None}):
            header = json.loads(whole[0]) | change
            journal.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(whole[1:]))
            code, said = evaluate(folder, upstream, 4)
            outcome.note(is_one_line(code, said), f"{change}: {code} {said[-300:]}")


def useless_keys(folder: Path, dice: random.Random, share: float, outcome: Outcome) -> None:
    """A key that no caller can send is refused when the configuration is read."""
    rest = "0123456789abcdef"
    keys = [f"schlüssel-{rest}", f" {rest}", f"{rest} ", f"{rest}\n", f"{rest}\t{rest}", f"{rest}\x00", "\u3000" + rest]
    for key in dice.sample(keys, max(1, round(len(keys) * min(1, share)))):
        (folder / "reasonrt.yaml").write_text(json.dumps({"serve": {"api_keys": {"a": key}}}))
        outcome.note(*_judged(f"{key!r}", command(folder, "config", "show", "--config", "reasonrt.yaml")))


ON_FILES: Mapping[str, Spoil] = {
    "9 printed secrets": printed_secrets,
    "10 wrong files": wrong_files,
    "11 lying upstreams": lying_upstreams,
    "12 full disks": full_disks,
    "13 broken journals": broken_journals,
    "22 useless keys": useless_keys,
}
