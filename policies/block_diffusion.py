"""`block_diffusion`: a diffusion model writes, several tokens in a pass.

How a block of masked tokens becomes text is the engine's work (`reasonrt.diffusion`). A request says how it wants that
done by the options of `Decoding`; those that it leaves out are the engine's own. The engine hands over a token when
nothing can change it any more, so that what is streamed is appended to, and never edited.

Source: Residual Context Diffusion (arXiv 2601.22954), on block diffusion as in SDAR (2510.06303).
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from reasonrt.diffusion.decoding import Decoding
from reasonrt.options import option_names
from reasonrt.policies.options import read_together
from reasonrt.policies.single import Role
from reasonrt.ports import ChecksDecoding, Engine, Engines, Policy
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop, TokenDelta
from reasonrt.writing import sampling_for, write_steps


@dataclass
class EngineOptions:
    """Option: `engine`, the role of the engine that writes."""

    engine: Role = "diffusion"


@dataclass
class BlockDiffusion(Policy):
    """A diffusion model writes everything.

    Attributes:
        engine: the role of the engine that writes.
        decoding: the options of `Decoding` that were given, by name.
    """

    engine: str
    decoding: Mapping[str, Any]

    @classmethod
    def option_types(cls) -> tuple[type, ...]:
        return (EngineOptions, Decoding)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Raises: RequestError: an option that is not known, or a value that is not allowed."""
        own, decoding = read_together("block_diffusion", options, EngineOptions, Decoding)
        given = {name: getattr(decoding, name) for name in option_names(Decoding) if name in options}
        return cls(own.engine, given)

    @property
    def engines(self) -> tuple[str, ...]:
        return (self.engine,)

    @property
    def gives_logprobs(self) -> bool:
        return True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"engine": self.engine, **self.decoding}

    def accept(self, request: Request, engines: Mapping[str, Engine]) -> None:
        super().accept(request, engines)
        engine = engines[self.engine]
        if isinstance(engine, ChecksDecoding):
            engine.check_decoding(self.decoding)

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript.of(request, engines)
        sampling = sampling_for(request, transcript, engine, decoding=self.decoding, passes=request.trace)
        at_tokens = transcript.num_tokens

        def watch(delta: TokenDelta) -> None:
            nonlocal at_tokens
            if request.trace:
                request.tell("canvas", **_canvas(engine, transcript.num_tokens, delta), at_tokens=at_tokens)
            at_tokens += len(delta.token_ids)

        async with aclosing(write_steps(engine, transcript, sampling, watch)) as written:
            async for event in written:
                yield Stop(event) if isinstance(event, FinishReason) else event


def _canvas(engine: Engine, begun: int, delta: TokenDelta) -> dict[str, Any]:
    """How the block filled up, as a trace has it: `texts` have settled, and each of `passes` has the places that were
    masked before it, counted from the beginning of the answer, with the text that is expected there and how probably.
    """
    spell = engine.tokenizer.decode
    passes = [
        [[begun + place, spell([token]), round(probability, 4)] for place, token, probability in masked]
        for masked in delta.passes
    ]
    return {"author": engine.name, "texts": [spell([token]) for token in delta.token_ids], "passes": passes}
