"""Servers that behave, and that do not, behind `RemoteEngine`."""

import asyncio
import json
import shutil
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none
from tokenizers import Tokenizer

from reasonrt import FunctionTool, Limits, Request, Runtime
from reasonrt.boundaries import BoundaryKind, boundaries_of
from reasonrt.config import RemoteConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.vllm_calls import bounded
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError
from reasonrt.ports import Capability
from reasonrt.tasks import cancel
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, Message, Sampling, TokenDelta
from reasonrt.writing import write_step

PROMPT = [1, 2, 3]
END, FULL_STOP_BLANK_LINE = 0, 258
Reply = Callable[["Call"], Awaitable[None]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that names no time is asked again at once."""
    monkeypatch.setattr("reasonrt.engines.remote_wire._WAIT", wait_none())


class Call:
    """One request to the fake server, to be answered."""

    def __init__(self, path: str, headers: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.path, self.headers, self.body, self.writer = path, headers, body, writer

    async def answer(self, status: int, content: object) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.writer.write(b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(data)))
        self.writer.write(data)
        await self.writer.drain()

    async def stream(self, *events: object, ends: bool = True) -> None:
        self.writer.write(b"HTTP/1.1 200 X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            line = f"data: {data}\r\n\r\n".encode()
            self.writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        if ends:
            self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


class FakeServer:
    """Answers by `reply`; before that, `start` finds a server that gives what `probe` holds.

    It takes the fields in `holds` to say what a text must be, and others in silence, or not at all if it `is_strict`.
    """

    def __init__(
        self,
        reply: Reply | None = None,
        probe: dict[str, Any] | None = None,
        holds: frozenset[str] = frozenset(),
        *,
        is_strict: bool = False,
    ) -> None:
        self.reply, self.probe = reply, probe if probe is not None else WITH_IDS
        self.holds, self.is_strict = holds, is_strict
        self.calls: list[Call] = []
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lengths = [line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length")]
            body = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else {}
            call = Call(head.split()[1], head, body, writer)
            self.calls.append(call)
            if call.path == "/v1/models":
                await call.answer(200, {"data": [{"id": "m", "max_model_len": 512}]})
            elif self.is_strict and body.keys() & STRUCTURES - self.holds:
                await call.answer(400, {"error": {"message": "extra fields not permitted"}})
            elif body.get("stream") and body["max_tokens"] == 1 and self.probe:
                await call.stream("[DONE]")
            elif not body.get("stream") and self.probe:
                choice = self.probe | held_by(self.holds, body)
                await call.answer(200, {"choices": [choice] * body.get("n", 1)})
            elif self.reply:
                await self.reply(call)
                if body.get("stream") and await reader.read() == b"":
                    self.hung_up.set()
        writer.close()


GUIDED = frozenset({"guided_json", "guided_regex", "guided_choice", "guided_grammar"})
SGLANG = frozenset({"response_format", "regex", "ebnf"})
STRUCTURES = GUIDED | SGLANG | {"structured_outputs"}


def held_by(fields: frozenset[str], body: dict[str, Any]) -> dict[str, str]:
    """The text of a server that takes these fields; nothing where it was asked for nothing that it knows."""
    for field in fields & body.keys():
        value = body[field]
        kind = field.removeprefix("guided_").replace("ebnf", "grammar")
        if field == "structured_outputs":
            ((kind, value),) = value.items()
        elif field == "response_format":
            kind, value = value["type"].replace("json_schema", "json"), value.get("json_schema", {}).get("schema")
        if kind == "structural_tag":
            kind, value = "json", json.loads(value)["format"]["json_schema"]
        if kind == "json":
            return {"text": "{\n  " + "".join(f'"{name}" : 1' for name in value["required"])}
        if kind == "json_object":
            return {"text": ' { "a": 1 }'}
        return {"text": value[0] if kind == "choice" else value.removeprefix('root ::= "').removesuffix('"')}
    return {}


WITH_IDS: dict[str, Any] = {
    "text": "x",
    "token_ids": [1],
    "logprobs": {"top_logprobs": [{f"token_id:{token_id}": -1.0 - token_id for token_id in range(5)}]},
}
WITH_TEXT: dict[str, Any] = {"text": "x", "logprobs": {"top_logprobs": [{"x": -0.5, "y": -1.5}]}}


@asynccontextmanager
async def engine_on(server: FakeServer, folder: Path, login: str = "", **settings: Any) -> AsyncIterator[RemoteEngine]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    defaults: dict[str, Any] = {"timeout_s": 10.0, "tokenizer": folder}
    engine = RemoteEngine("far", f"http://{login}127.0.0.1:{port}/v1/", "m", **defaults | settings)
    try:
        yield engine
    finally:
        await engine.aclose()
        listening.close()


async def collect(engine: RemoteEngine, sampling: Sampling) -> list[TokenDelta]:
    async with aclosing(engine.generate(PROMPT, sampling)) as stream:
        return [delta async for delta in stream]


def chunk(token_ids: list[Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"text": "", "token_ids": token_ids, "finish_reason": finish, **fields}]}


def text_chunk(text: str, completion_tokens: int, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    usage = {"completion_tokens": completion_tokens}
    return {"choices": [{"text": text, "finish_reason": finish, **fields}], "usage": usage}


def replies(*events: object, ends: bool = True) -> Reply:
    return lambda call: call.stream(*events, ends=ends)


def refuses(status: int, content: object) -> Reply:
    return lambda call: call.answer(status, content)


async def test_start_finds_out_what_the_server_can_do(tokenizer_folder: Path) -> None:
    server = FakeServer()
    async with engine_on(server, tokenizer_folder, api_key="secret") as engine:
        assert await engine.start() is await engine.start()

        assert engine.capabilities == {Capability.TOKEN_IDS, Capability.LOGPROBS, Capability.READ}
        assert engine.max_model_len == 512
        assert [call.path for call in server.calls[:2]] == ["/v1/models", "/v1/completions"]
        assert all("Bearer secret" in call.headers for call in server.calls)


async def test_ids_and_usage_of_a_generation(tokenizer_folder: Path) -> None:
    usage = {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    events = (chunk([]), chunk([7, 8]), chunk([END], "stop"), {"choices": [], "usage": usage}, "[DONE]")
    server = FakeServer(replies(*events))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        deltas = await collect(engine, Sampling(9, temperature=0.5, seed=3, stop_token_ids=frozenset({5})))

    assert deltas == [TokenDelta((7, 8)), TokenDelta((END,), (), FinishReason.STOP, cached_tokens=2)]
    sent = server.calls[-1].body
    assert sent["prompt"] == PROMPT
    assert sent["stop_token_ids"] == [END, 5]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["seed"]) == (9, 0.5, 1.0, 3)
    assert "logprobs" not in sent


def streams(server: FakeServer) -> list[dict[str, Any]]:
    """What was asked of it, its start left out."""
    return [call.body for call in server.calls if call.body.get("stream") and call.body["max_tokens"] > 1]


def chosen(index: int, token_ids: list[int], finish: str | None = None) -> dict[str, Any]:
    return chunk(token_ids, finish, index=index)


async def test_samples_of_one_prompt_are_one_call_and_come_as_they_end(tokenizer_folder: Path) -> None:
    usage = {"completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}}
    events = (
        *(chosen(1, [7]), chosen(0, [8]), chosen(1, [9, END], "stop"), chosen(0, [8], "length")),
        *(chosen(2, [END], "stop"), {"choices": [], "usage": usage}, "[DONE]"),
    )
    server = FakeServer(replies(*events))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        async with aclosing(engine.generate_whole(PROMPT, [Sampling(3, temperature=0.5)] * 3)) as stream:
            ended = [item async for item in stream]

    assert [(index, whole.token_ids, whole.finish_reason) for index, whole in ended] == [
        (1, (7, 9, END), FinishReason.STOP),
        (0, (8, 8), FinishReason.LENGTH),
        (2, (END,), FinishReason.STOP),
    ]
    assert (stream.generated_tokens, stream.passes, stream.cached_tokens) == (6, 6, 2)
    (sent,) = streams(server)
    assert (sent["n"], sent["prompt"]) == (3, PROMPT)
    assert sent["stream_interval"] > 1


async def test_events_hold_more_tokens_where_more_is_streamed_by_steps(tokenizer_folder: Path) -> None:
    asked, all_are_there = list[int](), asyncio.Event()

    async def wait(call: Call) -> None:
        asked.append(call.body.get("stream_interval", 1))
        if len(asked) == 80:
            all_are_there.set()
        await asyncio.sleep(10)

    server = FakeServer(wait)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        samplings = [Sampling(9, by_step=index != 20) for index in range(80)]
        streams = [engine.generate(PROMPT, sampling) for sampling in samplings]
        reading = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.wait_for(all_are_there.wait(), 20)
        await cancel(*reading)
        for stream in streams:
            await stream.aclose()

        assert engine.num_open == 0
    assert sorted(asked) == sorted(min(8, max(1, num // 8)) if num != 21 else 1 for num in range(1, 81))


@pytest.mark.parametrize(
    "samplings", [[Sampling(2)] * 2, [Sampling(2, temperature=0.5, seed=4)] * 2, [Sampling(2), Sampling(3)]]
)
async def test_what_a_server_would_draw_otherwise_is_asked_one_by_one(
    tokenizer_folder: Path, samplings: list[Sampling]
) -> None:
    """vLLM refuses several greedy ones, and gives each its own seed."""
    server = FakeServer(replies(chunk([7]), chunk([8], "length"), "[DONE]"))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        async with aclosing(engine.generate_whole(PROMPT, samplings)) as stream:
            ended = [item async for item in stream]

    assert sorted(ended) == [(index, TokenDelta((7, 8), (), FinishReason.LENGTH)) for index in range(2)]
    sent = streams(server)
    assert sorted(body["max_tokens"] for body in sent) == sorted(sampling.max_tokens for sampling in samplings)
    assert not any("n" in body for body in sent)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((chosen(0, [7], "stop"), "[DONE]"), "without a reason"),
        ((chosen(0, [7], "stop"), chosen(2, [7], "stop"), "[DONE]"), "no completion"),
        ((chosen(0, [7], "stop"), chosen(-1, [7], "stop"), "[DONE]"), "no completion"),
        ((chosen(0, [7], "stop"), chosen(1, [7], "abort"), "[DONE]"), "ended a generation by 'abort'"),
    ],
)
async def test_one_failed_sample_is_the_error_of_all(
    tokenizer_folder: Path, events: tuple[object, ...], message: str
) -> None:
    async with engine_on(FakeServer(replies(*events)), tokenizer_folder) as engine:
        await engine.start()
        stream = engine.generate_whole(PROMPT, [Sampling(4, temperature=0.5)] * 2)
        assert await anext(stream) == (0, TokenDelta((7,), (), FinishReason.STOP))
        with pytest.raises(EngineError, match=message):
            await anext(stream)
        await stream.aclose()


async def test_samples_that_are_closed_early_hang_up(tokenizer_folder: Path) -> None:
    server = FakeServer(replies(chosen(0, [7], "stop"), chosen(1, [7]), ends=False))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        stream = engine.generate_whole(PROMPT, [Sampling(9, temperature=0.5)] * 2)
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 30)


async def test_without_ids_the_text_is_tokenized_here(tokenizer_folder: Path) -> None:
    events = (
        text_chunk("one\u2028", 2),  # a line separator, which must not cut the event in two
        text_chunk("<|end|>two", 3, "stop", stop_reason=FULL_STOP_BLANK_LINE),
        "[DONE]",
    )
    async with engine_on(FakeServer(replies(*events), WITH_TEXT), tokenizer_folder) as engine:
        await engine.start()
        stream = engine.generate(PROMPT, Sampling(50, stop_token_ids=frozenset({FULL_STOP_BLANK_LINE})))
        deltas = [delta async for delta in stream]

        assert engine.capabilities == {Capability.READ}
        ids = [token_id for delta in deltas for token_id in delta.token_ids]
        assert engine.tokenizer.decode(ids) == "one\u2028<|end|>two.\n\n"  # written by the model, and no end
        assert ids[-1] == FULL_STOP_BLANK_LINE
        assert stream.generated_tokens == 3  # by the server's count, not by ours
        with pytest.raises(CapabilityError, match="no log-probabilities by token id"):
            await collect(engine, Sampling(5, logprobs=True))


@pytest.mark.parametrize("stop", [{}, {"stop_reason": None}, {"matched_stop": END}])
async def test_text_that_ends_after_a_blank_line_has_ended(tokenizer_folder: Path, stop: dict[str, Any]) -> None:
    """The server leaves the end token out; its last word is then a token at which a step might be stopped."""
    server = FakeServer(replies(text_chunk("One.\n\n", 6, "stop", **stop), "[DONE]"), WITH_TEXT)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        (delta,) = await collect(engine, Sampling(50))
        step, reason = await write_step(engine, Transcript([Message("user", "?")], [engine]), Sampling(50))

        assert delta.token_ids == (*engine.tokenizer.encode("One.\n\n"), END)
        assert step is not None
        assert (step.text, reason) == ("One.\n\n", None)
        ended = Transcript([Message("user", "?")], [engine], [step])
        server.reply = replies(text_chunk("", 1, "stop", **stop), "[DONE]")
        assert await write_step(engine, ended, Sampling(50)) == (None, FinishReason.STOP)


async def test_read_by_id_and_by_text(tokenizer_folder: Path) -> None:
    async with engine_on(FakeServer(), tokenizer_folder) as engine:
        await engine.start()
        assert (await engine.read(PROMPT, [2, 0])).logprobs == (-3.0, -1.0)
        with pytest.raises(RequestError, match="token 9999 is not in the vocabulary"):
            await engine.read(PROMPT, [9999])
    async with engine_on(FakeServer(probe=WITH_TEXT), tokenizer_folder) as engine:
        await engine.start()
        x, y, z = (engine.tokenizer.encode(letter)[0] for letter in "xyz")
        assert (await engine.read(PROMPT, [y, x])).logprobs == (-1.5, -0.5)
        with pytest.raises(CapabilityError, match=f"token {z}, only of the 2 likeliest"):
            await engine.read(PROMPT, [x, z])


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (refuses(500, "boom"), EngineError, "answered 500: boom; see the server's log"),
        (refuses(404, {"error": {"message": "no model m"}}), EngineError, "answered 404: no model m; check that base"),
        (refuses(401, {"error": "who?"}), EngineError, "answered 401: who\\?; give the server's key as api_key"),
        (refuses(429, ""), EngineError, "answered 429: nothing; lower the concurrency"),
        (refuses(200, "<html>hello</html>"), EngineError, "no completion: <html>hello</html>"),
        (refuses(200, {"choices": []}), EngineError, "no completion"),
        (
            refuses(400, {"error": {"message": "maximum context length is 5 tokens"}}),
            RequestError,
            "the server of the model 'm' refuses so many tokens; shorten the prompt",
        ),
    ],
)
async def test_a_refused_start_says_why(
    tokenizer_folder: Path, reply: Reply, kind: type[Exception], message: str
) -> None:
    async with engine_on(FakeServer(reply, probe={}), tokenizer_folder) as engine:
        with pytest.raises(kind, match=message) as caught:
            await engine.start()

        assert (engine.base_url in str(caught.value)) == (kind is EngineError)  # the other may be a caller's
        assert "\n" not in str(caught.value)
        with pytest.raises(EngineError, match="not started"):
            await collect(engine, Sampling(1))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refuses(503, "busy"), "answered 503: busy"),
        (replies("not json"), "no completion: not json"),
        (replies("[1]"), "no completion: \\[1\\]"),
        (replies({"choices": [3]}), "no completion"),
        (replies({"choices": [{"text": "x", "finish_reason": None}]}), "no completion"),
        (replies(chunk([1, "2"])), "no completion"),
        (replies(chunk([1, None])), "no completion"),
        (replies(chunk([1], "abort")), "ended a generation by 'abort'"),
        (replies(chunk([1]), "[DONE]"), "without a reason"),
        (replies(chunk([1]), {"error": {"message": "out of memory"}}), "gave up a generation: out of memory"),
        (refuses(200, "data: " + "x" * 100), "no completion"),
    ],
)
async def test_a_failed_generation_says_why_and_the_next_one_works(
    tokenizer_folder: Path, reply: Reply, message: str
) -> None:
    server = FakeServer(reply)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        with pytest.raises(EngineError, match=message) as caught:
            await collect(engine, Sampling(4))
        server.reply = replies(chunk([7], "length"), "[DONE]")
        deltas = await collect(engine, Sampling(4))

    assert engine.base_url in str(caught.value)
    assert deltas == [TokenDelta((7,), (), FinishReason.LENGTH)]


@pytest.mark.parametrize("values", [None, [], [-1.0, -1.0], [float("nan")], ["x"]])
async def test_missing_log_probabilities_are_an_error(tokenizer_folder: Path, values: list[Any] | None) -> None:
    logprobs = None if values is None else {"token_logprobs": values}
    async with engine_on(FakeServer(replies(chunk([7], logprobs=logprobs))), tokenizer_folder) as engine:
        await engine.start()
        with pytest.raises(EngineError, match="no completion"):
            await collect(engine, Sampling(4, logprobs=True))


async def test_a_connection_lost_in_the_middle_keeps_what_came(tokenizer_folder: Path) -> None:
    async def reply(call: Call) -> None:
        await call.stream(chunk([7, 8]), ends=False)
        call.writer.close()

    async with engine_on(FakeServer(reply), tokenizer_folder) as engine:
        await engine.start()
        stream = engine.generate(PROMPT, Sampling(9))
        first = await anext(stream)
        with pytest.raises(EngineError, match="broke off the connection"):
            await anext(stream)

    assert first.token_ids == (7, 8)
    assert stream.generated_tokens == 2


async def test_a_silent_server_is_given_up(tokenizer_folder: Path) -> None:
    async with engine_on(FakeServer(replies(chunk([7]), ends=False)), tokenizer_folder, timeout_s=1.0) as engine:
        await engine.start()
        with pytest.raises(EngineError, match="silent for 1 s"):
            await collect(engine, Sampling(9))


async def test_closing_the_stream_hangs_up(tokenizer_folder: Path) -> None:
    server = FakeServer(replies(chunk([7]), ends=False))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        stream = engine.generate(PROMPT, Sampling(9))
        await anext(stream)
        assert not server.hung_up.is_set()
        await stream.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 30)


def test_marks_of_its_thinking_are_in_its_fingerprint(tokenizer_folder: Path) -> None:
    config = {"kind": "remote", "base_url": "http://host/v1", "model": "m", "tokenizer": str(tokenizer_folder)}
    marks: tuple[Any, ...] = (None, ("<plan>", "</plan>"), ("<plan>", "</plan>"), ("<idea>", "</idea>"))
    engines = [build_engine("far", RemoteConfig.model_validate(config | {"thinking_marks": each})) for each in marks]

    assert len({engine.fingerprint for engine in engines}) == 3
    assert engines[1].fingerprint == engines[2].fingerprint


def test_boundary_of_its_steps_is_a_setting(tokenizer_folder: Path) -> None:
    """Certificates know engines by where their steps end; learned routers do not."""
    kinds: tuple[BoundaryKind, ...] = ("blank_line", "line")
    usual, lines = (
        RemoteEngine("far", "http://host/v1", "m", tokenizer=tokenizer_folder, boundary=kind) for kind in kinds
    )

    assert [boundaries_of(engine.tokenizer).kind for engine in (usual, lines)] == [*kinds]
    assert usual.model_fingerprint == lines.model_fingerprint
    assert usual.fingerprint != lines.fingerprint


async def test_nothing_at_the_address_is_said(tokenizer_folder: Path) -> None:
    engine = RemoteEngine("far", "http://127.0.0.1:9/v1", "m", tokenizer=tokenizer_folder)

    with pytest.raises(EngineError, match=r"nothing answers at http://127\.0\.0\.1:9/v1; start the server"):
        await engine.start()


async def test_failure_of_tls_is_told_of_as_one(tokenizer_folder: Path) -> None:
    """Something answers there: a server that knows no TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        engine = RemoteEngine("far", url, "m", tokenizer=tokenizer_folder)
        with pytest.raises(EngineError, match=rf"no TLS with {url} \(.*SSL.*\); correct base_url"):
            await engine.start()


async def test_why_a_chat_refuses_is_told_where_there_are_no_completions(tokenizer_folder: Path) -> None:
    async def reply(call: Call) -> None:
        is_chat = call.path == "/v1/chat/completions"
        await call.answer(403 if is_chat else 404, {"error": {"message": "no quota" if is_chat else "Not Found"}})

    async with engine_on(FakeServer(reply, probe={}), tokenizer_folder) as engine:
        with pytest.raises(EngineError, match="answered 403: no quota; give the server's key as api_key"):
            await engine.start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url must be like"),
        ({"base_url": "http://"}, "base_url must be like"),
        ({"base_url": "http://ada:word@host/v1", "api_key": "key"}, "base_url holds a login, and there is an api_key"),
        ({"max_model_len": 1}, "max_model_len must be"),
        ({"timeout_s": 0}, "timeout_s positive"),
        ({"tokenizer": None}, "give its tokenizer's"),
        ({"tokenizer": Path("nowhere")}, "nowhere holds no tokenizer.json"),
    ],
)
def test_unusable_settings_are_named(tokenizer_folder: Path, settings: dict[str, Any], message: str) -> None:
    usable: dict[str, Any] = {"base_url": "http://host/v1", "model": "m", "tokenizer": tokenizer_folder}

    with pytest.raises(ConfigError, match=message):
        RemoteEngine("far", **usable | settings)


