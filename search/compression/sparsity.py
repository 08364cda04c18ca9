"""Sparsity: weights that are zero, of which a stored model takes next to no space."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How many weights of an output channel are zero.

    Attributes:
        ratio: Share of them, in (0, 1).
        block: It holds among so many consecutive input channels; None: among all the weights that
            make one output.
    """

    ratio: float
    block: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(f"The share of zeros must lie in (0, 1), but got {self.ratio:g}.")

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """Read a share of zeros, such as "0.75", or a pattern, such as "2:4".

        The pattern "2:4" keeps two of every four consecutive input channels.

        Raises:
            ValueError: If the text is neither.
        """
        if pattern := re.fullmatch(r"(\d+):(\d+)", text):
            kept, block = (int(part) for part in pattern.groups())
            if 0 < kept < block:
                return cls(1.0 - kept / block, block)
        try:
            return cls(float(text))
        except ValueError:
            raise ValueError(
                "`sparsity` must be a share of zeros between 0 and 1 or a pattern 'N:M' that "
                f"keeps N of M weights, N below M, but got '{text}'."
            ) from None


def sparsify(
    weight: Tensor, sparsity: Sparsity, axis: int, importance: Tensor | None = None
) -> Tensor:
    """Set the least important weights of each output channel to zero.

    Output channels are not compared: batch norms folded into them make their weights larger or
    smaller without making them more or less important. Fewer input channels than a block, as in
    depthwise convolutions, keep what their share is, rounded up.

    Args:
        weight: The weight.
        sparsity: How many of its values become zero.
        axis: Where the output channels are.
        importance: What to compare, of the weight's shape; None takes magnitudes.

    Returns:
        The weight with zeros.

    References:
        Han, Mao, Dally. Deep compression. ICLR 2016, section 2 (magnitudes).
        Mishra et al. Accelerating sparse deep neural networks. arXiv:2104.08378, 2021 (N:M).
    """
    scores = (weight.abs() if importance is None else importance).movedim(axis, 0)
    if sparsity.block is None:
        rows = scores.flatten(1)
        kept = _largest(rows, rows.shape[1] - int(rows.shape[1] * sparsity.ratio))
        kept = kept.reshape(scores.shape)
    else:
        kept = _largest_of_blocks(scores, sparsity.block, sparsity.ratio)
    return weight * kept.movedim(0, axis)


def input_importance(weight: Tensor, norms: Tensor, axis: int) -> Tensor:
    """Return how much of its output each weight makes on samples.

    Args:
        weight: The weight.
        norms: Root mean square of what an output channel's weights meet, shape `(groups, d)`.
        axis: Where the output channels are.

    References:
        Sun, Liu, Bair, Kolter. A simple and effective pruning approach for large language models.
        ICLR 2024.
    """
    moved = weight.movedim(axis, 0)
    rows = moved.abs().flatten(1).unflatten(0, (len(norms), -1)) * norms[:, None]
    result: Tensor = rows.reshape(moved.shape).movedim(0, axis)
    return result


def _largest(rows: Tensor, count: int) -> Tensor:
    """Mark the largest of each row; of equal ones the first."""
    order = rows.sort(dim=-1, descending=True, stable=True).indices
    is_largest: Tensor = order.argsort(dim=-1) < count
    return is_largest


def _largest_of_blocks(scores: Tensor, block: int, ratio: float) -> Tensor:
    last = scores.movedim(1, -1)  # input channels
    n_inputs = last.shape[-1]
    size = min(block, n_inputs)
    # What fills the last block loses to every weight.
    padded = F.pad(last, (0, -n_inputs % size), value=-1.0).unflatten(-1, (-1, size))
    kept = _largest(padded, size - int(size * ratio)).flatten(-2)[..., :n_inputs]
    return kept.movedim(-1, 1)
