"""HTTP as a server of completions speaks it: its stream of events, and its failures in our words."""

import asyncio
import math
import re
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
)

from reasonrt.errors import ReasonRTError, RefusedError, RequestError, UpstreamError, in_one_line
from reasonrt.files import parse_json
from reasonrt.types import Sampling

NONSENSE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""What is raised by reading an answer that is not what it says."""

_MOST_BYTES = 1 << 24  # of a whole answer
_MAX_LINE_BYTES = 1 << 22  # of an event
_TOKEN_BYTES = 1 << 13  # with its log-probabilities, at most
_MOST_REFUSED_BYTES = 1 << 16  # of an answer that is an error: its beginning says why
_MOST_COUNTED = 1 << 31
_LINGER_S = 1.0
_BUSY = frozenset({429, 503})
_MOST_ATTEMPTS = 4
_WAIT = wait_exponential(multiplier=0.5)
_MINUS_INFINITY = -9999.0  # as vLLM writes it in JSON
_BY_ID = "token_id:"  # begins the name of a token, as `return_tokens_as_token_ids` asks for
_ABOUT_LENGTH = re.compile(
    r"context length|max_model_len|max_tokens|maximum.*(length|tokens)|too long|longer than", re.I
)
_HINTS = {
    400: "see the server's log: it takes no completion that is asked for so",
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


async def events(
    response: httpx.Response, url: str, num_tokens: int, has_ended: Callable[[], bool]
) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of an SSE response, up to its `[DONE]` and then its end.

    Args:
        num_tokens: as many as it may bring.
        has_ended: whether all that was asked for is there. Some servers leave the response open nevertheless: a second
            after that, or after `[DONE]`, it is left.

    Raises:
        UpstreamError: the server reports an error, or sends what is no event, or more than so many tokens take.
    """
    is_done, until = False, None
    async with aclosing(_lines(response, url, _MOST_BYTES + num_tokens * _TOKEN_BYTES)) as lines:
        while True:
            if until is None and (is_done or has_ended()):
                until = asyncio.get_running_loop().time() + _LINGER_S
            try:
                line = await (anext(lines) if until is None else _before(until, anext(lines)))
            except (StopAsyncIteration, TimeoutError):
                return
            if is_done or not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                is_done = True  # the end of the response follows; without it the connection could not be used again
                continue
            try:
                event = parse_json(data)
            except ValueError:
                raise garbage(url, data) from None
            if not isinstance(event, dict):
                raise garbage(url, data)
            if event.get("error"):
                raise UpstreamError(f"{url} gave up a generation: {_message(data)}; see the server's log and try again")
            yield event


async def _before(deadline: float, line: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout_at(deadline):
        return await line


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
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if _is_of_tls(error):
            reason = in_one_line(str(error), 200) or "it ended the handshake"
            raise UpstreamError(
                f"no TLS with {url} ({reason}); correct base_url, or name the authority that has signed the server's "
                "certificate by SSL_CERT_FILE"
            ) from None
        raise UpstreamError(f"nothing answers at {url}; start the server or correct base_url") from None
    except httpx.TimeoutException:
        raise UpstreamError(f"{url} was silent for {timeout_s:g} s; lower the load or raise timeout_s") from None
    except httpx.HTTPError as error:
        reason = in_one_line(str(error), 200) or type(error).__name__
        raise UpstreamError(f"{url} broke off the connection ({reason}); see the server's log and try again") from None


def _is_of_tls(error: BaseException) -> bool:
    """Whether something answers at an address, and TLS is why it was not reached."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


class BusyError(RefusedError):
    """A server that asks to come back later.

    Attributes:
        after_s: in so many seconds; None where it does not say.
    """

    def __init__(self, message: str, after_s: float | None = None) -> None:  # the message alone where it is unpickled
        super().__init__(message)
        self.after_s = after_s


def is_busy(response: httpx.Response) -> bool:
    """Whether the same request may be served later."""
    return response.status_code in _BUSY and not _is_final(response)


def _is_final(response: httpx.Response) -> bool:
    return bool(response.headers.get("x-should-retry") == "false")


def until_it_has_time(timeout_s: float) -> AsyncRetrying:
    """Attempts at what raises `BusyError`: up to four, within `timeout_s` together, each when the server wants it.

    A server that names no time is asked again after half a second, and each time twice as long.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(BusyError),
        wait=_wait_as_told,
        stop=stop_after_attempt(_MOST_ATTEMPTS) | stop_before_delay(timeout_s),
        reraise=True,
    )


