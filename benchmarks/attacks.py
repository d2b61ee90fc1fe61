"""What hostile callers send, by kind, and what a server must do with it, seen from outside, by sockets."""

import asyncio
import json
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from reasonrt.engines.scripted import continuing
from reasonrt.policies.stopping.probes import SUFFIX

KEPT_BYTES = 2000  # that an answer to nonsense may have
HEADERS_S, BODY_S = 10.0, 30.0  # that a caller has for them
SLACK_S = 5.0
UNHEARD_S = 15.0  # for the kernel to bring a connection whose last packet met a full backlog
_CLOSED_S = 2.0
_REFUSED = (400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 431, 501, 505)
_BUSY = (429, 503)


@dataclass(frozen=True)
class Target:
    """A server, and as whom it is attacked.

    Attributes:
        key: of the attacker; the empty one where the server has none.
        address: that the attacker comes from.
        control_tokens: of the model behind `draft`.
        seconds: that an attack takes which has no end by itself.
        large_bytes: of a body that the server refuses.
    """

    port: int
    key: str = ""
    address: str = "127.0.0.2"
    control_tokens: Sequence[str] = ("<|im_start|>", "<|im_end|>")
    seconds: float = 5.0
    large_bytes: int = 18 << 20


@dataclass
class Outcome:
    """How many inputs there were, and what was wrong where one was not held."""

    inputs: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        return self.inputs - len(self.broken)

    def note(self, holds: bool, what: str) -> None:
        self.inputs += 1
        if not holds:
            self.broken.append(what[:300])


@dataclass
class Reply:
    """What came back: no status where nothing did."""

    status: int = 0
    head: str = ""
    body: bytes = b""
    is_closed: bool = False
    seconds: float = 0.0

    @property
    def value(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.status} {self.body[:120]!r}{' closed' if self.is_closed else ''} after {self.seconds:.1f} s"


Attack = Callable[[Target, random.Random, int, Outcome], Coroutine[Any, Any, None]]


async def send(target: Target, content: bytes, *, wait_s: float = 20.0, looks_closed: bool = False) -> Reply:
    """Send bytes as they are on a connection of their own.

    Args:
        looks_closed: wait a moment after the answer, to see whether the server closes the connection.
    """
    reply, began = Reply(), time.perf_counter()
    try:
        async with asyncio.timeout(wait_s):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", target.port, local_addr=(target.address, 0), limit=1 << 24
            )
    except OSError:
        return Reply(is_closed=True, seconds=time.perf_counter() - began)
    except TimeoutError:
        return Reply(seconds=wait_s)
    writing = asyncio.create_task(_write(writer, content))
    try:
        async with asyncio.timeout(wait_s):
            await _read(reader, reply)
        if looks_closed and not reply.is_closed:
            async with asyncio.timeout(_CLOSED_S):
                reply.is_closed = not await reader.read(1)
    except (OSError, asyncio.IncompleteReadError):
        reply.is_closed = True
    except (TimeoutError, ValueError):
        pass
    finally:
        writing.cancel()
        writer.transport.abort()
    reply.seconds = time.perf_counter() - began
    return reply


async def _write(writer: asyncio.StreamWriter, content: bytes) -> None:
    with suppress(OSError):
        for at in range(0, len(content), 1 << 16):
            writer.write(content[at : at + (1 << 16)])
            await writer.drain()


async def _read(reader: asyncio.StreamReader, reply: Reply) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    reply.head = head.decode("latin-1")
    reply.status = int(head.split()[1])
    fields = dict(line.lower().split(": ", 1) for line in reply.head.split("\r\n")[1:] if ": " in line)
    if "content-length" in fields:
        reply.body = await reader.readexactly(int(fields["content-length"]))
    elif "chunked" in fields.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            reply.body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        reply.body = await reader.read()
        reply.is_closed = True


def head(target: Target, start: str = "GET /v1/models", *more: str, host: str = "localhost") -> bytes:
    """The head of a request, with the target's key."""
    lines = [f"{start} HTTP/1.1", f"host: {host}", *([f"authorization: Bearer {target.key}"] if target.key else [])]
    return "\r\n".join([*lines, *more, "", ""]).encode("utf-8", "surrogatepass")


