"""Any OpenAI-compatible server (vLLM's, SGLang's, llm-d's) as an engine, by its /completions, or else by its chat.

Prompts travel as token ids. Generations come back as ids where the server can give them (vLLM and SGLang call it
`return_token_ids`); else as text that is tokenized again here, and the engine then lacks `Capability.TOKEN_IDS`. What a
text is held to, the server holds it to, by the field that it takes. Calls of tools are read here.
"""

import asyncio
import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import httpx

from reasonrt.boundaries import BoundaryKind
from reasonrt.engines import remote_chat
from reasonrt.engines.fingerprint import engine_fingerprint
from reasonrt.engines.remote_chat import Spoken, chat_body, prompt_is_open, thinking_of
from reasonrt.engines.remote_fields import alone, chosen, required, told
from reasonrt.engines.remote_generation import Generation, index_of
from reasonrt.engines.remote_structure import TRIAL_TOKENS, TRIALS, WAYS, Way, is_held
from reasonrt.engines.remote_wire import (
    NONSENSE,
    cached_tokens,
    completion_body,
    count,
    events,
    garbage,
    is_busy,
    is_http_url,
    read_whole,
    refusal,
    top_logprobs,
    translated,
    until_it_has_time,
)
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_calls import ToolCalls, bounded
from reasonrt.engines.vllm_settings import FOUND
from reasonrt.engines.whole import JoinedStreams, joined
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError, UpstreamError, shown
from reasonrt.files import parse_json
from reasonrt.masking import can_be_sent, masked_url
from reasonrt.ports import Capability, Reading, Score, Verified, WholeStream, refuse_decoding
from reasonrt.tasks import gather
from reasonrt.types import GREEDY, FunctionTool, Message, ParsedAnswer, PromptIds, Sampling, TokenDelta

_CONNECT_TIMEOUT_S = 10.0
_SHORTEST_LENGTH = 2  # a token to read and one to write
_KEEPALIVE_S = 2.0  # below the five seconds after which uvicorn closes an idle connection: no race for it
_TOP_LOGPROBS = (20, 5)  # the most that servers give by default, as vLLM does and as OpenAI does
_QUESTION = "1 + 1 ="  # that a server is asked at the start
_BROKEN_OFF = (httpx.RemoteProtocolError, httpx.ReadError)
_NOT_KNOWN = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
_NO_ROUTE = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED)
_INTERVAL = 64  # tokens per event of a whole answer, where the server takes `stream_interval`, as vLLM does
_MOST_BY_STEP = 8  # tokens per event of a stream by steps: with more, the end of a short step would come a step late
_STREAMS_PER_TOKEN = 8  # an event holds one more token for so many streams: alone, none waits for others


