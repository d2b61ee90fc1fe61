"""What a model that judges steps is given to read: question, committed steps, the step in question.

Each prompt begins with the one before it, so an engine reads only what is new from outside its prefix cache, and
no step is ever tokenized twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reasonrt.ports import Engine
from reasonrt.routers.history import whole_steps
from reasonrt.tasks import read_text
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Prompts, Step, Tokenizer


@dataclass(frozen=True, slots=True)
class Layout:
    """How question and steps become token ids.

    Attributes:
        opening: from the conversation to the ids before the first step.
        step: from a step's text, and whether the target wrote it, to its ids.
    """

    opening: Callable[[Tokenizer, Prompts, tuple[Message, ...]], Sequence[int]]
    step: Callable[[Tokenizer, str, bool], list[int]]


def _chat(tokenizer: Tokenizer, prompts: Prompts, messages: tuple[Message, ...]) -> Sequence[int]:
    return prompts.token_ids(tokenizer, messages)


PLAIN = Layout(_chat, lambda tokenizer, text, by_target: tokenizer.encode_text(text))
"""The conversation as a policy's engines see it; what the zoo's reward model reads."""

MARKED = Layout(_chat, lambda tokenizer, text, by_target: tokenizer.encode_text(f"Model {int(by_target)}: {text}"))
"""With the author of each step before it (Arbitrage, arXiv 2512.05033, section 4.2)."""

SKYWORK = Layout(
    # the beginning-of-text token is named by no tokenizer here; Qwen has none, and this model is a Qwen
    lambda tokenizer, prompts, messages: tokenizer.encode_text(messages[-1].content + "\n"),
    lambda tokenizer, text, by_target: tokenizer.encode_text(text.rstrip("\n")) + tokenizer.encode("\n")[-1:],
)
"""Skywork-o1-Open-PRM: question, a line feed, and each step closed by the token at which its score is read."""

QWEN_PRM = Layout(
    lambda tokenizer, prompts, messages: prompts.token_ids(
        tokenizer,
        (Message("system", "Please reason step by step, and put your final answer within \\boxed{}."), *messages)
        if messages[0].role != "system"
        else messages,
    ),
    lambda tokenizer, text, by_target: tokenizer.encode_text(text.strip()) + tokenizer.encode("<extra_0>"),
)
"""Qwen2.5-Math-PRM: each step closed by `<extra_0>`, at which its score is read."""

LayoutName = Literal["plain", "marked", "skywork", "qwen_prm"]
LAYOUTS: Mapping[LayoutName, Layout] = {"plain": PLAIN, "marked": MARKED, "skywork": SKYWORK, "qwen_prm": QWEN_PRM}


class StepPrompt:
    """The growing prompt of one request for one judging engine."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self._engine, self._layout = engine, layout
        self._ids: list[int] = []  # up to the committed steps
        self._num_steps = -1  # of these; -1: not even the question
        self._last: tuple[str, bool] = ("", False)
        self._last_ids: list[int] = []

    async def score(self, transcript: Transcript, step: Step) -> float:
        """The engine's scalar for the draft's `step` after what is committed.

        Raises:
            EngineError: the engine died.
            RequestError: the prompt does not fit into its context.
        """
        if self._num_steps < 0:
            await read_text(sum(len(message.content) for message in transcript.messages), self._open, transcript)
        return (await self._engine.score(self.token_ids(transcript, step))).value

    def token_ids(self, transcript: Transcript, step: Step) -> list[int]:
        if self._num_steps < 0:
            self._open(transcript)
        for committed in whole_steps(transcript.steps[self._num_steps :], step.author):
            self._ids += self._encoded(committed, by_target=committed.author != step.author)
        self._num_steps = len(transcript.steps)
        return [*self._ids, *self._encoded(step, by_target=False)]

    def _open(self, transcript: Transcript) -> None:
        self._ids = list(self._layout.opening(self._engine.tokenizer, transcript.prompts, transcript.messages))
        self._num_steps = 0

    def _encoded(self, step: Step, *, by_target: bool) -> list[int]:
        if self._last != (step.text, by_target):
            self._last = (step.text, by_target)
            self._last_ids = self._layout.step(self._engine.tokenizer, step.text, by_target)
        return self._last_ids
