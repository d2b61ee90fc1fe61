"""The embedding that a prediction expects, p @ E: over the whole vocabulary, or over the most probable tokens."""

import torch
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.dispatch import (
    accumulator,
    check_device,
    check_distribution,
    check_dtype,
    check_matrix,
    check_shape,
    piece_columns,
    runs_on_triton,
)


def expected_embedding(
    logits: Tensor,
    lse: Tensor,
    embedding: Tensor,
    rows: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """softmax(logits / temperature) @ embedding, in the embedding's dtype; the probabilities are never whole in memory.

    There are no gradients.

    Args:
        logits: [R, V], float32, bfloat16, float16 or float64; rows may lie apart.
        lse: [R], of `row_stats` or `vocab_stats` at this temperature. What it is wrong by is normalized away, as long
            as exp(logits / temperature - lse) is not far above 1.
        embedding: [V, D], one row for each token; of another dtype than the logits where that is what there is.
        rows: [n], int64, which rows of the logits are wanted, such as those of masked positions; None is all of them.
        temperature: > 0.

    Returns:
        [n, D], or [R, D].

    Raises:
        KernelError: a shape, dtype, stride, device or number that cannot be used.
    """
    check_matrix("logits", logits)
    check_matrix("embedding", embedding)
    check_device("embedding", embedding, "logits", logits)
    if embedding.shape[0] != logits.shape[1]:
        raise KernelError(
            f"embedding must be [{logits.shape[1]}, D] as logits are {tuple(logits.shape)}, got "
            f"{tuple(embedding.shape)}; cut off what only pads the vocabulary"
        )
    check_shape("lse", lse, logits.shape[:1], logits)
    if rows is not None:
        check_shape("rows", rows, (rows.numel(),), logits)
        check_dtype("rows", rows, (torch.int64,))
    check_distribution(temperature, None, logits.shape[1])
    if runs_on_triton(logits, embedding):
        from reasonrt.kernels.triton.expected_embedding import launch_expected_embedding

        with torch.cuda.device_of(logits):  # Triton launches on the current one
            return launch_expected_embedding(logits, lse, embedding, rows, temperature)
    return _expected_embedding_torch(logits.detach(), lse.detach(), embedding.detach(), rows, temperature)


def expected_embedding_reference(
    logits: Tensor,
    lse: Tensor,
    embedding: Tensor,
    rows: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """As `expected_embedding`, with the probabilities written out."""
    dtype = _accumulator(logits, embedding)
    weights = (logits.to(dtype) / temperature - lse.to(dtype)[:, None]).exp()
    probs = weights / weights.sum(1, keepdim=True)
    probs = probs if rows is None else probs[rows]
    return (probs @ embedding.to(dtype)).to(embedding.dtype)


def expected_embedding_top(top_logprobs: Tensor, top_ids: Tensor, embedding: Tensor) -> Tensor:
    """The same over the k most probable tokens alone, their probabilities normalized to 1; [R, D].

    Args:
        top_logprobs: [R, k], of `RowStats`.
        top_ids: [R, k], int64, of `RowStats`: -1 where there is no token.
        embedding: [V, D].

    Raises:
        KernelError: a shape, dtype, stride or device that cannot be used.
    """
    check_matrix("top_logprobs", top_logprobs)
    check_matrix("embedding", embedding)
    check_device("embedding", embedding, "top_logprobs", top_logprobs)
    check_shape("top_ids", top_ids, top_logprobs.shape, top_logprobs)
    check_dtype("top_ids", top_ids, (torch.int64,))
    if runs_on_triton(embedding, top_logprobs):
        from reasonrt.kernels.triton.expected_embedding import launch_expected_embedding_top

        with torch.cuda.device_of(embedding):  # Triton launches on the current one
            return launch_expected_embedding_top(top_logprobs, top_ids, embedding)
    weights, table = top_logprobs.detach().softmax(1).to(embedding.dtype), embedding.detach()
    return torch.nn.functional.embedding_bag(top_ids.clamp(min=0), table, per_sample_weights=weights, mode="sum")


def expected_embedding_top_reference(top_logprobs: Tensor, top_ids: Tensor, embedding: Tensor) -> Tensor:
    """As `expected_embedding_top`, with the embeddings of each row written out."""
    dtype = _accumulator(top_logprobs, embedding)
    shares = top_logprobs.to(dtype).softmax(1)
    chosen = embedding.to(dtype)[top_ids.clamp(min=0)]  # [R, k, D]
    return (shares[:, :, None] * chosen).sum(1).to(embedding.dtype)


def _expected_embedding_torch(
    logits: Tensor, lse: Tensor, embedding: Tensor, rows: Tensor | None, temperature: float
) -> Tensor:
    """One piece of the vocabulary after another: its probabilities are used up while they are in the cache."""
    dtype = _accumulator(logits, embedding)
    shift = (lse if rows is None else lse[rows])[:, None].to(dtype)
    shift = shift if temperature == 1 else shift * temperature
    width = len(shift) if embedding.dtype == dtype else max(len(shift), embedding.shape[1])  # converted pieces too
    mean, total, first = shift.new_zeros(len(shift), embedding.shape[1]), torch.zeros_like(shift), 0
    for part in embedding.split(piece_columns(width)):
        piece = logits[:, first : first + len(part)]
        weights = (piece if rows is None else piece[rows]).sub(shift)
        if temperature != 1:
            weights.div_(temperature)
        weights.exp_()
        total += weights.sum(1, keepdim=True)
        mean.addmm_(weights, part.to(dtype))
        first += len(part)
    return mean.div_(total).to(embedding.dtype)


def _accumulator(*tensors: Tensor) -> torch.dtype:
    dtypes = {accumulator(tensor.dtype) for tensor in tensors}
    return torch.float64 if torch.float64 in dtypes else torch.float32
