"""Control tokens stay with the chat template: in what people, documents and models write, they are text.

A template frames messages with tokens of its own, such as `<|im_start|>`. A tokenizer reads them in any text, so that a
message that quotes `<|im_end|>` would end there, and what stands after it could pass for a message of its own.
"""

import re
import secrets
from collections.abc import Collection, Iterable
from functools import cached_property

from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer

from reasonrt.errors import RequestError
from reasonrt.tasks import LONG_CHARACTERS
from reasonrt.thinking import END_THINK, THINK

_UNKNOWN = "\U0010fffd"  # of a private plane
_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


class ControlTokens:
    """The control tokens of one tokenizer, and how a text is encoded in which they are none.

    Control tokens are those that the tokenizer marks as special, those that end a generation, and tags that the
    template itself writes: some models do not mark theirs. Other added tokens stay what they are in any text: they
    decode to themselves, and models have read them in messages. So do `<think>` and `</think>`, by which templates
    find the thinking in earlier answers to leave it out, unless the tokenizer marks them.

    Args:
        backend: left as it is.
        end_ids: tokens that end a generation.
        framing: what the template writes by itself.
    """

    def __init__(self, backend: BackendTokenizer, end_ids: Collection[int], framing: Iterable[str]) -> None:
        tags = {tag for text in framing for tag in _TAG.findall(text)} - {THINK, END_THINK}
        added = backend.get_added_tokens_decoder()
        self._added: list[tuple[int, AddedToken]] = [
            (token_id, token)
            for token_id, token in sorted(added.items())
            if token.content and (token.special or token_id in end_ids or token.content in tags)
        ]
        self._backend, self._ids = backend, {token_id for token_id, _ in self._added}
        self._index = {token.content: index for index, (_, token) in enumerate(self._added)}
        texts = sorted(self._index, key=len, reverse=True)  # of two that begin alike, the longer one
        self._pattern = "|".join(map(re.escape, texts)) or "(?!)"
        self._find = re.compile(self._pattern)
        secret = secrets.token_hex(16)
        # under these the template's own are encoded; no text holds one, as nobody is told them
        self._aliases = [f"{secret}{index}x" for index in range(len(self._added))]
        # "＜s＞" may be "<s>" once it is normalized
        self._is_fuzzy = backend.normalizer is not None and any(token.normalized for _, token in self._added)

    def may_stand_in(self, text: str) -> bool:
        """False where the tokenizer finds no control token in `text`."""
        return self._is_fuzzy or self._find.search(text) is not None

    def among(self, token_ids: Iterable[int]) -> list[int]:
        """Those of `token_ids` that are control tokens."""
        return [token_id for token_id in token_ids if token_id in self._ids]

    def hide(self, text: str, secret: str) -> str:
        """`text` with stand-ins, which a template carries through, for what reads like control tokens."""
        return self._find.sub(lambda found: f"{secret}{self._index[found[0]]}x", text)

    def encode(self, rendered: str, secret: str) -> list[int]:
        """The ids of what a template made of hidden texts: its own control tokens are such, theirs are text.

        Raises:
            RequestError: the tokenizer knows no other way to write one of them.
        """

        def told_apart(found: re.Match[str]) -> str:
            return self._aliases[self._index[found[0]]] if found[1] is None else self._added[int(found[1])][1].content

        text = re.sub(f"{secret}(\\d+)x|{self._pattern}", told_apart, rendered)
        return [self._by_alias.get(token_id, token_id) for token_id in self.encode_text(text)]

    def encode_text(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token.

        Raises:
            RequestError: as `encode`.
        """
        ids = encode_with(self._plain, text)
        if found := self._never_text.intersection(ids):
            (name,) = [token.content for token_id, token in self._added if token_id == min(found)]
            raise RequestError(f"the text holds {name!r:.64}, which is no text to this model; leave it out")
        return ids

    @cached_property
    def _by_alias(self) -> dict[int, int]:
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        return {vocabulary[alias]: token_id for alias, (token_id, _) in zip(self._aliases, self._added, strict=True)}

    @cached_property
    def _plain(self) -> BackendTokenizer:
        """A second backend, which finds control tokens under their aliases only; made when a text needs it."""
        plain = BackendTokenizer.from_str(self._backend.to_str())
        plain.add_special_tokens([token for _, token in self._added])  # those that were not marked
        plain.encode_special_tokens = True  # as text
        plain.add_tokens(
            [
                AddedToken(alias, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
                for alias, (_, token) in zip(self._aliases, self._added, strict=True)
            ]
        )
        return plain

    @cached_property
    def _never_text(self) -> frozenset[int]:
        """Control tokens, without the one that stands for characters that the vocabulary lacks."""
        return frozenset(self._ids.difference(self._plain.encode(_UNKNOWN, add_special_tokens=False).ids))


def encode_with(backend: BackendTokenizer, text: str) -> list[int]:
    """The ids of `text`, found without keeping other threads waiting where it is long."""
    ids: list[int]
    if len(text) <= LONG_CHARACTERS:
        ids = backend.encode(text, add_special_tokens=False).ids
    else:  # of the backend's calls, only those for several texts let other threads run
        ids = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
