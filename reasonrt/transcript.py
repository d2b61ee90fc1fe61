"""The committed steps of one request, as token ids for each engine that reads them.

Engines with the same tokenizer share one list of ids. Engines with different tokenizers meet here and nowhere
else: a step's text is tokenized once for each of them, and never again, so that a prefix cache always hits.
"""

from collections.abc import Sequence

from reasonrt.errors import RequestError
from reasonrt.ports import Engine
from reasonrt.types import Message, Step


class Transcript:
    """What has been said and committed so far.

    Args:
        messages: the conversation up to where the assistant begins.
        committed: the steps that it has written already.
    """

    def __init__(self, messages: Sequence[Message], committed: Sequence[Step] = ()) -> None:
        self.messages = tuple(messages)
        self.steps = list(committed)
        self.num_tokens = sum(len(step.token_ids) for step in committed)  # as their authors wrote them
        self._ids: dict[str, list[int]] = {}  # tokenizer fingerprint -> prompt and committed steps
        self._prompt_tokens: dict[str, int] = {}
        self._known_steps: dict[str, int] = {}
        self._closed: dict[str, int] = {}  # how many of the ids stand before what the last steps have begun
        self._authors: dict[str, str] = {}  # engine name -> tokenizer fingerprint

    def token_ids(self, engine: Engine) -> list[int]:
        """Prompt and committed steps in `engine`'s vocabulary. A view: valid until the next commit.

        Raises:
            RequestError: the prompt alone fills the engine's context.
        """
        fingerprint = engine.tokenizer.fingerprint
        self._authors[engine.name] = fingerprint
        if fingerprint not in self._ids:
            self._ids[fingerprint] = engine.tokenizer.chat(self.messages)
            self._prompt_tokens[fingerprint] = len(self._ids[fingerprint])
            self._known_steps[fingerprint] = 0
            self._closed[fingerprint] = len(self._ids[fingerprint])
        ids = self._ids[fingerprint]
        for step in self.steps[self._known_steps[fingerprint] :]:
            same = self._authors.get(step.author) == fingerprint
            ids.extend(step.token_ids if same else engine.tokenizer.encode(step.text))
            if step.is_complete:
                self._closed[fingerprint] = len(ids)
        self._known_steps[fingerprint] = len(self.steps)
        if (prompt_tokens := self._prompt_tokens[fingerprint]) >= engine.max_model_len:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens, engine {engine.name!r} takes at most "
                f"{engine.max_model_len - 1}; shorten it or raise max_model_len"
            )
        return ids

    def begun(self, engine: Engine) -> list[int]:
        """What is committed of a step that is not complete yet, in `engine`'s vocabulary."""
        ids = self.token_ids(engine)
        return ids[self._closed[engine.tokenizer.fingerprint] :]

    def room(self, engine: Engine) -> int:
        """How many tokens `engine` can still write before its context is full; 0 when committed steps fill it."""
        return max(0, engine.max_model_len - len(self.token_ids(engine)))

    def commit(self, step: Step) -> None:
        self.steps.append(step)
        self.num_tokens += len(step.token_ids)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)