DEEP = "[" * 100_000
HUGE = "9" * 5000
LARGE = f"-{HUGE[:4000]}"
NOT_WHAT_THEY_SAY: dict[str, str] = {
    "an infinite usage": '{"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 1e400}}}',
    "no usage": '{"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": NaN}}}',
    "a usage below nothing": '{"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": -1}}}',
    "a usage beyond all": f'{{"choices": [], "usage": {{"prompt_tokens_details": {{"cached_tokens": {HUGE[:400]}}}}}}}',
    "a usage of text": '{"choices": [], "usage": "much"}',
    "a large id": f'{{"choices": [{{"token_ids": [{1 << 32}]}}]}}',
    "an id beyond all": f'{{"choices": [{{"token_ids": [{HUGE[:4000]}]}}]}}',
    "an id below nothing": '{"choices": [{"token_ids": [-1]}]}',
    "an id that is true": '{"choices": [{"token_ids": [true]}]}',
    "an id that is a fraction": '{"choices": [{"token_ids": [1.0]}]}',
    "ids without end": '{"choices": [{"token_ids": [' + "1," * 100_000 + "1]}]}",
    "ids that are text": '{"choices": [{"token_ids": "12"}]}',
    "a long number": f'{{"choices": [{{"token_ids": [{HUGE}]}}]}}',
    "a long log-probability": f'{{"choices": [{{"token_ids": [7], "logprobs": {{"token_logprobs": [-{HUGE}]}}}}]}}',
    "a large log-probability": f'{{"choices": [{{"token_ids": [7], "logprobs": {{"token_logprobs": [{LARGE}]}}}}]}}',
    "an infinite log-probability": '{"choices": [{"token_ids": [7], "logprobs": {"token_logprobs": [-1e400]}}]}',
    "an index beyond all": f'{{"choices": [{{"token_ids": [7], "index": {HUGE[:4000]}}}]}}',
    "a reason without end": f'{{"choices": [{{"token_ids": [7], "finish_reason": "{"x" * 900_000}"}}]}}',
    "a reason that is a list": '{"choices": [{"token_ids": [7], "finish_reason": []}]}',
    "deep": DEEP,
    "deep in an error": f'{{"error": {DEEP}',
    "deep in a choice": '{"choices": [' + "[" * 900 + "]" * 900 + "]}",
    "twice the same key": '{"choices": [], "choices": [{"token_ids": [7]}]}',
    "an error without end": f'{{"error": {{"message": "{"x" * 900_000}"}}}}',
    "escapes": '{"error": {"message": "\\u001b[2J\\u202e"}}',
}


