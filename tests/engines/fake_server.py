"""A server of completions with the manners of real ones: what it gives, how it says that a text ends, what it refuses.

It speaks HTTP over a socket. Its model always writes the same text, from wherever the prompt has got to.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.tokenizer import HFTokenizer

END = 0


@dataclass(frozen=True, slots=True)
class Manner:
    """How a server answers.

    Attributes:
        ids: it gives token ids.
        words: by which it says that the model has ended, and that the limit has.
        ends: where it says so: `with` the last tokens, `apart` from them, `twice` (with them and again after them),
            `split` (the last tokens come in two chunks, both with the reason), or in `every` chunk.
        fields: that stand in each event beside its choices.
        null_text: the chunk that says why a text has ended, apart from it, has null for its text and its ids.
        indexes: of the choices of one text: `none`, `null`, a number, or `counting` the chunks.
        usage: `continuous`, at the `end`, `zero` there, `null` there, or `none`.
        done: it says `[DONE]`.
        stays_open: it does not end its response.
        breaks: it closes the connection without having ended its response.
        takes_stops, takes_limit: it ends a text where it was asked to.
        takes_n: it writes several texts for one request; else one, whatever it was asked for.
        tokens: of a chunk.
        halves: a character beyond the first plane comes in two halves, each in a chunk of its own.
        line_end, comments: of its events, and between them.
        pieces: lengths of the pieces in which its bytes come, over and over; none is all at once.
        refuses: fields that it answers with 400.
        most_logprobs: that it gives; more are refused.
        takes_ids: it takes prompts of token ids.
        chat: it has chat alone.
        continues: of a chat, it knows `continue_final_message`.
        thinking: the field of a chat in which it tells the thinking; none is a model that does not think.
    """

    ids: bool = True
    words: tuple[str, str] = ("stop", "length")
    ends: str = "with"
    fields: dict[str, Any] = field(default_factory=dict)
    null_text: bool = False
    indexes: str | int = "none"
    usage: str = "end"
    done: bool = True
    stays_open: bool = False
    breaks: bool = False
    takes_stops: bool = True
    takes_limit: bool = True
    takes_n: bool = True
    tokens: int = 1
    halves: bool = False
    line_end: str = "\n"
    comments: bool = False
    pieces: tuple[int, ...] = ()
    refuses: frozenset[str] = frozenset()
    most_logprobs: int = 20
    takes_ids: bool = True
    chat: bool = False
    continues: bool = False
    thinking: str = ""


class FakeServer:
    """Answers as `manner` says.

    Args:
        folder: of the tokenizer.
        text: that its model writes after `assistant: `.

    Attributes:
        bodies: of the requests that it has answered.
        thought: that it thinks before it, where it tells its thinking.
        busy: for each request to come, how it is turned away, as status and headers; None is not.
    """

    def __init__(self, folder: Path, text: str, manner: Manner) -> None:
        self.folder, self.tokenizer, self.manner = folder, HFTokenizer(folder), manner
        self._ids = [*self.tokenizer.encode_text(text), END]
        self.thought = ""
        self.bodies: list[dict[str, Any]] = []
        self.busy: list[tuple[int, dict[str, str]] | None] = []
        self.released = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line.split(":")[1] for line in head.lower().splitlines() if "content-length:" in line]
                body = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else {}
                self.bodies.append(body)
                turned_away = self.busy.pop(0) if self.busy else None
                if turned_away:
                    await self._answer(writer, turned_away[0], {"error": {"message": "busy"}}, turned_away[1])
                elif head.split()[1] == "/v1/models":
                    await self._answer(writer, 200, {"data": [{"id": "m", "max_model_len": 512}]})
                elif head.split()[1] != ("/v1/chat/completions" if self.manner.chat else "/v1/completions"):
                    await self._answer(writer, 404, {"detail": "Not Found"})
                elif refused := self._refused(body):
                    await self._answer(writer, 400, {"error": {"message": f"unknown field {refused}"}})
                elif body.get("stream"):
                    await self._send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for line in self._lines(body):
                        data = line.encode()
                        await self._send(writer, b"%x\r\n%b\r\n" % (len(data), data))
                    if self.manner.stays_open:
                        await self.released.wait()
                    if self.manner.breaks:
                        break
                    await self._send(writer, b"0\r\n\r\n")
                else:
                    await self._answer(writer, 200, self._whole(body))
        writer.close()

    def _refused(self, body: dict[str, Any]) -> str | None:
        for name in sorted(self.manner.refuses):
            outer, _, inner = name.partition(".")
            if inner in body.get(outer, {}) if inner else outer in body:
                return name
        if body.get("logprobs", 0) > self.manner.most_logprobs:
            return "logprobs"
        if self.manner.continues and body.get("continue_final_message") and body.get("add_generation_prompt", True):
            return "add_generation_prompt beside continue_final_message"
        if self.manner.chat:
            return None if "messages" in body else "prompt"
        return None if self.manner.takes_ids or isinstance(body["prompt"], str) else "prompt: must be a string"

    async def _answer(
        self, writer: asyncio.StreamWriter, status: int, content: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await self._send(writer, "\r\n".join([*lines, "", ""]).encode() + data)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        pieces = self.manner.pieces or (len(data),)
        while data:
            for length in pieces:
                writer.write(data[:length])
                data = data[length:]
                await writer.drain()
                if self.manner.pieces:
                    await asyncio.sleep(0)

    def _written(self, body: dict[str, Any]) -> tuple[list[int], str]:
        """The ids that the model writes for a request, and the word by which they end."""
        given = body.get("prompt", "")
        prompt = self.tokenizer.encode(given) if isinstance(given, str) else given
        begun = self.tokenizer.decode(prompt).rpartition("assistant: ")[2]
        if self.manner.continues and body.get("continue_final_message"):
            begun = body["messages"][-1]["content"]
        ids = self._ids[len(self.tokenizer.encode_text(begun)) :] or [END]
        if self.manner.takes_stops:
            stops = body.get("stop_token_ids", [])
            ids = ids[: next((place for place, token_id in enumerate(ids, 1) if token_id in stops), len(ids))]
        if self.manner.takes_limit and len(ids) > body["max_tokens"]:
            return ids[: body["max_tokens"]], self.manner.words[1]
        return ids, self.manner.words[0]

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, word = self._written(body)
        if self.manner.thinking and self.thought:
            message = {self.manner.thinking: self.thought, "content": None}
            return {"choices": [{"message": message, "finish_reason": "length"}] * body.get("n", 1)}
        choices = [
            self._choice(ids, self.tokenizer.decode(ids), body) | {"index": index, "finish_reason": word}
            for index in range(body.get("n", 1) if self.manner.takes_n else 1)
        ]
        return {"choices": choices, **self.manner.fields, **self._usage(len(ids), "end")}

    def _choice(self, ids: list[int], text: str, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": text, "finish_reason": None}
        if self.manner.chat:
            return {"delta" if body.get("stream") else "message": {"content": text}, "finish_reason": None}
        if self.manner.ids and body.get("return_token_ids"):
            choice["token_ids"] = ids
        if "logprobs" in body:
            names = [f"token_id:{each}" if self.manner.ids else self.tokenizer.decode([each]) for each in ids]
            tops = [{name: -0.1, **{f"token_id:{each}": -1.0 - each for each in range(5)}} for name in names]
            choice["logprobs"] = {"token_logprobs": [-0.1] * len(ids), "top_logprobs": tops}
        return choice

    def _usage(self, num_tokens: int, when: str) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": num_tokens}
        if self.manner.usage == "continuous" or self.manner.usage == when:
            return {"usage": usage}
        if when == "end" and self.manner.usage in ("zero", "null"):
            return {"usage": usage | {"completion_tokens": 0} if self.manner.usage == "zero" else None}
        return {}

    def _lines(self, body: dict[str, Any]) -> Iterator[str]:
        end = self.manner.line_end
        for event in self._events(body):
            if self.manner.comments:
                yield f": keep-alive{end}{end}event: completion{end}id: 7{end}"
            yield f"data: {json.dumps(event, ensure_ascii=self.manner.halves)}{end}{end}"
        if self.manner.done:
            yield f"data: [DONE]{end}{end}"

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        ids, word = self._written(body)
        num = body.get("n", 1) if self.manner.takes_n else 1
        thought = self.thought if self.manner.thinking else ""
        for character in thought:
            yield {"choices": [{"index": 0, "delta": {self.manner.thinking: character}, "finish_reason": None}]}
        for place, choice, num_tokens in self._chunks(ids, word, body):
            for index in range(num):
                numbered = choice | ({"index": index} if num > 1 else self._index(place))
                yield {"choices": [numbered], **self.manner.fields, **self._usage(num_tokens, "each")}
        if self.manner.usage != "none":
            yield {"choices": [], **self.manner.fields, **self._usage(num * len(ids), "end")}

    def _index(self, place: int) -> dict[str, Any]:
        if self.manner.indexes == "none":
            return {}
        given = {"null": None, "counting": place}
        return {"index": given.get(str(self.manner.indexes), self.manner.indexes)}

    def _chunks(self, ids: list[int], word: str, body: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Each with its place, and the number of tokens up to its end."""
        manner, parts, begun = self.manner, list[tuple[list[int], str]](), list[int]()
        for token_id in ids:
            begun.append(token_id)
            text = self.tokenizer.decode(begun)
            if len(begun) >= manner.tokens and not text.endswith("\ufffd"):
                parts.append((begun, text))
                begun = []
        parts += [(begun, self.tokenizer.decode(begun))] if begun else []
        if manner.halves:
            parts = [part for ids, text in parts for part in _in_halves(ids, text)]
        if manner.ends == "split" and len(parts[-1][0]) > 1 and parts[-1][1].isascii():
            last = parts.pop()[0]
            parts += [(half, self.tokenizer.decode(half)) for half in (last[:1], last[1:])]
        num_tokens, num_ended = 0, {"every": len(parts), "split": 2, "apart": 0}.get(manner.ends, 1)
        for place, (part, text) in enumerate(parts):
            num_tokens += len(part)
            ended = {"finish_reason": word} if place >= len(parts) - num_ended else {}
            yield place, self._choice(part, text, body) | ended, num_tokens
        if manner.ends in ("apart", "twice"):
            empty = self._choice([], None if manner.null_text else "", body)  # type: ignore[arg-type]
            if manner.null_text and "token_ids" in empty:
                empty["token_ids"] = None
            yield len(parts), empty | {"finish_reason": word}, num_tokens


def _in_halves(ids: list[int], text: str) -> Iterator[tuple[list[int], str]]:
    units = text.encode("utf-16-le", "surrogatepass")
    if len(units) != 2 * len(text):  # its last character takes two
        yield [], units[:-2].decode("utf-16-le", "surrogatepass")
        text = units[-2:].decode("utf-16-le", "surrogatepass")
    yield ids, text


@asynccontextmanager
async def engine_on(server: FakeServer, folder: Path, **settings: Any) -> AsyncIterator[RemoteEngine]:
    """A started engine before `server`."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    defaults: dict[str, Any] = {"timeout_s": 10.0, "tokenizer": folder}
    engine = RemoteEngine("far", f"http://127.0.0.1:{port}/v1", "m", **defaults | settings)
    try:
        yield await engine.start()
    finally:
        server.released.set()
        await engine.aclose()
        listening.close()
