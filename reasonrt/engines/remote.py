"""Any OpenAI-compatible server (vLLM's, SGLang's, llm-d's) as an engine, by its /completions.

Prompts travel as token ids. Generations come back as ids where the server can give them (vLLM and SGLang call it
`return_token_ids`); else as text that is tokenized again here, and the engine then lacks `Capability.TOKEN_IDS`.
"""

import asyncio
import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx

from reasonrt.boundaries import BoundaryKind
from reasonrt.engines.fingerprint import engine_fingerprint
from reasonrt.engines.remote_wire import (
    NONSENSE,
    cached_tokens,
    completion_body,
    count,
    events,
    garbage,
    is_http_url,
    logprobs_of,
    read_whole,
    refusal,
    top_logprobs,
    translated,
)
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.whole import JoinedStreams, joined
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError, UpstreamError, shown
from reasonrt.files import parse_json
from reasonrt.masking import can_be_sent, masked_url
from reasonrt.ports import Capability, Reading, Score, Verified, WholeStream, refuse_decoding
from reasonrt.types import GREEDY, FinishReason, Sampling, TokenDelta

_CONNECT_TIMEOUT_S = 10.0
_SHORTEST_LENGTH = 2  # a token to read and one to write
_KEEPALIVE_S = 2.0  # below the five seconds after which uvicorn closes an idle connection: no race for it
_TOP_LOGPROBS = 20  # the most that servers give by default
_INTERVAL = 64  # tokens per event of a whole answer, where the server takes `stream_interval`, as vLLM does
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class RemoteEngine:
    """A model on a server.

    Cached tokens are those that the server reports, which it does at the end: the last delta carries them. (vLLM
    needs `--enable-prompt-tokens-details`.) Tokens on their way when a stream is closed are not counted; of a whole
    generation that is given up, these are up to 64. Of several from one call, it reports the cached ones of the first.

    Args:
        name: as the author of its steps.
        base_url: up to and including `/v1`; a login in it is sent by HTTP's basic authentication, and shown nowhere.
        model: its name on the server.
        tokenizer: a folder with the model's tokenizer; None if `model` is such a folder.
        api_key: sent as the bearer.
        max_model_len: tokens; lowered at the start to what the server says it takes.
        timeout_s: the longest silence of the server, queueing included.
        boundary: what ends a step of this model's.

    Raises:
        ConfigError: one of these cannot be used.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        model: str,
        *,
        tokenizer: Path | None = None,
        api_key: str | None = None,
        max_model_len: int = 4096,
        timeout_s: float = 60.0,
        boundary: BoundaryKind = "blank_line",
    ) -> None:
        if not is_http_url(base_url):
            raise ConfigError(
                f"engine {name!r}: base_url must be like http://host:8000/v1, got {shown(masked_url(base_url))}"
            )
        if api_key is not None and not can_be_sent(api_key):
            raise ConfigError(f"engine {name!r}: a header cannot hold the api_key: ASCII, and no space at an end")
        if max_model_len < _SHORTEST_LENGTH or not 0 < timeout_s < math.inf:
            raise ConfigError(
                f"engine {name!r}: max_model_len must be at least 2 and timeout_s positive, "
                f"got {max_model_len} and {timeout_s}"
            )
        if tokenizer is None and not Path(model).is_dir():
            raise ConfigError(f"engine {name!r}: {model!r} is no local folder; give its tokenizer's as `tokenizer`")
        url = httpx.URL(base_url)
        self._login = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self.name, self.base_url, self.model = name, str(url.copy_with(userinfo=b"")).rstrip("/"), model
        self.max_model_len, self.timeout_s = max_model_len, timeout_s
        self.tokenizer = HFTokenizer(tokenizer or Path(model), boundary)
        self.model_fingerprint = hashlib.sha256(f"{model}\n{self.tokenizer.fingerprint}".encode()).hexdigest()
        self.fingerprint = self.model_fingerprint  # how the server runs the model is not known
        if boundary != "blank_line":
            self.fingerprint = engine_fingerprint(self.model_fingerprint, {"boundary": boundary})
        self.capabilities: frozenset[Capability] = frozenset()  # found out at the start
        self._api_key = api_key
        self._client: httpx.AsyncClient | None = None
        self._reads_by_id = False
        self._lock = asyncio.Lock()

    async def start(self) -> Self:
        """Find out what the server can do, by a question about its models and one token.

        Raises:
            EngineError: it cannot be reached, does not know the model or the key, or answers nonsense.
        """
        async with self._lock:
            if self._client is None:
                client = httpx.AsyncClient(
                    # a few bytes that unpack to gigabytes are not asked for
                    headers={"Accept-Encoding": "identity"}
                    | ({"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}),
                    auth=self._login,
                    timeout=httpx.Timeout(self.timeout_s, connect=min(_CONNECT_TIMEOUT_S, self.timeout_s), pool=None),
                    limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S),
                )
                self._client = client
                try:
                    await self._learn_length()
                    await self._learn_capabilities()
                except BaseException:
                    self._client = None
                    await client.aclose()
                    raise
        return self

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_Stream":
        refuse_decoding(self.name, sampling)
        return _Stream(_Call(self, list(prompt_token_ids), sampling, cache_salt))

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> WholeStream:
        refuse_decoding(self.name, *samplings)
        one, prompt = samplings[0], list(prompt_token_ids)
        if len(set(samplings)) == 1 and one.temperature and one.seed is None:  # servers vary seeds each in its own way
            return _WholeStream(_Call(self, prompt, one, cache_salt, len(samplings), stream_interval=_INTERVAL))
        calls = [_Call(self, prompt, sampling, cache_salt, stream_interval=_INTERVAL) for sampling in samplings]
        return JoinedStreams([_Stream(call) for call in calls])

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        """See the port.

        Raises:
            CapabilityError: the server gives only the likeliest tokens, and a candidate is not among them.
        """
        self.check_fits(prompt_token_ids, 1)
        vocabulary = self.tokenizer.vocabulary()
        if unknown := [candidate for candidate in candidate_ids if candidate not in vocabulary]:
            raise RequestError(f"engine {self.name!r}: token {unknown[0]} is not in the vocabulary")
        if not candidate_ids:
            return Reading(())
        by_id = {"logprobs": 1, "logprob_token_ids": list(dict.fromkeys(candidate_ids))}
        asked = by_id if self._reads_by_id else {"logprobs": _TOP_LOGPROBS}
        choice, cached = await self._ask(prompt_token_ids, asked, cache_salt)
        top = top_logprobs(choice)
        logprobs = []
        for candidate in candidate_ids:
            logprob = top.get(f"token_id:{candidate}", top.get(vocabulary[candidate]))
            if logprob is None:
                raise CapabilityError(
                    f"engine {self.name!r} gives no log-probability of token {candidate}, only of the {len(top)} "
                    "likeliest; use a server that takes logprob_token_ids, as vLLM does"
                )
            if type(logprob) not in (int, float) or not abs(logprob) <= sys.float_info.max:
                raise garbage(self.base_url, shown(choice).encode())
            logprobs.append(min(float(logprob), 0.0))
        return Reading(tuple(logprobs), cached)

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        raise CapabilityError(f"engine {self.name!r} is remote and verifies nothing; run it in process")

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        raise CapabilityError(f"engine {self.name!r} is remote and scores nothing; run the scoring model in process")

    def check_fits(self, prompt_token_ids: Sequence[int], new_tokens: int) -> None:
        if not prompt_token_ids or len(prompt_token_ids) + new_tokens > self.max_model_len:
            raise RequestError(
                f"engine {self.name!r}: {len(prompt_token_ids)} prompt tokens and {new_tokens} new ones do not fit "
                f"into max_model_len {self.max_model_len}; shorten the prompt or raise it"
            )

    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineError(f"engine {self.name!r} is not started; await its start() first")
        return self._client

    async def _learn_length(self) -> None:
        _, content = await self._answer("GET", "models")
        try:
            for card in parse_json(content)["data"]:
                if card["id"] == self.model and count(length := card["max_model_len"]) >= _SHORTEST_LENGTH:
                    self.max_model_len = min(self.max_model_len, int(length))
        except NONSENSE:
            return  # not every gateway lists its models; asking one says more

    async def _learn_capabilities(self) -> None:
        prompt = self.tokenizer.encode("1 + 1 =")
        candidates = sorted(self.tokenizer.vocabulary())[:3]  # one more than `logprobs: 1` gives by itself
        choice, _ = await self._ask(prompt, {"logprobs": 1, "logprob_token_ids": candidates})
        found, top = set[Capability](), top_logprobs(choice)
        self._reads_by_id = all(f"token_id:{candidate}" in top for candidate in candidates)
        if top:
            found.add(Capability.READ)
        if choice.get("token_ids"):
            found.add(Capability.TOKEN_IDS)
            if top:
                found.add(Capability.LOGPROBS)  # of text that is tokenized again, they would belong to other tokens
        self.capabilities = frozenset(found)

    async def _ask(
        self, prompt_token_ids: Sequence[int], fields: dict[str, Any], cache_salt: str = ""
    ) -> tuple[dict[str, Any], int]:
        """The choice of a completion of one token, and how many prompt tokens were cached."""
        body = self.body(prompt_token_ids, Sampling(max_tokens=1), cache_salt) | fields
        status, content = await self._answer("POST", "completions", body)
        if status != httpx.codes.OK:
            raise refusal(status, content, self.base_url, self.model)
        try:
            answer = parse_json(content)
            choice, cached = answer["choices"][0], cached_tokens(answer)
        except NONSENSE:
            choice = None
        if not isinstance(choice, dict):
            raise garbage(self.base_url, content)
        return choice, cached

    async def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        with translated(self.base_url, self.timeout_s):
            async with self.client().stream(method, f"{self.base_url}/{path}", json=body) as response:
                return response.status_code, await read_whole(response, self.base_url)

    def body(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str) -> dict[str, Any]:
        stops = sampling.stop_token_ids | self.tokenizer.eos_token_ids
        salt = cache_salt if Capability.TOKEN_IDS in self.capabilities else ""
        return completion_body(self.model, prompt_token_ids, sampling, stops, salt)


class _Call:
    """One request to the server: `num` generations, of which each delta comes with its index."""

    def __init__(
        self, engine: RemoteEngine, prompt: list[int], sampling: Sampling, cache_salt: str, num: int = 1, **fields: Any
    ) -> None:
        self._engine, self._prompt, self._sampling, self._salt = engine, prompt, sampling, cache_salt
        self._fields = fields | ({"n": num} if num > 1 else {})
        self._tokens = [0] * num
        self.cached_tokens = 0

    @property
    def generated_tokens(self) -> int:
        return sum(self._tokens)

    async def deltas(self) -> AsyncGenerator[tuple[int, TokenDelta], None]:
        """The last one comes when the server has told the usage and ended its response."""
        engine, sampling = self._engine, self._sampling
        url, has_ids = engine.base_url, Capability.TOKEN_IDS in engine.capabilities
        client = engine.client()
        engine.check_fits(self._prompt, sampling.max_tokens)
        if (sampling.logprobs or sampling.top_logprobs) and Capability.LOGPROBS not in engine.capabilities:
            raise CapabilityError(
                f"engine {engine.name!r} gives no log-probabilities by token id; use a policy that needs none"
            )
        options = {"include_usage": True, "continuous_usage_stats": not has_ids}
        body = engine.body(self._prompt, sampling, self._salt) | {"stream": True, "stream_options": options}
        running, last = len(self._tokens), None
        with translated(url, engine.timeout_s):
            async with client.stream("POST", f"{url}/completions", json=body | self._fields) as response:
                if response.status_code != httpx.codes.OK:
                    raise refusal(response.status_code, await read_whole(response, url), url, engine.model)
                num_tokens = len(self._tokens) * sampling.max_tokens
                async with aclosing(events(response, url, num_tokens)) as received:
                    async for event in received:
                        try:
                            item = self._delta(event, has_ids)
                        except NONSENSE:
                            raise garbage(url, shown(event).encode()) from None
                        if item is None:
                            continue
                        running -= item[1].finish_reason is not None
                        if running:
                            yield item
                        else:
                            last = item
        if last is None:
            raise UpstreamError(f"{url} ended a generation without a reason; see the server's log and try again")
        yield last[0], replace(last[1], cached_tokens=self.cached_tokens)

    def _delta(self, event: dict[str, Any], has_ids: bool) -> tuple[int, TokenDelta] | None:
        """What an event adds, None for one that adds no tokens."""
        usage = event.get("usage") or {}
        self.cached_tokens = cached_tokens(event) or self.cached_tokens
        if not event.get("choices"):
            if not has_ids and len(self._tokens) == 1:
                self._tokens[0] = count(usage.get("completion_tokens") or self._tokens[0])
            return None
        choice = event["choices"][0]
        index = choice.get("index", 0)
        if index not in range(len(self._tokens)):
            raise ValueError("an index of one of those that were asked for")
        before = self._tokens[index]
        token_ids = self._ids(choice, before) if has_ids else self._ids_of_text(choice)
        self._tokens[index] = before + len(token_ids)
        if not has_ids and usage:
            self._tokens[index] = count(usage.get("completion_tokens") or before)
        logprobs, top = logprobs_of(choice, self._sampling, len(token_ids))
        given = choice.get("finish_reason")
        reason = _FINISH_REASONS.get(given)
        if given and not reason:
            raise UpstreamError(
                f"{self._engine.base_url} ended a generation by {shown(given)}; see its log and try again"
            )
        return (index, TokenDelta(token_ids, logprobs, reason, 0, top)) if token_ids or reason else None

    def _ids(self, choice: dict[str, Any], before: int) -> tuple[int, ...]:
        token_ids = tuple(choice["token_ids"])
        known = self._engine.tokenizer.vocabulary()
        too_many = before + len(token_ids) > self._sampling.max_tokens
        if too_many or not all(type(token_id) is int and token_id in known for token_id in token_ids):
            raise ValueError("at most max_tokens ids of the vocabulary")
        return token_ids

    def _ids_of_text(self, choice: dict[str, Any]) -> tuple[int, ...]:
        tokenizer = self._engine.tokenizer
        token_ids = tokenizer.encode_text(choice["text"])  # servers leave control tokens out
        stop_id = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's word and SGLang's
        if type(stop_id) is int and stop_id in self._engine.tokenizer.vocabulary():
            token_ids.append(stop_id)
        elif choice.get("finish_reason") == "stop":  # the model has ended, whatever the last token of its text is
            token_ids.append(min(tokenizer.eos_token_ids))
        return tuple(token_ids)


class _Stream:
    """The only generation of a call. Closing it closes the response, at which the server stops working."""

    def __init__(self, call: _Call) -> None:
        self._call, self._deltas = call, call.deltas()

    @property
    def generated_tokens(self) -> int:
        return self._call.generated_tokens

    @property
    def passes(self) -> int:
        return self._call.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        _, delta = await anext(self._deltas)
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()


class _WholeStream:
    """All generations of a call, each when it has ended."""

    def __init__(self, call: _Call) -> None:
        self._call, self._deltas = call, call.deltas()
        self._parts: defaultdict[int, list[TokenDelta]] = defaultdict(list)

    @property
    def generated_tokens(self) -> int:
        return self._call.generated_tokens

    @property
    def cached_tokens(self) -> int:
        return self._call.cached_tokens

    @property
    def passes(self) -> int:
        return self._call.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, TokenDelta]:
        async for index, delta in self._deltas:
            self._parts[index].append(delta)
            if delta.finish_reason:
                return index, joined(self._parts.pop(index))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._deltas.aclose()