def is_one_short_line(error: EngineError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 600


@pytest.mark.parametrize("event", NOT_WHAT_THEY_SAY)
async def test_event_that_is_not_what_it_says_is_one_line(tokenizer_folder: Path, event: str) -> None:
    server = FakeServer(replies(NOT_WHAT_THEY_SAY[event], chunk([7], "length"), "[DONE]"))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        with pytest.raises(EngineError) as caught:
            await collect(engine, Sampling(4, logprobs=True))
        is_one_short_line(caught.value)


@pytest.mark.parametrize("answer", NOT_WHAT_THEY_SAY)
async def test_answer_that_is_not_what_it_says_is_one_line(tokenizer_folder: Path, answer: str) -> None:
    """Whole ones: of a read, which asks for one token."""
    server = FakeServer(refuses(200, NOT_WHAT_THEY_SAY[answer]))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        server.probe = {}
        with pytest.raises(EngineError) as caught:
            await engine.read(PROMPT, [7])
        is_one_short_line(caught.value)


@pytest.mark.parametrize("logprob", ["1e400", f"-{HUGE}", f"-{HUGE[:4000]}", "true", '"x"', "NaN", "[]", "{}"])
async def test_read_of_what_is_no_log_probability_is_one_line(tokenizer_folder: Path, logprob: str) -> None:
    answer = f'{{"choices": [{{"logprobs": {{"top_logprobs": [{{"token_id:7": {logprob}}}]}}}}]}}'
    server = FakeServer(refuses(200, answer))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        server.probe = {}
        with pytest.raises(EngineError) as caught:
            await engine.read(PROMPT, [7])
        is_one_short_line(caught.value)


def without_end(status: int, beginning: bytes, piece: bytes) -> tuple[Reply, list[int]]:
    """An answer of 300 MiB, and what of it was sent before the engine hung up."""
    sent = [0]

    async def reply(call: Call) -> None:
        call.writer.write(f"HTTP/1.1 {status} Whatever\r\nConnection: close\r\n\r\n".encode() + beginning)
        with suppress(ConnectionError):
            while sent[0] < 300 << 20:
                call.writer.write(piece)
                await call.writer.drain()
                sent[0] += len(piece)

    return reply, sent


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    ("beginning", "piece"),
    [(b'{"a": "', b"x" * 65_536), (b"data: ", b"x" * 65_536), (b"", b"\n" * 1024 + b": " * 32_000)],
)
async def test_answer_without_end_is_not_read_to_its_end(
    tokenizer_folder: Path, status: int, beginning: bytes, piece: bytes
) -> None:
    reply, sent = without_end(status, beginning, piece)
    server = FakeServer(reply)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        with pytest.raises(EngineError) as caught:
            async with asyncio.timeout(20):
                await collect(engine, Sampling(4))
        is_one_short_line(caught.value)
        server.probe = {}
        with pytest.raises(EngineError) as caught:
            await engine.read(PROMPT, [7])
        is_one_short_line(caught.value)

    assert sent[0] < 100 << 20


