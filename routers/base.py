"""What a router is: a number for a draft step."""

from typing import Protocol

from reasonrt.transcript import Transcript
from reasonrt.types import Step


class Router(Protocol):
    """Given what is committed and the draft's next step, how much better would the target's step be?

    A router is built per request, so it may keep what it has worked out for the steps so far. One that reads no
    log-probabilities of the draft's has the attribute `reads_logprobs` with the value False: a draft that gives none,
    as some servers do not, can then be used with it.
    """

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        """The predicted advantage of the target's step over `step`; higher speaks for the target.

        The unit is the router's own: see each. `step` may be incomplete, when it is asked about early.

        Raises:
            EngineError: the model that it asks died.
        """
