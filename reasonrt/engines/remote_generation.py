"""One generation of a server's, from the chunks that it comes in: which tokens it has, and by what it ended.

Servers differ in how they say that a text has ended, and not all end it where they were asked to. So this is decided
here, in one place, by the first of:

* a stop token, whether or not the server stops at it;
* the token limit, by our count: a text has other tokens here than on the server;
* the server's word, one of `FINISH_REASONS`. What it still adds after its word belongs to the text.
"""

import logging
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from typing import Any

from reasonrt.engines.remote_chat import Spoken
from reasonrt.engines.remote_wire import count, logprobs_of
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.whole import joined
from reasonrt.errors import UpstreamError, shown
from reasonrt.types import FinishReason, Sampling, TokenDelta

FINISH_REASONS: dict[str, FinishReason | None] = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "stop_token": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "max_new_tokens": FinishReason.LENGTH,
    "max_length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "abort": None,
    "aborted": None,
    "cancelled": None,
    "error": None,
}
"""Why servers say that a text has ended, in small letters; None where the text is not the whole one.

Of another word we know only that the text has ended: it counts as `stop`, and is logged once.
"""

_LONGEST_WORD = 64
_log = logging.getLogger(__name__)


class Generation:
    """One generation, as it comes.

    Args:
        url: of the server, for errors.
        tokenizer: the model's.
        sampling: what was asked for.
        stop_token_ids: the generation ends with, and includes, the first of these; end tokens included.
        has_ids: the server gives token ids; else its texts are tokenized here, chunk by chunk.
        spoken: makes texts of a chat; None where it gives texts.

    Attributes:
        num_tokens: that the server has generated, whether or not they are in the text.
        reason: why it has ended; None while it has not.
        is_cut: it was ended here: what follows is no part of it.
        is_over: it was ended here, and the server writes on.
    """

    def __init__(
        self,
        url: str,
        tokenizer: HFTokenizer,
        sampling: Sampling,
        stop_token_ids: Collection[int],
        *,
        has_ids: bool,
        spoken: Spoken | None = None,
    ) -> None:
        self._url, self._tokenizer, self._sampling = url, tokenizer, sampling
        self._stops, self._has_ids, self._spoken = stop_token_ids, has_ids, spoken
        self.num_tokens = 0
        self.reason: FinishReason | None = None
        self.is_cut = self.is_over = False
        self._is_counted = self._is_handed_out = False
        self._has_servers_word = False
        self._left = sampling.max_tokens
        self._half = ""  # of a character that the server has cut in two
        self._stop_id: int | None = None  # that the server leaves out of its text
        self._held: list[TokenDelta] = []  # may be the last

    def take(self, choice: dict[str, Any]) -> list[TokenDelta]:
        """What has become certain by a chunk: the last delta is held back until `end`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not what it says.
            UpstreamError: the server gave up.
        """
        ids = self._ids(choice) if self._has_ids else self._ids_of_text(choice)
        self.num_tokens += len(ids)
        drawn, top, top_ids = logprobs_of(choice, self._sampling, len(ids))
        word = self._word(choice)
        self._has_servers_word |= word is not None
        if self.is_cut:
            self.is_over |= bool(ids) and not self._has_servers_word
            return []
        kept = next((place for place, token_id in enumerate(ids, 1) if token_id in self._stops), len(ids))
        if kept > self._left:
            self.reason, self.is_cut = FinishReason.LENGTH, True
        elif ids and ids[kept - 1] in self._stops:
            self.reason, self.is_cut = FinishReason.STOP, True
        elif word is not None:
            self.reason = word
        kept = min(kept, self._left)
        self._left -= kept
        self.is_over |= kept < len(ids) and not self._has_servers_word
        if not kept:
            return []
        if self._is_handed_out:
            raise UpstreamError(f"{self._url} wrote more of a text that it had ended; ask it for one text at a time")
        before, self._held = self._held, []
        delta = TokenDelta(tuple(ids[:kept]), drawn[:kept], None, 0, top[:kept], top_ids[:kept])
        if self.reason:
            self._held = [delta]
            return before
        return [*before, delta]

    def told(self, num_tokens: int) -> None:
        """The server's own count, up to here."""
        self.num_tokens, self._is_counted = num_tokens, True

    def end(self) -> TokenDelta:
        """The last delta.

        Raises:
            UpstreamError: the server has said nothing of an end.
        """
        if self.reason is None:
            raise UpstreamError(f"{self._url} ended a generation without a reason; see the server's log and try again")
        held = joined(self._held) if self._held else TokenDelta(())
        self._held, self._is_handed_out = [], True
        if self.reason is FinishReason.STOP and not self._has_ids and not self.is_cut and self._left:
            # the model has ended, whatever the last token of its text is
            stop_id = min(self._tokenizer.eos_token_ids) if self._stop_id is None else self._stop_id
            held = replace(held, token_ids=(*held.token_ids, stop_id))
            self.num_tokens += not self._is_counted
        return replace(held, finish_reason=self.reason)

    def _ids(self, choice: dict[str, Any]) -> list[int]:
        token_ids = choice.get("token_ids")
        if token_ids is None and not choice.get("text"):
            return []  # a chunk that only says why it ended
        known = self._tokenizer.vocabulary()
        if not isinstance(token_ids, list) or not all(type(each) is int and each in known for each in token_ids):
            raise ValueError("ids of the vocabulary")
        return token_ids

    def _ids_of_text(self, choice: dict[str, Any]) -> list[int]:
        stop_id = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's word and SGLang's
        if type(stop_id) is int and stop_id in self._tokenizer.vocabulary():
            self._stop_id = stop_id
        pieces = self._spoken.pieces(choice) if self._spoken else [(choice.get("text") or "", False)]
        ids: list[int] = []
        for text, is_mark in pieces:
            if not isinstance(text, str):
                raise ValueError("a text")
            # servers leave control tokens out
            ids += self._tokenizer.encode(text) if is_mark else self._tokenizer.encode_text(self._mended(text, choice))
        return ids

    def _mended(self, text: str, choice: dict[str, Any]) -> str:
        """`text` with characters that came in halves; one half alone is no character."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff" and not choice.get("finish_reason"):
            text, self._half = text[:-1], text[-1]
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _word(self, choice: dict[str, Any]) -> FinishReason | None:
        given = choice.get("finish_reason")
        if not given:
            return None
        if not isinstance(given, str) or len(given) > _LONGEST_WORD:
            raise ValueError("a reason")
        reason = FINISH_REASONS.get(given.lower(), FinishReason.STOP)
        if reason is None:
            raise UpstreamError(f"{self._url} ended a generation by {shown(given)}; see its log and try again")
        if given.lower() not in FINISH_REASONS:
            _tell_once(self._url, given)
        return reason


def index_of(choice: dict[str, Any]) -> int:
    """Which of several generations a chunk belongs to.

    Raises:
        ValueError: it is no index.
    """
    index = choice.get("index")
    return 0 if index is None else count(index)


@lru_cache(maxsize=256)
def _tell_once(url: str, reason: str) -> None:
    _log.warning("%s ends texts by %s, which is not known here: it counts as stop", url, shown(reason))