def _wait_as_told(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, BusyError) and error.after_s is not None:
        return error.after_s
    return float(_WAIT(state))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; None where there is no such header, or nothing that can be read in it."""
    told = headers.get("retry-after", "").strip()
    with suppress(ValueError, OverflowError):
        if math.isfinite(seconds := float(told)):
            return max(seconds, 0.0)
    with suppress(TypeError, ValueError, OverflowError):
        return max(parsedate_to_datetime(told).timestamp() - time.time(), 0.0)
    return None


def refusal(response: httpx.Response, content: bytes, url: str, model: str) -> ReasonRTError:
    """The error for an answer that is not 200; the caller of a request that is too long learns of no server."""
    status = response.status_code
    message = _message(content)
    if status in (400, 413, 422) and _ABOUT_LENGTH.search(message):
        return RequestError(
            f"the server of the model {model!r} refuses so many tokens; shorten the prompt or lower max_tokens"
        )
    hint = "see the server's log and try again" if status >= 500 else "check base_url"
    if status == 404:
        hint = f"check that base_url ends in /v1 and that the server's model is called {model!r}"
    told = f"{url} answered {status}: {message}; {_HINTS.get(status, hint)}"
    if is_busy(response):
        return BusyError(told, _retry_after(response.headers))
    # a server that has failed may have come back by the next time
    return RefusedError(told) if status < 500 or _is_final(response) else UpstreamError(told)


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
        "presence_penalty": sampling.penalties.presence,
        "frequency_penalty": sampling.penalties.frequency,
        "repetition_penalty": sampling.penalties.repetition,
        "stop_token_ids": sorted(stop_token_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.logprobs or sampling.top_logprobs:
        fields["logprobs"] = max(sampling.top_logprobs, 1)
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
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[tuple[int, ...], ...]]:
    """Of each token of `choice`, what `sampling` asks for: its log-probability, the highest ones there, and their ids.

    Of a server that names tokens by text, there are no ids, and fewer than were asked for where two have one name.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a token has none, or one that is no finite number.
        UpstreamError: the server gave other tokens' instead.
    """
    drawn: tuple[float, ...] = ()
    top: tuple[tuple[float, ...], ...] = ()
    top_ids: tuple[tuple[int, ...], ...] = ()
    if sampling.logprobs and num_tokens:
        drawn = tuple(min(float(value), 0.0) for value in choice["logprobs"]["token_logprobs"])
        if len(drawn) != num_tokens:
            raise ValueError("one log-probability for each token")
    if sampling.top_logprobs and num_tokens:
        places = [
            sorted(((min(float(value), 0.0), name) for name, value in place.items()), reverse=True)
            for place in choice["logprobs"]["top_logprobs"]
        ]
        # servers add the token that was drawn to those that were asked for
        places = [place[: sampling.top_logprobs] for place in places]
        top = tuple(tuple(value for value, _ in place) for place in places)
        if all(name.startswith(_BY_ID) for place in places for _, name in place):
            top_ids = tuple(tuple(count(int(name.removeprefix(_BY_ID))) for _, name in place) for place in places)
        if len(top) != num_tokens or not all(top):
            raise ValueError("the highest log-probabilities at each token")
        if any(place[-1] <= _MINUS_INFINITY for place in top):
            raise UpstreamError(
                "the server lost the highest log-probabilities of a token, as vLLM's older model runner does when it "
                "answers a read in the same step; use its V2 model runner, or a policy without reads"
            )
    if not all(map(math.isfinite, (*drawn, *(value for place in top for value in place)))):
        raise ValueError("finite log-probabilities")
    return drawn, top, top_ids


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