async def test_login_in_the_address_is_sent_and_never_shown(
    tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(refuses(500, "no"))
    with caplog.at_level("DEBUG"):
        async with engine_on(server, tokenizer_folder, login="ada:pass%40word@") as engine:
            await engine.start()
            with pytest.raises(EngineError) as caught:
                await collect(engine, Sampling(4))

    login = b64encode(b"ada:pass@word").decode()
    assert all(f"Basic {login}" in call.headers for call in server.calls)
    assert not [text for text in (str(caught.value), caplog.text, engine.base_url) if "word" in text or login in text]


@pytest.mark.parametrize("url", ["u:secret@host:8000/v1", "http://u:se/cret@host", "http://u:secret@"])
def test_login_of_an_address_that_is_none_is_not_shown(tokenizer_folder: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="base_url must be like") as caught:
        RemoteEngine("far", url, "m", tokenizer=tokenizer_folder)

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("end", ["?api-key=sekret", "?code=sekret#x", "#sekret", "?"])
def test_address_with_a_query_is_refused_unseen(tokenizer_folder: Path, end: str) -> None:
    with pytest.raises(ConfigError, match="takes no query and no fragment; give the server's key as api_key") as caught:
        RemoteEngine("far", f"https://host/v1{end}", "m", tokenizer=tokenizer_folder)

    assert "sekret" not in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel", " mine", "mine\nX-Other: 1"])
def test_key_that_no_header_can_hold_is_refused_unseen(tokenizer_folder: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="a header cannot hold the api_key") as caught:
        RemoteEngine("far", "http://host/v1", "m", tokenizer=tokenizer_folder, api_key=key)

    assert key.strip() not in str(caught.value)


ASKED: dict[str, Any] = {
    "json": {"type": "array"},
    "json_object": True,
    "regex": "a+",
    "choice": ["a", "b"],
    "grammar": 'root ::= "a"',
    "structural_tag": "{}",
}


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize(
    ("holds", "sent"),
    [
        (frozenset(), {}),
        (
            frozenset({"structured_outputs"}),
            {kind: {"structured_outputs": bounded({kind: value})} for kind, value in ASKED.items()},
        ),
        (
            GUIDED,
            {kind: {f"guided_{kind}": ASKED[kind]} for kind in ("json", "regex", "choice", "grammar")},
        ),
        (
            SGLANG,
            {
                "json": {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "answer", "schema": ASKED["json"]},
                    }
                },
                "json_object": {"response_format": {"type": "json_object"}},
                "regex": {"regex": "a+"},
                "grammar": {"ebnf": ASKED["grammar"]},
            },
        ),
    ],
)
async def test_structure_is_asked_for_by_the_field_that_the_server_takes(
    tokenizer_folder: Path, holds: frozenset[str], sent: dict[str, Any], is_strict: bool
) -> None:
    server = FakeServer(replies(chunk([7, END], "stop"), "[DONE]"), None, holds, is_strict=is_strict)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        assert (Capability.STRUCTURE in engine.capabilities) is bool(sent)
        for kind, value in ASKED.items():
            if kind in sent:
                await collect(engine, Sampling(4, structure={kind: value}))
                asked = server.calls[-1].body
                assert {field: asked[field] for field in STRUCTURES & asked.keys()} == sent[kind]
                continue
            before = len(server.calls)
            with pytest.raises(RequestError, match=f"cannot hold a text to {kind}, only to "):
                await collect(engine, Sampling(4, structure={kind: value}))
            assert len(server.calls) == before
        await collect(engine, Sampling(4))
        assert not STRUCTURES & server.calls[-1].body.keys()
        lacking = [kind for kind in ASKED if kind not in sent]
        assert any(f"holds no text to {', '.join(lacking)}" in lack for lack in engine.lacks) is bool(lacking)


