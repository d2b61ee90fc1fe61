"""HTTP as a server of completions speaks it: its stream of events, and its failures in our words."""

import json
import math
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from reasonrt.errors import EngineError, ReasonRTError, RequestError
from reasonrt.types import Sampling

_MAX_LINE_BYTES = 1 << 24
_MINUS_INFINITY = -9999.0  # as vLLM writes it in JSON
_ABOUT_LENGTH = re.compile(
    r"context length|max_model_len|max_tokens|maximum.*(length|tokens)|too long|longer than", re.I
)
_HINTS = {
    400: "check that the server takes prompts of token ids",
    401: "give the server's key as api_key",
    403: "give the server's key as api_key",
    429: "lower the concurrency or try again later",
}


def is_http_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


async def events(response: httpx.Response, url: str) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of an SSE response, up to its `[DONE]` and then its end.

    Raises:
        EngineError: the server reports an error, or sends what is no event.
    """
    async with aclosing(_lines(response, url)) as lines:
        async for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                continue  # the end of the response follows; without it the connection could not be used again
            try:
                event = json.loads(data)
            except ValueError:
                raise garbage(url, data) from None
            if not isinstance(event, dict):
                raise garbage(url, data)
            if "error" in event:
                raise EngineError(f"{url} gave up a generation: {_message(data)}; see the server's log and try again")
            yield event


async def _lines(response: httpx.Response, url: str) -> AsyncGenerator[bytes, None]:
    # not httpx's own lines: it also ends them at characters that JSON strings hold, such as U+2028
    rest = b""
    async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                raise garbage(url, rest)
            for line in lines:
                yield line
    yield rest


@contextmanager
def translated(url: str, timeout_s: float) -> Iterator[None]:
    """httpx's errors as `EngineError`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise EngineError(f"nothing answers at {url}; start the server or correct base_url") from None
    except httpx.TimeoutException:
        raise EngineError(f"{url} was silent for {timeout_s:g} s; lower the load or raise timeout_s") from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"{url} broke off the connection ({reason}); see the server's log and try again") from None


def refusal(response: httpx.Response, url: str, model: str) -> ReasonRTError:
    """The error for an answer that is not 200."""
    status, message = response.status_code, _message(response.content)
    if status in (400, 413, 422) and _ABOUT_LENGTH.search(message):
        return RequestError(f"{url} refuses the length: {message}")
    hint = "see the server's log and try again" if status >= 500 else "check base_url"
    if status == 404:
        hint = f"check that base_url ends in /v1 and that the server's model is called {model!r}"
    return EngineError(f"{url} answered {status}: {message}; {_HINTS.get(status, hint)}")


def garbage(url: str, data: bytes) -> EngineError:
    return EngineError(f"{url} sent what is no completion: {_shown(data)}; is it an OpenAI-compatible API?")


def completion_body(
    model: str, prompt_token_ids: Sequence[int], sampling: Sampling, stop_token_ids: Iterable[int], cache_salt: str
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_token_ids),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # what a server would else take from the model's generation_config.json
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(stop_token_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.logprobs or sampling.top_logprobs:
        fields["logprobs"] = max(sampling.top_logprobs, 1)
    if sampling.structure:
        fields["structured_outputs"] = dict(sampling.structure)
    if cache_salt:
        fields["cache_salt"] = cache_salt
    return fields


def cached_tokens(answer: dict[str, Any]) -> int:
    """Prompt tokens that the server has read from its prefix cache; 0 where it does not tell.

    Raises:
        TypeError, ValueError, AttributeError: what it tells is no number.
    """
    usage = answer.get("usage") or {}
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def top_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the first token's alternatives, by `token_id:ID` or else by text."""
    try:
        top = choice["logprobs"]["top_logprobs"][0]
    except (KeyError, TypeError, IndexError):
        return {}
    return top if isinstance(top, dict) else {}


def logprobs_of(
    choice: dict[str, Any], sampling: Sampling, num_tokens: int
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Of each token of `choice`, what `sampling` asks for: its log-probability, and the highest ones there.

    The highest are fewer than asked for where a server that names tokens by text has two of the same name.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a token has none, or one that is no finite number.
        EngineError: the server gave other tokens' instead.
    """
    drawn: tuple[float, ...] = ()
    top: tuple[tuple[float, ...], ...] = ()
    if sampling.logprobs and num_tokens:
        drawn = tuple(min(float(value), 0.0) for value in choice["logprobs"]["token_logprobs"])
        if len(drawn) != num_tokens:
            raise ValueError("one log-probability for each token")
    if sampling.top_logprobs and num_tokens:
        places = [(min(float(value), 0.0) for value in place.values()) for place in choice["logprobs"]["top_logprobs"]]
        # servers add the token that was drawn to those that were asked for
        top = tuple(tuple(sorted(place, reverse=True)[: sampling.top_logprobs]) for place in places)
        if len(top) != num_tokens or not all(top):
            raise ValueError("the highest log-probabilities at each token")
        if any(place[-1] <= _MINUS_INFINITY for place in top):
            raise EngineError(
                "the server lost the highest log-probabilities of a token, as vLLM's older model runner does when it "
                "answers a read in the same step; use its V2 model runner, or a policy without reads"
            )
    if not all(map(math.isfinite, (*drawn, *(value for place in top for value in place)))):
        raise ValueError("finite log-probabilities")
    return drawn, top


def _message(content: bytes) -> str:
    """What the server says, in one line."""
    try:
        said = json.loads(content)
        said = said.get("error", said)
        text = said if isinstance(said, str) else str(said.get("message", said.get("detail", said)))
    except (ValueError, AttributeError):
        return _shown(content)
    return _shown(text.encode())


def _shown(data: bytes) -> str:
    line = " ".join(data[:1000].decode(errors="replace").split())
    return (line[:200] + "…" if len(line) > 200 else line).rstrip(".") or "nothing"
