"""How much a draft and a target have in common: tokens that are the same, and steps that are worth the same.

Both are of the pair and its problems, whatever arm runs. Token-level speculation lives from the first, speculation by
steps from the second: a step in other words may be as good.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from reasonrt.evals.step_recording import RecordingSettings, record_pairs
from reasonrt.evals.tasks import TaskProblem
from reasonrt.policies.speculation.verification import why_not_verify
from reasonrt.ports import Engine
from reasonrt.runtime import Runtime
from reasonrt.tasks import run_bounded
from reasonrt.types import Completion, Limits, Request


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """How a draft agrees with what its target writes, greedily.

    Attributes:
        runs: lengths of the stretches of the target's texts that the draft would have written as well; the target's
            token after each is its own, where the text does not end before that.
        num_tokens: of the target's texts.
        why_not: where the two cannot be compared; there are no runs then.
    """

    runs: tuple[int, ...] = ()
    num_tokens: int = 0
    why_not: str = ""

    @property
    def share(self) -> float | None:
        """Of the target's tokens, those that the draft would have written after the same text."""
        return sum(self.runs) / self.num_tokens if self.num_tokens else None

    def passes_per_token(self, tokens_ahead: int) -> float | None:
        """Passes of the target for each token of its text, with so many tokens of the draft's in each: a replay.

        A pass accepts the tokens up to the first that differs, and brings one of the target's own.
        """
        passes = sum(run // (tokens_ahead + 1) + 1 for run in self.runs)
        return passes / self.num_tokens if self.num_tokens else None


async def token_agreement(
    runtime: Runtime, problems: Sequence[TaskProblem], limits: Limits, suffix: str = "", concurrency: int = 8
) -> TokenAgreement:
    """How the draft agrees with the target's greedy text of each problem: passes of the draft over that text."""
    draft, target = runtime.engines["draft"], runtime.engines["target"]
    if reason := why_not_verify(target, draft, 0.0):
        return TokenAgreement(why_not=reason)

    async def compare(problem: TaskProblem) -> TokenAgreement:
        request = Request.ask(problem.question + suffix, limits=limits)
        return await _compare(draft, request, await runtime.complete(request))

    calls = (partial(compare, problem) for problem in problems)
    found = [one async for one in run_bounded(calls, concurrency)]
    return TokenAgreement(tuple(run for one in found for run in one.runs), sum(one.num_tokens for one in found))


async def step_agreement(
    runtime: Runtime, problems: Sequence[TaskProblem], max_tokens: int, out: Path, suffix: str = ""
) -> float | None:
    """The share of the draft's steps that are worth no less than the target's after the same text, by rollouts."""
    asked = [replace(problem, question=problem.question + suffix) for problem in problems]
    records = await record_pairs(runtime, asked, RecordingSettings(max_tokens=max_tokens), out)
    pairs = [pair for record in records for pair in record.pairs]
    return sum(pair["draft_value"] >= pair["target_value"] for pair in pairs) / len(pairs) if pairs else None


async def _compare(draft: Engine, request: Request, written: Completion) -> TokenAgreement:
    prompt = list(request.prompts.token_ids(draft.tokenizer, request.messages))
    ids = [token_id for step in written.steps for token_id in step.token_ids]
    ids = ids[: draft.max_model_len - len(prompt) - 1]
    runs, begin = list[int](), 0
    while begin < len(ids):
        verified = (await draft.verify([*prompt, *ids[:begin]], ids[begin:])).token_ids
        runs.append(len(verified) - (verified != tuple(ids[begin:])))
        begin += runs[-1] + 1
    return TokenAgreement(tuple(runs), len(ids))