async def test_event_loop_goes_on_while_a_schema_is_compiled(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - before)

    server = FakeServer(replies(chunk([7, END], "stop"), "[DONE]"), None, frozenset({"structured_outputs"}))
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        await collect(engine, Sampling(4, structure={"json": ASKED["json"]}))  # the first one imports modules
        monkeypatch.setattr("reasonrt.engines.vllm_calls._tag_of_json", lambda schema: time.sleep(3))
        ticking = asyncio.create_task(tick())
        await collect(engine, Sampling(4, structure={"json": ASKED["json"]}))
        await cancel(ticking)

    assert 0 < longest_s < 2


async def test_text_that_only_looks_held_is_not(tokenizer_folder: Path) -> None:
    """A field that a server takes in silence changes nothing: what the model writes by itself does not count."""
    async with engine_on(FakeServer(probe=WITH_IDS | {"text": " \n"}), tokenizer_folder) as engine:
        await engine.start()

        assert Capability.STRUCTURE not in engine.capabilities


async def test_request_is_refused_before_it_begins_where_the_server_cannot_hold_it(tokenizer_folder: Path) -> None:
    server = FakeServer(replies(chunk([66, END], "stop"), "[DONE]"), None, SGLANG)
    async with engine_on(server, tokenizer_folder) as engine:
        await engine.start()
        runtime = Runtime({"target": engine})
        with pytest.raises(RequestError, match="the server of engine 'far' cannot hold a text to choice"):
            runtime.prepare(Request.ask("?", structure={"choice": ["a"]}))
        completion = await runtime.complete(Request.ask("?", structure={"regex": "a+"}, limits=Limits(max_tokens=50)))

    assert completion.finish_reason is FinishReason.STOP
    assert server.calls[-1].body["regex"] == "a+"


