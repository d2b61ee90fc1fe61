"""HTTP as a server of completions speaks it: its stream of events, and its failures in our words."""

import math
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from reasonrt.errors import ReasonRTError, RequestError, UpstreamError, in_one_line
from reasonrt.files import parse_json
from reasonrt.types import Sampling

NONSENSE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""What is raised by reading an answer that is not what it says."""

_MOST_BYTES = 1 << 24  # of a whole answer
_MAX_LINE_BYTES = 1 << 22  # of an event
_TOKEN_BYTES = 1 << 13  # with its log-probabilities, at most
_MOST_REFUSED_BYTES = 1 << 16  # of an answer that is an error: its beginning says why
_MOST_COUNTED = 1 << 31
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


async def events(response: httpx.Response, url: str, num_tokens: int) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of an SSE response, up to its `[DONE]` and then its end.

    Args:
        num_tokens: as many as it may bring.

    Raises:
        UpstreamError: the server reports an error, or sends what is no event, or more than so many tokens take.
    """
    async with aclosing(_lines(response, url, _MOST_BYTES + num_tokens * _TOKEN_BYTES)) as lines:
        async for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                continue  # the end of the response follows; without it the connection could not be used again
            try:
                event = parse_json(data)
            except ValueError:
                raise garbage(url, data) from None
            if not isinstance(event, dict):
                raise garbage(url, data)
            if "error" in event:
                raise UpstreamError(f"{url} gave up a generation: {_message(data)}; see the server's log and try again")
            yield event


async def _lines(response: httpx.Response, url: str, most_bytes: int) -> AsyncGenerator[bytes, None]:
    # not httpx's own lines: it also ends them at characters that JSON strings hold, such as U+2028
    rest, num_bytes = bytearray(), 0
    async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            begun = len(rest)
            rest += chunk
            num_bytes += len(chunk)
            if num_bytes > most_bytes:
                raise _too_much(url, most_bytes)
            if rest.find(b"\n", begun) >= 0:
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    yield bytes(line)
            if len(rest) > _MAX_LINE_BYTES:
                raise garbage(url, bytes(rest))
    yield bytes(rest)


async def read_whole(response: httpx.Response, url: str) -> bytes:
    """The body of an answer; of one that is an error no more than its beginning.

    Raises:
        UpstreamError: it is larger than any answer.
    """
    is_refused = response.status_code != httpx.codes.OK
    most_bytes = _MOST_REFUSED_BYTES if is_refused else _MOST_BYTES
    content = bytearray()
    async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            content += chunk
            if len(content) > most_bytes:
                if is_refused:
                    break
                raise _too_much(url, most_bytes)
    return bytes(content[:most_bytes])


def _too_much(url: str, most_bytes: int) -> UpstreamError:
    return UpstreamError(f"{url} sent more than {most_bytes:,} bytes; is it an OpenAI-compatible API?")


@contextmanager
def translated(url: str, timeout_s: float) -> Iterator[None]:
    """httpx's errors as `UpstreamError`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise UpstreamError(f"nothing answers at {url}; start the server or correct base_url") from None
    except httpx.TimeoutException:
        raise UpstreamError(f"{url} was silent for {timeout_s:g} s; lower the load or raise timeout_s") from None
    except httpx.HTTPError as error:
        reason = in_one_line(str(error), 200) or type(error).__name__
        raise UpstreamError(f"{url} broke off the connection ({reason}); see the server's log and try again") from None


def refusal(status: int, content: bytes, url: str, model: str) -> ReasonRTError:
    """The error for an answer that is not 200; the caller of a request that is too long learns of no server."""
    message = _message(content)
    if status in (400, 413, 422) and _ABOUT_LENGTH.search(message):
        return RequestError(
            f"the server of the model {model!r} refuses so many tokens; shorten the prompt or lower max_tokens"
        )
    hint = "see the server's log and try again" if status >= 500 else "check base_url"
    if status == 404:
        hint = f"check that base_url ends in /v1 and that the server's model is called {model!r}"
    return UpstreamError(f"{url} answered {status}: {message}; {_HINTS.get(status, hint)}")


def garbage(url: str, data: bytes) -> UpstreamError:
    return UpstreamError(f"{url} sent what is no completion: {_shown(data)}; is it an OpenAI-compatible API?")


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
    return count((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def count(value: Any) -> int:
    """A number of tokens as a server tells it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_COUNTED:
        raise ValueError("a number of tokens")
    return int(value)


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
        UpstreamError: the server gave other tokens' instead.
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
            raise UpstreamError(
                "the server lost the highest log-probabilities of a token, as vLLM's older model runner does when it "
                "answers a read in the same step; use its V2 model runner, or a policy without reads"
            )
    if not all(map(math.isfinite, (*drawn, *(value for place in top for value in place)))):
        raise ValueError("finite log-probabilities")
    return drawn, top


def _message(content: bytes) -> str:
    """What the server says, in one line."""
    try:
        said = parse_json(content)
        said = said.get("error", said)
        text = said if isinstance(said, str) else str(said.get("message", said.get("detail", said)))
    except (ValueError, AttributeError):
        return _shown(content)
    return _shown(text.encode())


def _shown(data: bytes) -> str:
    return in_one_line(data[:1000].decode(errors="replace"), 200).rstrip(".") or "nothing"
