"""What block diffusion looks like: a line for each pass, what is committed in bold and what is only expected dim."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from reasonrt.config import model_folder
from reasonrt.types import Message

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray
    from torch import Tensor

    from reasonrt.kernels.online import RowStats


@dataclass
class Passes:
    """What a model wrote, pass by pass.

    Attributes:
        prompt: its number of tokens.
        block: positions that are denoised together.
        spell: the text of a token.
        written: the tokens after the prompt.
        expected: for each pass, the most probable token at each position that was masked before it.
    """

    prompt: int
    block: int
    spell: Callable[[int], str]
    written: list[int] = field(default_factory=list)
    expected: list[dict[int, int]] = field(default_factory=list)

    def watch(self, positions: "NDArray[int64]", stats: "RowStats", logits: "Tensor") -> None:
        self.expected.append(dict(zip(positions.tolist(), stats.argmax.tolist(), strict=True)))

    def draw(self, most: int) -> list[Text]:
        """The first `most` passes, each as the block that it works on."""
        lines = []
        for expected in self.expected[:most]:
            start = (min(expected) - self.prompt) // self.block * self.block
            line = Text()
            for offset in range(start, min(start + self.block, len(self.written))):
                position = self.prompt + offset
                token = expected.get(position, self.written[offset])
                line.append(self.spell(token).replace("\n", "⏎"), "dim" if position in expected else "bold")
            lines.append(line)
        return lines


def record_passes(model: str, question: str, threshold: float, max_tokens: int = 512) -> Passes:
    """Let the diffusion model in the folder `model` (or zoo:NAME) write in this process, and look at every pass."""
    import torch

    from reasonrt.diffusion.batcher import Batcher
    from reasonrt.diffusion.checkpoints import load_model
    from reasonrt.diffusion.decoding import read_decoding
    from reasonrt.diffusion.job import Job
    from reasonrt.diffusion.sampling import Drawing
    from reasonrt.diffusion.writers import Task
    from reasonrt.engines.tokenizer import HFTokenizer

    network = load_model(model_folder(model), torch.float32)
    tokenizer = HFTokenizer(model_folder(model))
    prompt = tokenizer.chat([Message("user", question)])
    decoding = read_decoding({"threshold": threshold}, network.shape)
    passes = Passes(len(prompt), decoding.block, lambda token: tokenizer.decode([token]))
    task = Task(tuple(prompt), max_tokens, frozenset(network.shape.end_token_ids))
    batcher = Batcher(network, 1, len(prompt) + max_tokens)
    batcher.add(
        Job(task, decoding, Drawing(), lambda _, settled: passes.written.extend(settled.tokens), watch=passes.watch)
    )
    while not batcher.is_idle:
        batcher.step()
    return passes