def post(target: Target, body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ("content-type: application/json", f"content-length: {len(content)}")
    return head(target, f"POST {path}", *lines) + content


def chat(model: str = "draft", content: str = "3 + 4?", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8} | fields


async def _each(num: int, one: Callable[[], Awaitable[None]], concurrency: int = 4) -> None:
    left = iter(range(num))

    async def work() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def oversized_heads(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Headers of any size and number, and URLs, without a key: refused, and the connection closed."""

    async def one() -> None:
        size = int(2 ** dice.uniform(14.1, 23))
        start, *lines = dice.choice(
            [
                ["GET /health", f"x: {'a' * size}"],
                ["GET /health", f"{'a' * size}: x"],
                ["GET /health", *(f"x-{index}: {'a' * 900}" for index in range(90))],
                ["GET /health", *(f"x-{index}: a" for index in range(101 + size // 100))],
                [f"GET /{'a' * size}"],
                [f"GET /health?{'a' * size}"],
                ["GET /health", f"cookie: {'a=b; ' * (size // 5)}"],
                ["POST /v1/chat/completions", "transfer-encoding: chunked", *(["x: y"] * (101 + size // 1000))],
            ]
        )
        content = "\r\n".join([f"{start} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()
        if dice.random() < 0.3:
            content = content[: -dice.randint(2, 60)]  # it never ends
        reply = await send(target, content, looks_closed=True)
        is_refused = reply.status in (400, 414, 431) or not reply.status
        outcome.note(is_refused and reply.is_closed, f"{len(content)} bytes, {start[:20]}: {reply}")

    await _each(num, one)


async def slow_callers(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Connections that say nothing, or a byte a second: closed when their time is over."""
    begun = head(target, "POST /v1/chat/completions", "content-type: application/json", "content-length: 1000")

    async def one(index: int) -> None:
        is_body = index % 20 == 0
        content = begun if is_body else begun[: dice.choice([0, 1, 40, len(begun) - 2])]
        patience_s = (BODY_S if is_body else HEADERS_S) + SLACK_S + (0 if content else UNHEARD_S)
        trickles = dice.random() < 0.5
        began = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", target.port, local_addr=(f"127.0.0.{2 + index % 4}", 0)
            )
        except OSError:
            outcome.note(True, "")  # there is no place for it
            return
        try:
            writer.write(content)
            reading = asyncio.ensure_future(reader.read(1 << 16))
            while not reading.done() and time.perf_counter() - began < patience_s:
                await asyncio.wait({reading}, timeout=1)
                if trickles:
                    writer.write(b"a")
            is_over = reading.done() or not _has_arrived(writer, target.port)
            reading.cancel()
        except OSError:
            is_over = True
        finally:
            writer.transport.abort()
        what = "a body" if is_body else f"{len(content)} bytes of a head"
        outcome.note(is_over, f"{what}: open after {time.perf_counter() - began:.0f} s")

    with suppress(OSError):
        await asyncio.gather(*map(one, range(num)))


SCALARS: tuple[Any, ...] = (None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 10**400, 2**63, "", "x", "\ud800", "\x00")
SCALARS = (*SCALARS, "x" * 5000, "draft", "auto", "zoo:none", "/etc/passwd", "../" * 20)


def any_json(dice: random.Random, depth: int = 3) -> Any:
    match dice.randrange(4 if depth else 1):
        case 0 | 1:
            return dice.choice(SCALARS)
        case 2:
            return [any_json(dice, depth - 1) for _ in range(dice.randrange(4))]
        case _:
            return {str(dice.choice(SCALARS))[:20]: any_json(dice, depth - 1) for _ in range(dice.randrange(4))}


async def odd_options(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Any JSON value for any option of any policy: a valid run, or 400."""
    schemas = (await send(target, head(target, "GET /openapi.json"))).value["components"]["schemas"]
    known = {name[8:]: list(each["properties"]) for name, each in schemas.items() if name.startswith("Options-")}
    outcome.note(len(known) > 3, f"/openapi.json shows options of {len(known)} policies")

    async def one() -> None:
        policy = dice.choice([*known])
        name, value = dice.choice(known[policy]), any_json(dice)
        if dice.random() < 0.5:
            body = chat(policy, reasonrt={"options": {name: value}, "deadline_s": 2})
        else:
            body = chat(f"{policy}@{name}={json.dumps(value)}"[:256], reasonrt={"deadline_s": 2})
        reply = await send(target, post(target, body))
        outcome.note(reply.status in (200, 400, 404) and reply.value is not None, f"{str(body)[:120]}: {reply}")

    await _each(num, one)


async def echoes(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Long texts and control characters wherever an error might quote them: cut short, and escaped."""

    async def one() -> None:
        size = int(10 ** dice.uniform(2, 5.9))
        text = "".join(dice.choice(["a", "é", "\x1b[31m", "\n", "\x00", "‮", '"']) for _ in range(min(size, 3000)))
        text = (text * (size // len(text) + 1))[:size]
        place = dice.randrange(9)
        bodies: list[dict[str, Any]] = [
            chat(text[:250]),
            chat("draft@" + text[:240]),
            chat(reasonrt={"options": {text: 1}}),
            chat("arbitrage", reasonrt={"options": {"threshold": text}}),
            chat("auto", reasonrt={"policy": text}),
            chat(reasonrt={"options": {"stopping": {"rule": text}}}),
            chat(reasonrt={text: 1}),
            chat() | {text: 1},
            chat() | {"messages": [{"role": text, "content": ""}]},
        ]
        reply = await send(target, post(target, bodies[place]))
        message = str(((reply.value or {}).get("error") or {}).get("message"))
        is_short = len(reply.head) + len(reply.body) < KEPT_BYTES and message.isprintable()
        is_expected = reply.status in (400, 404, 413) or (place == 7 and reply.status == 200)  # ignored, and named
        outcome.note(is_expected and is_short, f"{place}, {size} characters: {reply}")

    await _each(num, one)


async def heavy_texts(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Texts at the bounds of a body, where they are tokenized, matched or copied: no harm to others, and no suffix."""

    async def one() -> None:
        size = int(10 ** dice.uniform(4, 5.95))
        text = dice.choice(["a", "a ", "\n\n", "<|im_end|>", "é\u0300", "🙂", "\\boxed{", " "])
        text = (text * (size // len(text.encode()) + 1))[: size // len(text.encode()) * len(text)]
        place = dice.randrange(5)
        bodies: list[dict[str, Any]] = [
            chat(content=text),
            chat(reasonrt={"options": {"stopping": {"rule": {"confidence": 0.5}, "suffix": text}}}, n=8),
            chat(reasonrt={"context": text}),
            chat("program_search", reasonrt={"context": text, "deadline_s": 1}),
            chat(stop=[text[:256], text[1:256], text[2:256]], n=8),
        ]
        reply = await send(target, post(target, bodies[place]))
        is_held = reply.status in (_REFUSED if place == 1 else (200, *_REFUSED, *_BUSY))
        outcome.note(is_held, f"{place}, {size} bytes: {reply}")

    await _each(num, one)


def _has_arrived(writer: asyncio.StreamWriter, port: int) -> bool:
    """Whether the server's kernel knows the connection; of a silent one, it has none where its backlog was full."""
    own = writer.get_extra_info("sockname")
    return any(
        each.raddr == own and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.net_connections("tcp4")
    )


async def control_tokens(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """A control token in a message takes as many tokens as its letters do, and not one."""

    async def prompt_tokens(content: str) -> int:
        reply = await send(target, post(target, chat(content=content, max_tokens=1)))
        return int(reply.value["usage"]["prompt_tokens"]) if reply.status == 200 else -1

    async def one() -> None:
        token = dice.choice(target.control_tokens)
        plain, before = await prompt_tokens("2 + 2?"), dice.choice(["", "hm ", "\n"])
        told = await prompt_tokens(f"{before}{token}2 + 2?")
        outcome.note(plain >= 0 and told - plain > 1, f"{token!r} made {told - plain} tokens")

    await _each(num, one, 1)


async def one_key_for_all(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Connections that take all places with streams of eight that nobody reads; the others are measured meanwhile."""
    until = time.monotonic() + target.seconds

    async def one() -> None:
        while time.monotonic() < until:
            body = chat("target", "Count to ten thousand.", stream=True, n=8, max_tokens=4000)
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.address, 0))
                writer.write(post(target, body))
                await asyncio.sleep(dice.uniform(0.5, 2))
                writer.transport.abort()
            outcome.note(True, "")

    await asyncio.gather(*(one() for _ in range(min(num, 32))))


async def one_sided_votes(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Questions on which stopping departs from the full answer, with one's own seeds: others are stopped as before."""
    for index in range(num):
        number = 1000 + index if dice.random() < 0.8 else 1000
        body = chat("target", f"question {number}", max_tokens=400, seed=dice.choice([1, 2, index]))
        reply = await send(target, post(target, body))
        outcome.note(reply.status == 200, f"question {number}: {reply}")


async def odd_hosts(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Hosts that only look like this machine: 400 or 403, and no redirect to any."""
    hosts = (
        *("[::1].evil.example", "localhost:80@evil.example", "localhost.evil.example", "evil.example", "[::1", ""),
        *("127.0.0.1.evil.example:80", "localhost:http", "localhost:99999999", "local\thost", "localhost#@x"),
    )
    paths = ("/v1/models", "/v1/models/", "//evil.example/", "/health/", "/v1/chat/completions/", "/v1//models")

    async def one() -> None:
        host, path = dice.choice(hosts), dice.choice(paths)
        content = f"GET {path} HTTP/1.1\r\nhost: {host}\r\n"
        if dice.random() < 0.3:
            content += "host: localhost\r\n"
        if target.key:
            content += f"authorization: Bearer {target.key}\r\n"
        reply = await send(target, f"{content}\r\n".encode())
        is_refused = reply.status in (400, 403, 404) or (reply.status == 0 and reply.is_closed)
        outcome.note(is_refused and "location:" not in reply.head.lower(), f"{content!r}: {reply}")

    await _each(num, one)


async def told_secrets(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """An upstream that is down, or answers with an error: its address, password and words stay with the operator."""

    async def one() -> None:
        reply = await send(target, post(target, chat("draft@engine=away", stream=dice.random() < 0.5)))
        said = reply.body.decode(errors="replace")
        is_told = any(word in said for word in ("SECRET", "127.0.0.1", "http:", "upstream says"))
        has_failed = reply.status in (500, 502, 503) or '"error"' in said
        outcome.note(has_failed and not is_told, f"{reply}")

    await _each(num, one)


async def many_bodies(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Large bodies, all begun before any is finished: read once there is a place for them, or refused."""
    body = json.dumps(chat(content="a " * 450_000)).encode()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.address, 0))
        except OSError:
            outcome.note(True, "")
            return
        reply = Reply()
        try:
            writing = asyncio.create_task(_write(writer, post(target, body)[:-1000]))
            await asyncio.sleep(dice.uniform(1, 2))
            writing.cancel()
            writer.write(b"a" * 1000)  # no JSON any more
            async with asyncio.timeout(BODY_S + SLACK_S):
                await _read(reader, reply)
        except (OSError, asyncio.IncompleteReadError):
            reply.is_closed = True
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()
        outcome.note(reply.status in (*_REFUSED, *_BUSY) or reply.is_closed, f"{reply}")

    await asyncio.gather(*(one() for _ in range(num)))


async def malformed(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """What is no HTTP, or says two things: an error, or the end of the connection; never a 5xx."""
    whole = post(target, chat())

    async def one() -> None:
        content = bytearray(dice.choice(list(_oddities(target, whole))))
        for _ in range(dice.choice([0, 0, 1, 5])):
            content[dice.randrange(len(content))] = dice.randrange(256)
        reply = await send(target, bytes(content), wait_s=3)
        outcome.note(reply.status < 500 or reply.status in (501, 505), f"{bytes(content[:120])!r}: {reply}")

    await _each(num, one, 8)


def _oddities(target: Target, whole: bytes) -> Iterator[bytes]:
    start, _, body = whole.partition(b"\r\n\r\n")
    yield whole
    yield whole.replace(b"HTTP/1.1", b"HTTP/9.9")
    yield whole.replace(b"content-length: ", b"content-length: -")
    yield start + b"\r\ncontent-length: 1\r\n\r\n" + body
    yield start + b"\r\ntransfer-encoding: chunked\r\n\r\n" + b"ffffffffffffffffff\r\n" + body
    yield start + b"\r\ntransfer-encoding: chunked\r\n\r\n" + b"-1\r\n" + body
    yield start + b"\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    yield start + b"\r\nexpect: 100-continue\r\n\r\n" + body
    yield start + b"\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    yield b"GET\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield head(target, "GET /v1/models/%00%ff%2e%2e%2f")
    yield head(target, "GET /v1/models", "x: \x00\x01")
    yield head(target, "GET http://evil.example/v1/models")
    yield head(target, "CONNECT evil.example:443")
    yield head(target, "TRACE /v1/models")
    yield whole.replace(b'"3 + 4?"', b'"' + b"\\ud800" + b'"')
    yield whole.replace(b'"3 + 4?"', b"[" * 5000)
    yield whole.replace(b'"3 + 4?"', b"1" * 5000)
    yield whole.replace(body, b"\xff\xfe" + body[2:])
    yield whole * 3


OVER_THE_WIRE: Mapping[str, Attack] = {
    "1 oversized heads": oversized_heads,
    "2 slow callers": slow_callers,
    "3 odd options": odd_options,
    "4 echoes": echoes,
    "5 heavy texts": heavy_texts,
    "6 control tokens": control_tokens,
    "7 one key for all": one_key_for_all,
    "8 one-sided votes": one_sided_votes,
    "16 odd hosts": odd_hosts,
    "23 told secrets": told_secrets,
    "25 many bodies": many_bodies,
    "malformed": malformed,
}


LEFT = -1
MIXED: Mapping[str, tuple[int, Callable[[Target, str], bytes]]] = {
    "whole": (200, lambda target, text: post(target, chat(content=text, max_tokens=60))),
    "streamed": (200, lambda target, text: post(target, chat(content=text, stream=True, max_tokens=60))),
    "choices": (200, lambda target, text: post(target, chat(content=text, n=4, max_tokens=20))),
    "sampled": (200, lambda target, text: post(target, chat("self_consistency", text, max_tokens=20))),
    "resumed": (200, lambda target, text: post(target, chat(content=f"die {text}", max_tokens=60))),
    "stopped": (200, lambda target, text: post(target, chat("target", f"question {text[-2:]}", max_tokens=400))),
    "left": (LEFT, lambda target, text: post(target, chat("target", text, max_tokens=400))),
    "left stream": (LEFT, lambda target, text: post(target, chat("target", text, stream=True, n=2, max_tokens=400))),
    "left body": (LEFT, lambda target, text: post(target, chat())[:-10]),
    "wrong option": (400, lambda target, text: post(target, chat(reasonrt={"options": {text: 1}}))),
    "wrong key": (401, lambda target, text: head(Target(target.port, text))),
    "no model": (404, lambda target, text: post(target, chat(f"none {text[:100]}"))),
    "no path": (404, lambda target, text: head(target, "GET /none")),
    "no JSON": (400, lambda target, text: post(target, b"{" + text.encode())),
    "large body": (413, lambda target, text: post(target, chat(content="a" * target.large_bytes))),
}
"""Requests of every end, with the status that each has; what is `LEFT` is given up while it is worked on."""


async def mixed(target: Target, dice: random.Random, num: int, outcome: Outcome) -> None:
    """Requests that are served, streamed, left, refused, resumed and stopped, eight at a time."""

    async def one() -> None:
        kind, text = dice.choice([*MIXED]), f"{dice.random()}"
        status, make = MIXED[kind]
        reply = await send(target, make(target, text), wait_s=dice.uniform(0, 0.1) if status == LEFT else 30.0)
        is_cut = kind == "large body" and reply.is_closed
        outcome.note(status == LEFT or reply.status == status or is_cut, f"{kind}: {reply}")

    await _each(num, one, 8)


class MortalScript:
    """The script of an engine that dies when a request says so, once for each request."""

    def __init__(self) -> None:
        self.engine: Any = None
        self._died = deque[str](maxlen=1000)

    def __call__(self, prompt: str, sampling: Any) -> str:
        found = re.search("die [^\n]+", prompt)
        if found and found[0] not in self._died:
            self._died.append(found[0])
            self.engine.life += 1
        return continuing(TEXT)(prompt, sampling)


TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"


def settling(prompt: str, sampling: Any) -> str:
    """A model that is sure of 7 after four steps; on each fiftieth question, and from 1000 on, of 8 until it ends."""
    found = re.search(r"question (\d+)", prompt)
    number = int(found[1]) if found else 1
    text = "<think>\n" + "".join(f"step {index} goes on\n\n" for index in range(12)) + "</think>\n\n\\boxed{7}"
    before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    done = before.count("step")
    if probed and done < 12:
        settled = "8" if number >= 1000 or number % 50 == 0 else "7"
        return f"{settled if done > 3 else done}}}"[len(begun) :]
    return continuing(text)(prompt, sampling)
