"""Asking a server that runs, in the place of engines of one's own."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from reasonrt.engines.remote_wire import NONSENSE, count
from reasonrt.errors import EngineError, RequestError, in_one_line
from reasonrt.files import parse_json
from reasonrt.masking import can_be_sent, masked_url
from reasonrt.thinking import THINK
from reasonrt.types import Completion, EngineUsage, FinishReason, Step

KEY_VARIABLE = "REASONRT_API_KEY"
_CONNECT_S = 10.0
_MOST_LINE_BYTES = 1 << 24
_MOST_REFUSED_BYTES = 1 << 16
_REASONING = frozenset({"reasoning", "reasoning_content"})


def ask_server(
    url: str,
    body: Mapping[str, Any],
    on_step: Callable[[Step], None],
    on_event: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Completion:
    """What the server at `url` makes of a chat request, as its own runtime would have told it.

    Args:
        body: with `reasonrt.trace`, so that each step comes with its author; the ids of its tokens stay there.
        on_event: gets each event of the trace, steps as well, as `cli.trace` writes them.

    Raises:
        RequestError: the server refuses the request; its words.
        EngineError: it cannot be reached, or its answer breaks off or is none.
    """
    try:
        return _completion(url, body, on_step, on_event)
    except NONSENSE:
        raise EngineError(f"{masked_url(url)} sent what is no answer; is `reasonrt serve` running there?") from None


def _completion(
    url: str,
    body: Mapping[str, Any],
    on_step: Callable[[Step], None],
    on_event: Callable[[Mapping[str, Any]], None],
) -> Completion:
    steps: list[Step] = []
    has_reasoning, ended = False, dict[str, Any]()
    usage: dict[str, EngineUsage] = {}
    for chunk in _chunks(url.rstrip("/").removesuffix("/v1"), body):
        for choice in chunk["choices"]:
            has_reasoning |= bool(_REASONING & choice["delta"].keys())
            own = choice.get("reasonrt") or {}
            if "step" in own:
                written = own["step"]
                steps.append(Step(written["text"], (), written["author"], written["is_complete"]))
                on_event({"kind": "step", **written})
                on_step(steps[-1])
            elif "event" in own:
                on_event(own["event"])
            elif own:
                ended = own
        if "usage" in (whole := chunk.get("reasonrt") or {}):
            usage = {
                name: EngineUsage(**{kind: count(number) for kind, number in spent.items()})
                for name, spent in whole["usage"].items()
            }
    if not ended:
        raise EngineError(f"the answer of {masked_url(url)} broke off; ask again")
    known = ended["finish_reason"] in list(FinishReason)
    reason = FinishReason(ended["finish_reason"]) if known else FinishReason.STOP
    is_open = has_reasoning and not steps[0].text.lstrip().startswith(THINK)
    warnings = ended.get("warnings") or {}
    return Completion(tuple(steps), reason, usage, ended["seconds"], ended["details"], is_open, warnings)


def _chunks(url: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    if key and not can_be_sent(key):
        raise RequestError(f"a header cannot hold {KEY_VARIABLE}: ASCII, and no space at an end")
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(None, connect=_CONNECT_S)) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=asked, headers=headers) as answer,
        ):
            if not answer.is_success:
                raise RequestError(f"{masked_url(url)}: {_message(answer)}")
            for line in _lines(answer):
                data = line.removeprefix(b"data: ")
                if data != line and data.strip() != b"[DONE]":
                    chunk = parse_json(data)
                    if "error" in chunk:
                        raise EngineError(f"{masked_url(url)}: {in_one_line(str(chunk['error']['message']), 400)}")
                    yield chunk
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"cannot reach {masked_url(url)}: {reason}; is `reasonrt serve` running there?") from None
    except httpx.InvalidURL as error:
        raise RequestError(f"{masked_url(url)} is no URL of a server: {error}") from None


def _lines(answer: httpx.Response) -> Iterator[bytes]:
    rest = b""
    for piece in answer.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _MOST_LINE_BYTES:
            raise ValueError("a line without end")
    yield rest


def _message(answer: httpx.Response) -> str:
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) > _MOST_REFUSED_BYTES:
            break
    try:
        message = in_one_line(str(parse_json(content)["error"]["message"]), 400)
    except NONSENSE:
        return f"status {answer.status_code}"
    hint = f"; set {KEY_VARIABLE}" if answer.status_code == 401 else ""
    return f"{message}{hint}"
