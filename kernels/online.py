"""Statistics of softmax rows whose columns come in pieces: the result, and its accumulation in torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from reasonrt.kernels.dispatch import accumulator, check_distribution, check_targets, check_top_k

_GROUP = 64
"""Columns whose maximum is taken together when the highest columns are looked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of R distributions over V tokens: the options of `row_stats`."""

    targets: Tensor | None
    temperature: float
    top_k: int
    excluded: int | None

    def check(self, name: str, rows: Tensor, vocab_size: int) -> None:
        """Raises: KernelError: what cannot be asked of `rows`, [R, any], called `name`, against so many tokens."""
        check_targets(self.targets, name, rows)
        check_distribution(self.temperature, self.excluded, vocab_size)
        check_top_k(self.top_k, vocab_size)

    def of_rows(self, rows: slice) -> "Wanted":
        return self if self.targets is None else replace(self, targets=self.targets[rows])


@dataclass(frozen=True, slots=True)
class RowStats:
    """What is wanted of R distributions over V tokens, p = softmax(logits / temperature).

    The numbers are float32 (float64 of float64 logits). Columns of -inf count as probability 0. A row with nothing but
    -inf, or with NaN or +inf, has no distribution: all of its numbers but `lse` are NaN.

    Attributes:
        lse: [R], log of the sum of exp(logits / temperature).
        logprob: [R], log p of the row's target; NaN where the target is no id of the vocabulary. None without targets.
        entropy: [R], of p in nats, in [0, log V].
        max_prob: [R], the highest p.
        argmax: [R], int64, where it is; the lowest id among equals.
        margin: [R], the highest p less the second highest, in [0, 1].
        top_logprobs: [R, top_k], the highest log p, descending.
        top_ids: [R, top_k], int64, their ids, ascending among equals; -1 where fewer than top_k are above -inf.
    """

    lse: Tensor
    logprob: Tensor | None
    entropy: Tensor
    max_prob: Tensor
    argmax: Tensor
    margin: Tensor
    top_logprobs: Tensor
    top_ids: Tensor

    def at(self, rows: Tensor | slice) -> "RowStats":
        """Those of some rows: [n] int64, or a slice."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return RowStats(**{name: None if column is None else column[rows] for name, column in columns.items()})

    @classmethod
    def concatenate(cls, parts: Sequence["RowStats"]) -> "RowStats":
        """The rows of the first, then those of the second, and so on."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(**{name: None if column[0] is None else torch.cat(column) for name, column in columns.items()})


class OnlineStats:
    """Accumulates the statistics of rows over pieces of their columns, which come in ascending order.

    With d = (logit - highest so far) / temperature it keeps, for each row, the sum of exp(d) and that of exp(d) * d:
    from these, entropy = log(sum) - moment / sum, two terms >= 0, without cancellation. Inside, d is in units of log 2,
    as exp2 is the faster function.

    Source: Milakov and Gimelshein (2018), "Online normalizer calculation for softmax".
    """

    def __init__(self, rows: Tensor, wanted: Wanted) -> None:
        """`rows`: [R, any], what the statistics are of, for their number, device and dtype."""
        num_rows, num_highest = rows.shape[0], max(2, wanted.top_k)
        like = rows.new_empty(0, dtype=accumulator(rows.dtype))
        self._wanted = wanted
        self._scale = 1 / (math.log(2) * wanted.temperature)
        self._num_columns = 0
        self._values = like.new_full((num_rows, num_highest), -torch.inf)
        self._ids = like.new_full((num_rows, num_highest), -1, dtype=torch.int64)
        self._total, self._moment = like.new_zeros(2, num_rows)
        self._chosen = like.new_full((num_rows,), torch.nan)

    def absorb(self, logits: Tensor, kept: Tensor | None = None) -> None:
        """Take in the next columns, [R, C]; overwrites `logits`, and writes into `kept` what it takes in."""
        old = self._shift()
        self._exclude(logits)
        if kept is not None:
            logits.copy_(kept.copy_(logits))
        self._take_target(logits)
        self._take_highest(logits)
        self._num_columns += logits.shape[1]
        shift = self._shift()
        scaled = logits.sub_(shift[:, None]).mul_(self._scale)
        weights = scaled.exp2()
        scaled.clamp_(min=torch.finfo(scaled.dtype).min)  # 0 * -inf is NaN
        fall = (old - shift) * self._scale
        decay = fall.exp2().where(self._total > 0, 0)
        self._moment = decay * (self._moment + self._total * fall) + torch.linalg.vecdot(weights, scaled)
        self._total = decay * self._total + weights.sum(1)

    def finish(self) -> RowStats:
        log_total = self._total.log()
        shift, temperature = self._shift(), self._wanted.temperature
        logprobs = (self._values - shift[:, None]) / temperature - log_total[:, None]
        probs = logprobs[:, :2].exp()
        return RowStats(
            lse=shift / temperature + log_total,
            logprob=None if self._wanted.targets is None else (self._chosen - shift) / temperature - log_total,
            entropy=log_total - math.log(2) * self._moment / self._total,
            max_prob=probs[:, 0],
            argmax=self._ids[:, 0].clamp(min=0),
            margin=probs[:, 0] - probs[:, 1],
            top_logprobs=logprobs[:, : self._wanted.top_k],
            top_ids=self._ids[:, : self._wanted.top_k],
        )

    def _shift(self) -> Tensor:
        """The highest logit so far; 0 while there is none, so that nothing is subtracted from infinity."""
        return self._values[:, 0].masked_fill(self._values[:, 0] == -torch.inf, 0)

    def _exclude(self, logits: Tensor) -> None:
        if self._wanted.excluded is None:
            return
        column = self._wanted.excluded - self._num_columns
        if 0 <= column < logits.shape[1]:
            logits[:, column] = -torch.inf

    def _take_target(self, logits: Tensor) -> None:
        if self._wanted.targets is None:
            return
        column = self._wanted.targets.long() - self._num_columns
        is_here = (column >= 0) & (column < logits.shape[1])
        found = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self._chosen = found.where(is_here, self._chosen)

    def _take_highest(self, logits: Tensor) -> None:
        """Keep the highest of each row, by value and then by id; NaN is passed over.

        What is higher than the lowest that is kept can only be in a group whose maximum is: no other is searched.
        """
        maxima = _group_maxima(logits)
        is_searched = maxima > self._values[:, -1:]
        rows = is_searched.any(1).nonzero()[:, 0]
        if not len(rows):
            return
        num_groups = min(self._values.shape[1], int(is_searched.sum(1).amax()))
        groups = _highest(maxima[rows], num_groups)[1].sort(dim=1).values
        columns = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=logits.device)).flatten(1)
        candidates = logits[rows[:, None], columns.clamp(max=logits.shape[1] - 1)]
        candidates.masked_fill_((columns >= logits.shape[1]) | candidates.isnan(), -torch.inf)
        values, at = _highest(candidates, min(self._values.shape[1], columns.shape[1]))
        values = torch.cat([self._values[rows], values], 1)
        ids = torch.cat([self._ids[rows], columns.gather(1, at) + self._num_columns], 1)
        # those that were kept come first among equals: their ids are lower
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self._values.shape[1]]
        values = values.gather(1, order)
        self._values[rows] = values
        self._ids[rows] = ids.gather(1, order).masked_fill(values == -torch.inf, -1)


def whole_stats(logits: Tensor, wanted: Wanted) -> RowStats:
    """The same of logits [R, V] that fit into the cache as a whole, in few operations: for small models."""
    logits = logits.to(accumulator(logits.dtype))
    if wanted.excluded is not None:
        logits = logits.clone()
        logits[:, wanted.excluded] = -torch.inf
    highest, argmax = logits.max(1, keepdim=True)  # the first among equals
    second = logits.scatter(1, argmax, -torch.inf).amax(1, keepdim=True)
    shift = highest.masked_fill(highest == -torch.inf, 0)
    scaled = (logits - shift).div_(wanted.temperature)
    weights = scaled.exp()
    total = weights.sum(1, keepdim=True)
    log_total = total.log()
    moment = torch.linalg.vecdot(weights, scaled.clamp_(min=torch.finfo(scaled.dtype).min))  # 0 * -inf is NaN
    max_prob = (highest - shift).exp_().div_(total)
    margin = max_prob - (second - shift).div_(wanted.temperature).exp_().div_(total)
    lse = shift / wanted.temperature + log_total
    logprob = None
    if wanted.targets is not None:
        targets = wanted.targets.long()
        is_id = (targets >= 0) & (targets < logits.shape[1])
        chosen = logits.gather(1, targets.where(is_id, 0)[:, None])
        logprob = ((chosen - shift) / wanted.temperature - log_total)[:, 0].where(is_id, torch.nan)
    top_logprobs, top_ids = logits[:, :0], argmax[:, :0]
    if wanted.top_k:
        values, ids = _highest(logits.masked_fill(logits.isnan(), -torch.inf), wanted.top_k)
        top_logprobs = (values - shift) / wanted.temperature - log_total
        top_ids = ids.masked_fill(values == -torch.inf, -1)
    return RowStats(
        lse=lse[:, 0],
        logprob=logprob,
        entropy=log_total[:, 0] - moment / total[:, 0],
        max_prob=max_prob[:, 0],
        argmax=argmax[:, 0],
        margin=margin[:, 0],
        top_logprobs=top_logprobs,
        top_ids=top_ids,
    )


def _group_maxima(x: Tensor) -> Tensor:
    """The maximum of each `_GROUP` columns, [R, C] to [R, groups]; a row with NaN is searched whole."""
    num_groups, rest = divmod(x.shape[1], _GROUP)
    if rest:
        x = torch.nn.functional.pad(x, (0, _GROUP - rest), value=-torch.inf)
    return x.unflatten(1, (num_groups + bool(rest), _GROUP)).amax(2).nan_to_num_(nan=torch.inf, posinf=torch.inf)


def _highest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row, descending, and their columns, the lowest first among equals; [R, k] each."""
    kth = x.topk(k, sorted=False).values.amin(1, keepdim=True)
    is_above, is_level = x > kth, x == kth
    num_level = k - is_above.sum(1, keepdim=True)
    columns = (is_above | (is_level & (is_level.cumsum(1) <= num_level))).nonzero()[:, 1].view(-1, k)
    values, order = x.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)
