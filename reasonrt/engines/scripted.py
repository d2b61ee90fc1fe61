"""A shipped fake: an engine that says what it was told to, with the latency that it was told to have.

For tests, examples and measurements of everything above the engines. It keeps a prefix cache of its own, so that
cached tokens are counted as a real engine would count them.
"""

import asyncio
import hashlib
import json
import math
import re
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Self

from reasonrt.engines.whole import JoinedStreams
from reasonrt.errors import EngineError, RequestError
from reasonrt.ports import Capability, Reading, Score, Verified, refuse_decoding
from reasonrt.types import GREEDY, FinishReason, FunctionTool, Message, ParsedAnswer, Sampling, TokenDelta, ToolCall

Script = Callable[[str, Sampling], str]
"""From the text of prompt and committed steps to what comes next."""

_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_EOS = 0
_BLANK_LINE = 1
_FIRST_CHARACTER = 2
_SPECIAL = ("", "\n\n")
_ASCII = 128


class CharacterTokenizer:
    """One token per character, one for the blank line, one for the end."""

    fingerprint = "characters"
    eos_token_ids = frozenset({_EOS})
    knows_tools = True

    def encode(self, text: str) -> list[int]:
        parts = text.split("\n\n")
        ids = [ord(character) + _FIRST_CHARACTER for character in parts[0]]
        for part in parts[1:]:
            ids.append(_BLANK_LINE)
            ids.extend(ord(character) + _FIRST_CHARACTER for character in part)
        return ids

    def encode_text(self, text: str) -> list[int]:
        return self.encode(text)  # its end token has no text

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join([chr(i - _FIRST_CHARACTER) if i >= _FIRST_CHARACTER else _SPECIAL[i] for i in token_ids])

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(map(_said, messages)) + "[assistant] ")

    def chat_with_tools(self, messages: Sequence[Message], tools: Sequence[FunctionTool]) -> list[int]:
        offered = "".join(f"[tool offered] {json.dumps(tool.to_json())}\n" for tool in tools)
        return [*self.encode(offered), *self.chat(messages)]

    def vocabulary(self) -> Mapping[int, str]:
        return {token_id: self.decode([token_id]) for token_id in range(_FIRST_CHARACTER + _ASCII)}


def _said(message: Message) -> str:
    calls = "".join(f"[calls {call.id}] {call.name} {call.arguments}\n" for call in message.tool_calls)
    answered = f" {message.tool_call_id}" if message.tool_call_id else ""
    return f"[{message.role}{answered}] {message.content}\n{calls}"


def continuing(text: str) -> Script:
    """Writes `text`, continuing from where the committed steps end, as a greedy model does.

    What was committed may be worded differently: steps are counted, and within a step characters.
    """

    def script(prompt: str, sampling: Sampling) -> str:
        *steps, begun = prompt.rpartition("[assistant] ")[2].split("\n\n")
        return "\n\n".join(text.split("\n\n")[len(steps) :])[len(begun) :]

    return script


class _Stream:
    """Plays a list of ids, a chunk at a time."""

    def __init__(self, engine: "ScriptedEngine", prompt: list[int], sampling: Sampling, cache_salt: str) -> None:
        self._engine, self._prompt, self._sampling, self._salt = engine, prompt, sampling, cache_salt
        self._stops = sampling.stop_token_ids | engine.tokenizer.eos_token_ids
        self._ids: list[int] | None = None
        self._life = self._cached = 0
        self._is_over = False
        self.generated_tokens = 0

    @property
    def passes(self) -> int:
        return self.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        engine = self._engine
        if self._ids is None:
            self._cached = engine.admit(self._prompt, self._sampling.max_tokens, self._salt)
            self._life = engine.life
            self._ids = [*engine.tokenizer.encode(engine.reply(self._prompt, self._sampling)), _EOS]
            engine.running += 1
        try:
            await engine.work(engine.chunk_tokens, self._life)
        except EngineError:
            await self.aclose()
            raise
        left = self._sampling.max_tokens - self.generated_tokens
        chunk = self._ids[self.generated_tokens : self.generated_tokens + min(engine.chunk_tokens, left)]
        stop_at = next((index for index, token_id in enumerate(chunk) if token_id in self._stops), None)
        if stop_at is not None:
            chunk = chunk[: stop_at + 1]
        self.generated_tokens += len(chunk)
        engine.generated_tokens += len(chunk)
        reason = None
        if stop_at is not None:
            reason = FinishReason.STOP
        elif self.generated_tokens >= self._sampling.max_tokens:
            reason = FinishReason.LENGTH
        if reason:
            engine.remember([*self._prompt, *self._ids[: self.generated_tokens]], self._salt)
            await self.aclose()
        logprobs = tuple(engine.logprob(token_id) for token_id in chunk) if self._sampling.logprobs else ()
        highest = self._sampling.top_logprobs
        top, top_ids = _tops(chunk, highest)
        return TokenDelta(tuple(chunk), logprobs, reason, self._cached, top, top_ids)

    async def aclose(self) -> None:
        if not self._is_over and self._ids is not None:
            self._engine.running -= 1
        self._is_over = True