async def test_server_without_any_structure_refuses_it_by_name(tokenizer_folder: Path) -> None:
    async with engine_on(FakeServer(), tokenizer_folder) as engine:
        request = Request.ask("?", structure={"regex": "a+"})
        Runtime({"target": engine}).prepare(request)  # what it can do is not known yet
        await engine.start()
        with pytest.raises(RequestError, match="policy target cannot hold its answer to a structure here"):
            Runtime({"target": engine}).prepare(request)


TOOL_TEMPLATE = '{% if tools %}{{ tools | tojson }} <tool_call>{"name": , "arguments": }</tool_call>{% endif %}'


@pytest.fixture(scope="module")
def tools_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer, with a template that shows tools as Qwen's does."""
    made = shutil.copytree(tokenizer_folder, tmp_path_factory.mktemp("tools") / "model")
    template = made / "chat_template.jinja"
    template.write_text(TOOL_TEMPLATE + template.read_text())
    return made


@pytest.mark.parametrize(("parser", "calls"), [("auto", True), (None, False)])
async def test_tools_need_a_parser(tools_folder: Path, parser: str | None, calls: bool) -> None:
    async with engine_on(FakeServer(), tools_folder, tool_parser=parser) as engine:
        await engine.start()

        assert (Capability.TOOLS in engine.capabilities) is calls
        assert any("no tools: no parser is named" in lack for lack in engine.lacks) is not calls
        assert engine.call_marks == (("<tool_call>",) if calls else ())


