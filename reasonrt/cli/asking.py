"""Asking a server that runs, in the place of engines of one's own."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from reasonrt.errors import EngineError, RequestError
from reasonrt.thinking import THINK
from reasonrt.types import Completion, EngineUsage, FinishReason, Step

KEY_VARIABLE = "REASONRT_API_KEY"
_CONNECT_S = 10.0
_REASONING = frozenset({"reasoning", "reasoning_content"})


def ask_server(url: str, body: Mapping[str, Any], on_step: Callable[[Step], None]) -> Completion:
    """What the server at `url` makes of a chat request, as its own runtime would have told it.

    Args:
        body: with `reasonrt.trace`, so that each step comes with its author; the ids of its tokens stay there.

    Raises:
        RequestError: the server refuses the request; its words.
        EngineError: it cannot be reached, or its answer breaks off.
    """
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
                on_step(steps[-1])
            elif own:
                ended = own
        if "usage" in (whole := chunk.get("reasonrt") or {}):
            usage = {name: EngineUsage(**spent) for name, spent in whole["usage"].items()}
    if not ended:
        raise EngineError(f"the answer of {url} broke off; ask again")
    known = ended["finish_reason"] in list(FinishReason)
    reason = FinishReason(ended["finish_reason"]) if known else FinishReason.STOP
    is_open = has_reasoning and not steps[0].text.lstrip().startswith(THINK)
    warnings = ended.get("warnings") or {}
    return Completion(tuple(steps), reason, usage, ended["seconds"], ended["details"], is_open, warnings)


def _chunks(url: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(None, connect=_CONNECT_S)) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=asked, headers=headers) as answer,
        ):
            if not answer.is_success:
                raise RequestError(f"{url}: {_message(answer)}")
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if data != line and data != "[DONE]":
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise EngineError(f"{url}: {chunk['error']['message']}")
                    yield chunk
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"cannot reach {url}: {reason}; is `reasonrt serve` running there?") from None
    except httpx.InvalidURL as error:
        raise RequestError(f"{url} is no URL of a server: {error}") from None


def _message(answer: httpx.Response) -> str:
    try:
        message = json.loads(answer.read())["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"status {answer.status_code}"
    hint = f"; set {KEY_VARIABLE}" if answer.status_code == 401 else ""
    return f"{message}{hint}"