class ScriptedEngine:
    """An engine without a model.

    Args:
        name: as the author of its steps.
        script: replies by prompt text, or one reply for every prompt.
        seconds_per_token: latency; 0 only gives others their turn, once per delta.
        chunk_tokens: tokens per delta.
        scores: the answer to `score`, from the prompt's text.
        fingerprint: that of the model it stands for; the name, if none is given.
    """

    capabilities = frozenset(Capability)
    call_marks = (_CALL,)

    def __init__(
        self,
        name: str,
        script: Script | str,
        *,
        seconds_per_token: float = 0.0,
        chunk_tokens: int = 4,
        max_model_len: int = 100_000,
        scores: Callable[[str], float] = lambda text: 0.0,
        fingerprint: str | None = None,
    ) -> None:
        self.name, self.script, self.scores = name, script, scores
        self.fingerprint = self.model_fingerprint = fingerprint or name
        self.seconds_per_token, self.chunk_tokens, self.max_model_len = seconds_per_token, chunk_tokens, max_model_len
        self.tokenizer = CharacterTokenizer()
        self.life = 0  # goes up with each death
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.running = 0  # generations that the engine works on
        self.generated_tokens = 0  # ever, over all requests
        self._cache: deque[tuple[str, bytes]] = deque(maxlen=16)  # salt and text

    async def start(self) -> Self:
        return self

    async def aclose(self) -> None:
        pass

    def kill(self) -> None:
        """Die as a real engine does: what runs fails, the next call finds it back, with an empty cache."""
        self.life += 1
        self._cache.clear()
        self._goes_on.set()

    def hang(self) -> None:
        """Stop as a real engine may: what runs gets no further, until it is killed."""
        self._goes_on.clear()

    async def check_health(self, within_s: float) -> None:
        try:
            await asyncio.wait_for(self._goes_on.wait(), within_s)
        except TimeoutError:
            self.kill()
            raise EngineError(f"engine {self.name!r} has not answered for {within_s:g} s, and was killed") from None

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> _Stream:
        refuse_decoding(self.name, sampling)
        return _Stream(self, list(prompt_token_ids), sampling, cache_salt)

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> JoinedStreams:
        return JoinedStreams([self.generate(prompt_token_ids, sampling, cache_salt) for sampling in samplings])

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        """A fixed distribution per prompt, over the vocabulary, in which no id is certain."""
        known = self.admit(prompt_token_ids, 1, cache_salt)
        self.generated_tokens += 1
        await self.work(1, self.life)
        self.remember(prompt_token_ids, cache_salt)
        seed = hashlib.blake2b(_as_bytes(prompt_token_ids), digest_size=1).digest()[0]
        logprobs = [_LOGPROBS[(seed + candidate) % _PERIOD] - _log_mass(seed) for candidate in candidate_ids]
        return Reading(tuple(logprobs), known)

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        known = self.admit([*prompt_token_ids, *drafted_ids], 1, cache_salt)
        self.generated_tokens += 1
        await self.work(1, self.life)
        own = [*self.tokenizer.encode(self.reply(prompt_token_ids, sampling)), _EOS]
        agreed = next((i for i, pair in enumerate(zip(own, drafted_ids, strict=False)) if pair[0] != pair[1]), None)
        written = own[: len(drafted_ids) if agreed is None else agreed + 1]
        top, top_ids = _tops(drafted_ids, sampling.top_logprobs)
        return Verified(
            tuple(written),
            min(known, len(prompt_token_ids) - 1),
            logprobs=tuple(map(self.logprob, drafted_ids)) if sampling.logprobs else (),
            top_logprobs=top,
            top_token_ids=top_ids,
            own_logprob=self.logprob(written[-1]) if sampling.logprobs else None,
        )

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        known = self.admit(prompt_token_ids, 0, cache_salt)
        await self.work(1, self.life)
        self.remember(prompt_token_ids, cache_salt)
        return Score(self.scores(self.tokenizer.decode(prompt_token_ids)), known)

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        """Calls as Hermes writes them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""
        calls = []
        for number, found in enumerate(re.findall(f"{_CALL}(.*?){_END_CALL}", answer, re.DOTALL)):
            try:
                call = json.loads(found)
                calls.append(ToolCall(f"call_{number}", call["name"], json.dumps(call["arguments"])))
            except (ValueError, KeyError, TypeError):
                return ParsedAnswer(answer.strip())
        return ParsedAnswer(answer.partition(_CALL)[0].strip() if calls else answer.strip(), tuple(calls))

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What was asked for, for the script to keep to."""
        asked = {"tools": [tool.name for tool in tools], "choice": choice, "is_parallel": is_parallel}
        return {"structural_tag": json.dumps(asked | {"structure": dict(structure)})}

    def admit(self, prompt: Sequence[int], max_tokens: int, cache_salt: str = "") -> int:
        """Refuse what does not fit; return how many prompt tokens the cache knows."""
        if len(prompt) + max_tokens > self.max_model_len:
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens {max_tokens} exceed max_model_len {self.max_model_len}; "
                "shorten the prompt or lower max_tokens"
            )
        ours = _as_bytes(prompt)
        known = max((_common_prefix(ours, cached) for salt, cached in self._cache if salt == cache_salt), default=0)
        return min(known, max(0, len(prompt) - 1))

    async def work(self, num_tokens: int, life: int) -> None:
        """Take as long as so many tokens take; fail when the engine has died since `life`."""
        await asyncio.sleep(self.seconds_per_token * num_tokens)
        await self._goes_on.wait()
        if self.life != life:
            raise EngineError(f"engine {self.name!r} died; ask again, it has come back")

    def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
        return self.script if isinstance(self.script, str) else self.script(self.tokenizer.decode(prompt), sampling)

    def remember(self, token_ids: Sequence[int], cache_salt: str) -> None:
        self._cache.append((cache_salt, _as_bytes(token_ids)))

    @staticmethod
    def logprob(token_id: int) -> float:
        return _LOGPROBS[token_id % _PERIOD]