async def test_parser_that_does_not_load_is_an_error_of_the_start_where_it_was_named(
    tools_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was found is loaded when an answer is there, which it does not take away."""

    def refuse(name: str, folder: Path) -> None:
        raise ConfigError(f"vLLM has no tool parser {name}; it has others")

    monkeypatch.setattr("reasonrt.engines.vllm_calls.VllmToolParser", refuse)
    async with engine_on(FakeServer(), tools_folder, tool_parser="hermess") as engine:
        with pytest.raises(ConfigError, match="engine 'far': vLLM has no tool parser hermess"):
            await engine.start()
    async with engine_on(FakeServer(replies(chunk([66, END], "stop"), "[DONE]")), tools_folder) as engine:
        await engine.start()
        request = Request.ask("?", tools=WEATHER, limits=Limits(max_tokens=50))
        completion = await Runtime({"target": engine}).complete(request)

    assert completion.content == engine.tokenizer.decode([66])
    assert "vLLM has no tool parser" in completion.warnings["tools"]


async def test_text_that_lacks_what_frames_calls_has_none(tools_folder: Path, tmp_path: Path) -> None:
    """Servers leave special tokens out of texts: a call would stand in the answer as words."""
    folder = shutil.copytree(tools_folder, tmp_path / "special")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<tool_call>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for probe, calls in ((WITH_IDS, True), (WITH_TEXT, False)):
        async with engine_on(FakeServer(probe=probe), folder) as engine:
            await engine.start()
            assert (Capability.TOOLS in engine.capabilities) is calls
            assert any("lacks the special tokens" in lack for lack in engine.lacks) is not calls


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = (FunctionTool("weather", parameters=CITY),)
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.vllm  # its parsers take long to import
@pytest.mark.parametrize("probe", [WITH_IDS, WITH_TEXT])
async def test_calls_are_read_from_what_a_server_writes(tools_folder: Path, probe: dict[str, Any]) -> None:
    server = FakeServer(probe=probe)
    async with engine_on(server, tools_folder) as engine:
        await engine.start()
        ids = engine.tokenizer.encode(CALLED)
        server.reply = replies(
            *((chunk([*ids, END], "stop"),) if probe is WITH_IDS else (text_chunk(CALLED, len(ids), "stop"),)), "[DONE]"
        )
        runtime = Runtime({"target": engine})
        request = Request.ask("?", tools=WEATHER, limits=Limits(max_tokens=200))
        completion = await runtime.complete(request)

        (call,) = completion.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
        assert completion.content == ""
        assert "weather" in engine.tokenizer.decode(server.calls[-1].body["prompt"])
        with pytest.raises(RequestError, match="cannot hold its answer to tool_choice required here"):
            runtime.prepare(replace(request, tool_choice="required"))


@pytest.mark.vllm
@pytest.mark.parametrize(("holds", "is_held"), [(frozenset({"structured_outputs"}), True), (GUIDED, False)])
async def test_calls_that_must_come_are_held_where_the_server_has_grammars_for_them(
    tools_folder: Path, holds: frozenset[str], is_held: bool
) -> None:
    server = FakeServer(None, None, holds)
    async with engine_on(server, tools_folder) as engine:
        await engine.start()
        server.reply = replies(chunk([*engine.tokenizer.encode(CALLED), END], "stop"), "[DONE]")
        request = Request.ask("?", tools=WEATHER, tool_choice="required", limits=Limits(max_tokens=200))
        runtime = Runtime({"target": engine})
        if not is_held:
            with pytest.raises(RequestError, match="cannot hold a text to structural_tag"):
                await runtime.complete(request)
            one = await runtime.complete(replace(request, tool_choice="auto", parallel_tool_calls=False))
            assert len(one.tool_calls) == 1
            return
        completion = await runtime.complete(request)
        assert len(completion.tool_calls) == 1
        assert "weather" in server.calls[-1].body["structured_outputs"]["structural_tag"]