class RemoteEngine:
    """A model on a server.

    Cached tokens are those that the server reports, which it does at the end: the last delta carries them. (vLLM
    needs `--enable-prompt-tokens-details`.) Tokens on their way when a stream is closed are not counted; of a whole
    generation that is given up, these are up to 64, of one by steps up to 8. Of several from one call, it reports the
    cached ones of the first.

    Args:
        name: as the author of its steps.
        base_url: up to and including `/v1`; a login in it is sent by HTTP's basic authentication, and shown nowhere.
        model: its name on the server.
        tokenizer: a folder with the model's tokenizer; None if `model` is such a folder.
        api_key: sent as the bearer.
        max_model_len: tokens; lowered at the start to what the server says it takes.
        timeout_s: the longest silence of the server, queueing included.
        boundary: what ends a step of this model's.
        tool_parser: vLLM's parser that reads its calls of tools, by its name there; `auto` is the one that fits the
            chat template, None is none.
        thinking_marks: what opens and closes its thinking; None finds them.

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
        tool_parser: str | None = FOUND,
        thinking_marks: tuple[str, str] | None = None,
    ) -> None:
        if not is_http_url(base_url):
            raise ConfigError(
                f"engine {name!r}: base_url must be like http://host:8000/v1, got {shown(masked_url(base_url))}"
            )
        url = httpx.URL(base_url)
        address = str(url.copy_with(userinfo=b""))
        if "?" in address or "#" in address:  # it may hold a key
            raise ConfigError(
                f"engine {name!r}: base_url ends with a path, as in http://host:8000/v1, and takes no query and no "
                "fragment; give the server's key as api_key"
            )
        if url.userinfo and api_key is not None:
            raise ConfigError(
                f"engine {name!r}: base_url holds a login, and there is an api_key: one request carries one of them; "
                "leave the other out"
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
        self._login = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self.name, self.base_url, self.model = name, address.rstrip("/"), model
        self.max_model_len, self.timeout_s = max_model_len, timeout_s
        self.tokenizer = HFTokenizer(tokenizer or Path(model), boundary, thinking_marks)
        self.model_fingerprint = hashlib.sha256(f"{model}\n{self.tokenizer.fingerprint}".encode()).hexdigest()
        self.fingerprint = self.model_fingerprint  # how the server runs the model is not known
        if boundary != "blank_line":
            self.fingerprint = engine_fingerprint(self.model_fingerprint, {"boundary": boundary})
        self.capabilities: frozenset[Capability] = frozenset()  # found out at the start
        self.is_known = False
        self._calls = ToolCalls(name, tool_parser, self.tokenizer, tokenizer or Path(model))
        self._structures: dict[str, Way] = {}  # by kind, how the server is asked
        self._refused = frozenset[str]()  # fields that it is not sent
        self._takes_ids = True
        self.route, self._continues, self._tells_thinking = "completions", False, False
        self._usage_of_streams: dict[str, Any] = {}
        self._api_key = api_key
        self._client: httpx.AsyncClient | None = None
        self._reads_by_id, self._most_logprobs = False, 0
        self._lock = asyncio.Lock()
        self.num_open = 0  # calls that stream

    async def start(self) -> Self:
        """Find out what the server can do, by a question about its models and completions of a few tokens.

        Raises:
            EngineError: it cannot be reached, does not know the model or the key, or answers nonsense.
            ConfigError: vLLM has no `tool_parser` of that name, or it does not fit the tokenizer.
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
                    await self._find_route()
                    await self._learn_fields()
                    if self.chats:
                        await self._learn_chat()
                    else:
                        await self._learn_capabilities()
                    await self._learn_streams()
                    if not self.chats:
                        await self._learn_structures()
                    self.is_known = True
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
        return _Stream(_Call(self, _copied(prompt_token_ids), sampling, cache_salt))

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> WholeStream:
        refuse_decoding(self.name, *samplings)
        one, prompt = samplings[0], _copied(prompt_token_ids)
        is_one_call = len(set(samplings)) == 1 and one.temperature and one.seed is None and "n" not in self._refused
        if is_one_call:  # servers vary seeds each in its own way
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
        if self.chats:
            raise CapabilityError(f"the server of engine {self.name!r} has chat alone, and reads nothing")
        self.check_fits(prompt_token_ids, 1)
        vocabulary = self.tokenizer.vocabulary()
        if unknown := [candidate for candidate in candidate_ids if candidate not in vocabulary]:
            raise RequestError(f"engine {self.name!r}: token {unknown[0]} is not in the vocabulary")
        if not candidate_ids:
            return Reading(())
        by_id = {"logprobs": 1, "logprob_token_ids": list(dict.fromkeys(candidate_ids))}
        asked = by_id if self._reads_by_id else {"logprobs": self._most_logprobs}
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

    @property
    def call_marks(self) -> tuple[str, ...]:
        return self._calls.marks

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        return await self._calls.parse(answer, tools, choice)

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        held = await self._calls.structure(tools, choice, is_parallel=is_parallel, structure=structure)
        if choice == "auto" and not structure and not any(tool.is_strict for tool in tools):
            return held if held.keys() <= self._structures.keys() else {}  # more than one call is cut off anyway
        self.check_structure(held)
        return held

    def check_structure(self, structure: Mapping[str, Any]) -> None:
        if unknown := [kind for kind in structure if kind not in self._structures]:
            known = ", ".join(self._structures) or "nothing"
            raise RequestError(
                f"the server of engine {self.name!r} cannot hold a text to {unknown[0]}, only to {known}; leave it out"
            )

    @property
    def chats(self) -> bool:
        """Whether its server has chat alone, once it is started."""
        return self.route == remote_chat.ROUTE

    @property
    def lacks(self) -> tuple[str, ...]:
        """What its server cannot do, once it is started; each in words that an operator understands."""
        lacks = told(self._refused)
        if self.chats:
            what = (
                "thinking" if self._continues else "text: it writes from the start, as in target and self_consistency"
            )
            lacks.append(f"has chat alone, and continues no {what}")
        if not self._takes_ids:
            lacks.append("takes no prompts of token ids, and is sent their text")
        if Capability.TOKEN_IDS not in self.capabilities:
            lacks.append("gives text alone, which is tokenized again")
            if "cache_salt" not in self._refused:  # no answer shows whether it knows the field
                lacks.append("may ignore cache_salt: callers then share its prefix cache")
        if self._hides_marks and not self._tells_thinking:  # no answer shows that it never does
            lacks.append("may leave out the special tokens that frame its thinking, which then stands in the answer")
        if not self.capabilities & {Capability.LOGPROBS, Capability.READ}:
            lacks.append("gives no log-probabilities")
        if kinds := [kind for kind in WAYS if kind not in self._structures]:
            lacks.append(f"holds no text to {', '.join(kinds)}")
        if Capability.TOOLS not in self.capabilities:
            lacks.append(f"no tools: {self._why_no_tools()}")
        return tuple(lacks)

    def _why_no_tools(self) -> str:
        """Empty where it calls some."""
        if self.chats:
            return "it has chat alone"
        if self._calls.parser is None:
            return "no parser is named, or found from the chat template"
        if find_spec("vllm") is None:
            return "vLLM, whose parsers read calls, is not installed here"
        if self.tokenizer.frames_calls_unseen and Capability.TOKEN_IDS not in self.capabilities:
            return "its text lacks the special tokens that frame calls"
        return ""

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

    def check_logprobs(self, top_logprobs: int) -> None:
        if top_logprobs > self._most_logprobs:
            raise CapabilityError(
                f"the server of engine {self.name!r} gives at most {self._most_logprobs} highest log-probabilities "
                f"of a token, not {top_logprobs}; ask for fewer"
            )

    @contextmanager
    def opened(self, sampling: Sampling) -> Iterator[int]:
        """A call that streams; gives the tokens per event that it asks for."""
        self.num_open += 1
        try:
            yield min(_MOST_BY_STEP, max(1, self.num_open // _STREAMS_PER_TOKEN)) if sampling.by_step else 1
        finally:
            self.num_open -= 1

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

    async def _find_route(self) -> None:
        """Completions, or chat where there are none."""
        self.route, self._continues, self.capabilities = "completions", False, frozenset()
        needed = {"model": self.model, "max_tokens": 1}
        response, _ = await self._answer("POST", self.route, needed | {"prompt": self._question()})
        if response.status_code in _NO_ROUTE:
            chat = needed | {"messages": [{"role": "user", "content": _QUESTION}]}
            response, content = await self._answer("POST", remote_chat.ROUTE, chat)
            if response.status_code != httpx.codes.OK:
                raise refusal(response, content, self.base_url, self.model)
            self.route = remote_chat.ROUTE

    async def _learn_fields(self) -> None:
        """Which fields the server refuses, and whether it takes prompts of token ids."""
        self._refused, self._takes_ids, self._usage_of_streams = frozenset(), True, {}
        logprobs = {"logprobs": 1, "logprob_token_ids": self._first_tokens()}
        body = self.body(self._question(), Sampling(1, seed=1), "a", **logprobs)
        if not await self._is_refused(body):
            return
        is_bare_refused = await self._is_refused(required(body))
        self._takes_ids = not is_bare_refused or self.chats
        if is_bare_refused:
            body["prompt"] = self.tokenizer.prompt_text(self._question())
            response, content = await self._answer("POST", self.route, required(body))
            if response.status_code != httpx.codes.OK:
                raise refusal(response, content, self.base_url, self.model)
        asked = alone(body)
        refused = await gather(*map(self._is_refused, asked.values()))
        self._refused = frozenset(name for name, is_refused in zip(asked, refused, strict=True) if is_refused)

    async def _learn_chat(self) -> None:
        """Whether the server tells the thinking apart, and continues a message that has been begun."""
        _, content = await self._answer("POST", self.route, self.body(self._question(), Sampling(TRIAL_TOKENS), ""))
        with suppress(*NONSENSE):
            self._tells_thinking = bool(thinking_of(parse_json(content)["choices"][0]["message"]))
        asked = self.body(self._question(), Sampling(1), "")
        asked["messages"] = [*asked["messages"], {"role": "assistant", "content": "2"}]
        takes_it = not await self._is_refused(asked | remote_chat.CONTINUES)
        self._continues = takes_it and await self._is_refused(asked | remote_chat.CONTRADICTION)

    def _question(self) -> PromptIds:
        return PromptIds(self.tokenizer.encode(_QUESTION), [Message("user", _QUESTION)])

    async def _learn_streams(self) -> None:
        """What it tells of the usage of a stream, and whether it writes several texts for one request."""
        several = self.body(self._question(), Sampling(1, temperature=1.0), "")
        several["n"] = 2
        response, content = await self._answer("POST", self.route, several)
        num_texts = 0
        with suppress(*NONSENSE):
            num_texts = len(parse_json(content)["choices"])
        if response.status_code != httpx.codes.OK or num_texts != several["n"]:
            self._refused |= {"n"}
        streamed = self.body(self._question(), Sampling(1), "") | {"stream": True}
        usage = {"include_usage": True}
        continuous = usage | {"continuous_usage_stats": True}
        for options in (usage,) if Capability.TOKEN_IDS in self.capabilities else (continuous, usage):
            if not await self._is_refused(streamed | {"stream_options": options}):
                self._usage_of_streams = {"stream_options": options}
                break
        else:
            self._refused |= {"stream_options"}
        if await self._is_refused(streamed | self._usage_of_streams | {"stream_interval": _INTERVAL}):
            self._refused |= {"stream_interval"}

    async def _is_refused(self, body: dict[str, Any]) -> bool:
        """Whether the server knows no such request.

        Raises:
            EngineError: it answers neither so nor with a completion.
            RequestError: it is asked for too many tokens.
        """
        with translated(self.base_url, self.timeout_s):
            async with aclosing(await self.answered("POST", self.route, body)) as response:
                if response.status_code == httpx.codes.OK and body.get("stream"):
                    return False  # it may stay open
                content = await read_whole(response, self.base_url)
        if response.status_code in (httpx.codes.OK, *_NOT_KNOWN):
            return response.status_code != httpx.codes.OK
        raise refusal(response, content, self.base_url, self.model)

    def _first_tokens(self) -> list[int]:
        return sorted(self.tokenizer.vocabulary())[:3]  # one more than `logprobs: 1` gives by itself

    async def _learn_capabilities(self) -> None:
        candidates = self._first_tokens()
        choice, _ = await self._ask(self._question(), {"logprobs": 1, "logprob_token_ids": candidates})
        found, top = set[Capability](), top_logprobs(choice)
        self._reads_by_id = all(f"token_id:{candidate}" in top for candidate in candidates)
        if top:
            found.add(Capability.READ)
            self._most_logprobs = await self._find_most_logprobs()
        if choice.get("token_ids"):
            found.add(Capability.TOKEN_IDS)
            if top:
                found.add(Capability.LOGPROBS)  # of text that is tokenized again, they would belong to other tokens
        self.capabilities = frozenset(found)
        # one that was found is loaded when it is needed: vLLM takes seconds to import
        if not self._why_no_tools() and (self._calls.is_found or await self._calls.load()):
            self.capabilities |= {Capability.TOOLS}

    async def _find_most_logprobs(self) -> int:
        for num in _TOP_LOGPROBS:
            if not await self._is_refused(self.body(self._question(), Sampling(1), "", logprobs=num)):
                return num
        return 1

    async def _learn_structures(self) -> None:
        ways = await gather(*map(self._way, WAYS))
        self._structures = {kind: way for kind, way in zip(WAYS, ways, strict=True) if way is not None}
        if self._structures:
            self.capabilities |= {Capability.STRUCTURE}

    async def _way(self, kind: str) -> Way | None:
        """How the server is asked to hold a text to such a structure; None where nothing helps."""
        value, beginning = TRIALS[kind]
        prompt = self._question()
        for way in WAYS[kind]:
            body = self.body(prompt, Sampling(TRIAL_TOKENS), "") | way.fields(value)
            # some break off where they know a field not; what has no time, or is silent, says nothing of it
            with translated(self.base_url, self.timeout_s), suppress(*_BROKEN_OFF, *NONSENSE):
                response, content = await self._exchange("POST", self.route, body)
                if response.status_code == httpx.codes.OK and is_held(
                    parse_json(content)["choices"][0]["text"], beginning
                ):
                    return way
        return None

    async def _ask(
        self, prompt_token_ids: Sequence[int], fields: dict[str, Any], cache_salt: str = ""
    ) -> tuple[dict[str, Any], int]:
        """The choice of a completion of one token, and how many prompt tokens were cached."""
        body = self.body(prompt_token_ids, Sampling(max_tokens=1), cache_salt, **fields)
        response, content = await self._answer("POST", self.route, body)
        if response.status_code != httpx.codes.OK:
            raise refusal(response, content, self.base_url, self.model)
        try:
            answer = parse_json(content)
            choice, cached = answer["choices"][0], cached_tokens(answer)
        except NONSENSE:
            choice = None
        if not isinstance(choice, dict):
            raise garbage(self.base_url, content)
        return choice, cached

    async def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[httpx.Response, bytes]:
        with translated(self.base_url, self.timeout_s):
            return await self._exchange(method, path, body)

    async def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[httpx.Response, bytes]:
        async with aclosing(await self.answered(method, path, body)) as response:
            return response, await read_whole(response, self.base_url)

    async def answered(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """An answer of which the body is not read yet; a server that has no time now is asked again.

        Raises:
            BusyError: it had none within `timeout_s`.
        """
        return await until_it_has_time(self.timeout_s)(self._open, method, path, body)

    async def _open(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        client = self.client()
        response = await client.send(client.build_request(method, f"{self.base_url}/{path}", json=body), stream=True)
        if is_busy(response):
            async with aclosing(response):
                raise refusal(response, await read_whole(response, self.base_url), self.base_url, self.model)
        return response

    def body(
        self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str, **fields: Any
    ) -> dict[str, Any]:
        """A completion as this server takes it: what it refuses is left out, of `fields` too.

        Raises:
            RequestError: what it refuses cannot be left out.
        """
        if lacking := [name for name in chosen(sampling) if name in self._refused]:
            raise RequestError(f"the server of engine {self.name!r} takes no {lacking[0]}; leave it out")
        stops = sampling.stop_token_ids | self.tokenizer.eos_token_ids
        for kind, value in sampling.structure.items():
            fields |= self._structures[kind].fields(value)
        if self._hides_marks:
            fields["skip_special_tokens"] = False
        body = completion_body(self.model, prompt_token_ids, sampling, stops, cache_salt) | fields
        if self.chats:
            body = chat_body(body, self, prompt_token_ids, continues=self._continues)
        elif not self._takes_ids:
            body["prompt"] = self.tokenizer.prompt_text(prompt_token_ids)
        return {name: value for name, value in body.items() if name not in self._refused}

    @property
    def _hides_marks(self) -> bool:
        """Whether its texts would lack the marks of the thinking by themselves."""
        return self.tokenizer.frames_thinking_unseen and Capability.TOKEN_IDS not in self.capabilities

    async def held(self, structure: Mapping[str, Any]) -> Mapping[str, Any]:
        """A structure as it is asked for: with bounded white space, where the server can bound it.

        Raises:
            RequestError: the server cannot hold a text to it.
        """
        self.check_structure(structure)
        return await asyncio.to_thread(bounded, structure) if "structural_tag" in self._structures else structure

    def spoken(self, prompt_token_ids: Sequence[int]) -> Spoken | None:
        """What makes one text of a chat's; None where the server gives texts."""
        if not isinstance(prompt_token_ids, PromptIds) or not self.chats:
            return None
        is_open = prompt_is_open(self, prompt_token_ids)
        return Spoken(is_open=is_open, tells_thinking=self._tells_thinking)

    def streamed(
        self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str, **fields: Any
    ) -> dict[str, Any]:
        """As `body`, for a stream that tells its usage, if the server can."""
        return self.body(prompt_token_ids, sampling, cache_salt, stream=True, **self._usage_of_streams, **fields)


def _copied(prompt_token_ids: Sequence[int]) -> list[int]:
    return prompt_token_ids.copy() if isinstance(prompt_token_ids, PromptIds) else list(prompt_token_ids)


class _Call:
    """One request to the server: `num` generations, of which each delta comes with its index."""

    def __init__(
        self, engine: RemoteEngine, prompt: list[int], sampling: Sampling, cache_salt: str, num: int = 1, **fields: Any
    ) -> None:
        self._engine, self._prompt, self._sampling, self._salt = engine, prompt, sampling, cache_salt
        self._fields = fields | ({"n": num} if num > 1 else {})
        self._num, self._written = num, list[Generation]()
        self._last_index, self._has_usage = 0, False
        self.cached_tokens = 0

    @property
    def generated_tokens(self) -> int:
        return sum(each.num_tokens for each in self._written)

    async def deltas(self) -> AsyncGenerator[tuple[int, TokenDelta], None]:
        """The last one comes when the server has told the usage and ended its response."""
        engine, sampling = self._engine, self._sampling
        url, has_ids = engine.base_url, Capability.TOKEN_IDS in engine.capabilities
        engine.check_fits(self._prompt, sampling.max_tokens)
        if (sampling.logprobs or sampling.top_logprobs) and Capability.LOGPROBS not in engine.capabilities:
            raise CapabilityError(
                f"engine {engine.name!r} gives no log-probabilities by token id; use a policy that needs none"
            )
        engine.check_logprobs(sampling.top_logprobs)
        stops = sampling.stop_token_ids | engine.tokenizer.eos_token_ids
        self._written = [
            Generation(url, engine.tokenizer, sampling, stops, has_ids=has_ids, spoken=engine.spoken(self._prompt))
            for _ in range(self._num)
        ]
        if sampling.structure:
            sampling = replace(sampling, structure=await engine.held(sampling.structure))
        running = set(range(self._num))
        with translated(url, engine.timeout_s), engine.opened(sampling) as interval:
            fields = ({"stream_interval": interval} if interval > 1 else {}) | self._fields
            body = engine.streamed(self._prompt, sampling, self._salt, **fields)
            async with aclosing(await engine.answered("POST", engine.route, body)) as response:
                if response.status_code != httpx.codes.OK:
                    raise refusal(response, await read_whole(response, url), url, engine.model)
                received = events(response, url, self._num * sampling.max_tokens, self._has_ended)
                async with aclosing(received):
                    while (event := await self._next(received)) is not None:
                        try:
                            items = self._items(event, has_ids)
                        except NONSENSE:
                            raise garbage(url, shown(event).encode()) from None
                        for index, delta in items:
                            yield index, delta
                        ended = [index for index in running if self._written[index].reason]
                        for index in ended[: len(running) - 1]:  # the last one waits for the usage
                            running.remove(index)
                            yield index, self._written[index].end()
                        if all(each.is_over for each in self._written):
                            break
        for index in sorted(running):
            last = self._written[index].end()
            yield index, replace(last, cached_tokens=self.cached_tokens) if len(running) == 1 else last

    async def _next(self, received: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
        """The next event; None where no more come."""
        try:
            return await anext(received, None)
        except httpx.HTTPError:
            if all(each.reason for each in self._written):
                return None  # it was only about to end
            raise

    def _has_ended(self) -> bool:
        """Whether the server has nothing more to say of it."""
        return all(each.is_cut or (each.reason and self._has_usage) for each in self._written)

    def _items(self, event: dict[str, Any], has_ids: bool) -> list[tuple[int, TokenDelta]]:
        """What an event adds."""
        told = count((event.get("usage") or {}).get("completion_tokens") or 0)
        self.cached_tokens = cached_tokens(event) or self.cached_tokens
        choices, items = event.get("choices") or [], list[tuple[int, TokenDelta]]()
        self._has_usage |= not choices and "usage" in event
        for choice in choices:
            index = self._index(choice, len(choices))
            written = self._written[index]
            items += [(index, delta) for delta in written.take(choice)]
        if told and not has_ids and (len(choices) == 1 or self._num == 1):
            self._written[index if choices else 0].told(told)
        return items

    def _index(self, choice: dict[str, Any], num_choices: int) -> int:
        """Which generation a choice of an event belongs to. Of one alone, servers number as they like."""
        index = index_of(choice)
        if self._num > 1:
            return range(self._num)[index]
        if num_choices > 1 or index < self._last_index:
            raise UpstreamError(
                f"{self._engine.base_url} writes several texts where one was asked for; see its settings"
            )
        self._last_index = index
        return 0


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