_PERIOD = 101
_LOGPROBS = [math.log(0.05 + 0.9 * (i * 7919 % _PERIOD) / _PERIOD) for i in range(_PERIOD)]


def _tops(token_ids: Sequence[int], highest: int) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[int, ...], ...]]:
    """The highest log-probabilities at the place of each token, and which tokens they are."""
    if not highest:
        return (), ()
    heads = [_head(token_id, highest) for token_id in token_ids]
    return tuple([logprobs for logprobs, _ in heads]), tuple([ids for _, ids in heads])


@cache
def _head(token_id: int, highest: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Of a distribution with the script's own token in it: half of the rest, half of what then is left, ..."""
    own = _LOGPROBS[token_id % _PERIOD]
    others = [math.log((1 - math.exp(own)) / 2**i) for i in range(1, highest + 1)]
    other_ids = [_FIRST_CHARACTER + (token_id - _FIRST_CHARACTER + i) % _ASCII for i in range(1, highest + 1)]
    found = sorted([(own, token_id), *zip(others, other_ids, strict=True)], reverse=True)[:highest]
    return tuple([logprob for logprob, _ in found]), tuple([each for _, each in found])


@cache
def _log_mass(seed: int) -> float:
    """What makes the probabilities of a `read` add up to one over the vocabulary."""
    return math.log(sum(math.exp(_LOGPROBS[(seed + i) % _PERIOD]) for i in range(_FIRST_CHARACTER + _ASCII)))


def _as_bytes(token_ids: Sequence[int]) -> bytes:
    return array("I", token_ids).tobytes()


def _common_prefix(a: bytes, b: bytes) -> int:
    """How many ids `a` and `b` begin with in common."""
    size = array("I").itemsize
    low, high = 0, min(len(a), len(b)) // size
    while low < high:  # they agree on the first `low` ids, and on no more than `high`
        middle = (low + high + 1) // 2
        if a[low * size : middle * size] == b[low * size : middle * size]:
            low = middle
        else:
            high = middle - 1
    return low
