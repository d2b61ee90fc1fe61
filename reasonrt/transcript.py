"""The committed steps of one request, as token ids for each engine that reads them.

Engines with the same tokenizer share one list of ids. Engines with different tokenizers meet here and nowhere
else: a step's text is tokenized once for each vocabulary, and never again, so that a prefix cache always hits.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from reasonrt.errors import RequestError
from reasonrt.ports import Engine
from reasonrt.thinking import CLOSING
from reasonrt.types import FunctionTool, Message, PromptIds, Prompts, Request, Step, Tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """Equal for tokenizers whose ids stand for the same tokens, whatever their chat templates are."""
    known: str = getattr(tokenizer, "vocabulary_fingerprint", tokenizer.fingerprint)
    return known


@dataclass(slots=True)
class _Reading:
    """Prompt and committed steps as the engines of one tokenizer read them.

    Attributes:
        prompt_tokens: how many of the ids are the prompt.
        num_steps: how many steps the ids hold.
        closed: how many of the ids stand before what the last steps have begun.
    """

    ids: list[int]
    prompt_tokens: int
    num_steps: int = 0
    closed: int = field(init=False)

    def __post_init__(self) -> None:
        self.closed = self.prompt_tokens


class Transcript:
    """What has been said and committed so far.

    Args:
        messages: the conversation up to where the assistant begins.
        engines: those that may have written steps; the token ids of their steps are kept in their vocabulary, while
            the steps of other authors are tokenized from text.
        committed: the steps that are written already.
        prompts: of the request, where there is one.
        tools: that the conversation offers.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        engines: Iterable[Engine] = (),
        committed: Iterable[Step] = (),
        prompts: Prompts | None = None,
        tools: tuple[FunctionTool, ...] = (),
    ) -> None:
        self.messages, self.prompts, self.tools = tuple(messages), prompts or Prompts(), tools
        self.steps: list[Step] = []
        self.num_tokens = 0  # of the steps, as their authors wrote them
        self.num_tokens_by = Counter[str]()  # author to the same
        self._engines = tuple(engines)
        self._vocabularies = {engine.name: vocabulary_of(engine.tokenizer) for engine in self._engines}
        self._readings: dict[str, _Reading] = {}  # by tokenizer fingerprint
        for step in committed:
            self.commit(step)

    @classmethod
    def of(cls, request: Request, engines: Mapping[str, Engine]) -> Self:
        """What is committed of a request; `engines` by role, as a policy gets them."""
        return cls(request.messages, engines.values(), request.committed, request.prompts, request.tools)

    def token_ids(self, engine: Engine) -> list[int]:
        """Prompt and committed steps in `engine`'s vocabulary. A view: valid until the next commit.

        They are `PromptIds`, but where the prompt was given as ids.

        Raises:
            RequestError: the prompt alone fills the engine's context.
        """
        reading = self._read(engine)
        if reading.prompt_tokens >= engine.max_model_len:
            raise RequestError(
                f"the prompt has {reading.prompt_tokens} tokens, engine {engine.name!r} takes at most "
                f"{engine.max_model_len - 1}; shorten it or raise max_model_len"
            )
        return reading.ids

    def begun(self, engine: Engine) -> list[int]:
        """What is committed of a step that is not complete yet, in `engine`'s vocabulary."""
        ids = self.token_ids(engine)
        return ids[self._read(engine).closed :]

    def room(self, engine: Engine) -> int:
        """How many tokens `engine` can still write before its context is full; 0 when committed steps fill it."""
        return max(0, engine.max_model_len - len(self.token_ids(engine)))

    def shared_length(self, engine: Engine, step: Step, length: int) -> int:
        """How many of a step's first `length` tokens end where `engine`'s tokens would end, too.

        Cut anywhere else, the step would leave an engine of another tokenizer after ids that it never writes itself,
        such as the first half of one of its words.
        """
        author = next((each for each in self._engines if each.name == step.author), None)
        if author is None or vocabulary_of(author.tokenizer) == vocabulary_of(engine.tokenizer):
            return length
        whole = engine.tokenizer.encode_text(step.text)
        while length:
            ids = engine.tokenizer.encode_text(author.tokenizer.decode(step.token_ids[:length]))
            if whole[: len(ids)] == ids:
                break
            length -= 1
        return length

    def commit(self, step: Step) -> None:
        self.steps.append(step)
        self.num_tokens += len(step.token_ids)
        self.num_tokens_by[step.author] += len(step.token_ids)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    def _read(self, engine: Engine) -> _Reading:
        tokenizer = engine.tokenizer
        if tokenizer.fingerprint not in self._readings:
            prompt = list(self.prompts.token_ids(tokenizer, self.messages, self.tools))
            if not self.prompts.are_given:
                prompt = PromptIds(prompt, self.messages, self.tools)
            self._readings[tokenizer.fingerprint] = _Reading(prompt, len(prompt))
        reading, vocabulary = self._readings[tokenizer.fingerprint], vocabulary_of(tokenizer)
        for step in self.steps[reading.num_steps :]:
            is_own = self._vocabularies.get(step.author) == vocabulary
            encode = tokenizer.encode if step.author == CLOSING else tokenizer.encode_text  # that one is ours
            reading.ids.extend(step.token_ids if is_own else encode(step.text))
            if step.is_complete:
                reading.closed = len(reading.ids)
        reading.num_steps = len(self.steps)
        return reading
