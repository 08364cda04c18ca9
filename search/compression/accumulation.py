"""Weights whose products can be summed in 16 bits for a wanted number of steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LIMITS = (32767, 32768)  # of a sum in s16, upwards and downwards
_NEIGHBOURS = 2  # products that one instruction adds into a lane
_STEP = 4  # numbers of a step, in two lanes


def bound_sums(values: Tensor, run: int, data_max: int) -> Tensor:
    """Shrink integer weights until sums of so many steps cannot overflow 16 bits.

    Kernels without a dot-product instruction add neighbouring products into lanes of 16 bits,
    for as many steps as the weights prove to be safe (`evaluators.tvm.packing.proved_runs`; it
    looks at the weights anew, so results are exact whatever is done here). In each lane the
    positive weights of a run, and likewise the negative ones, are moved towards zero by one
    amount: the nearest weights that keep the bound.

    Args:
        values: int8 weights of a convolution over two dimensions or a linear layer, output
            channels first.
        run: Steps that are to be summed in 16 bits.
        data_max: Largest value of the unsigned input.

    Returns:
        int8 weights, none of them larger.

    References:
        Colbert, Pappalardo, Petri-Koenig. A2Q: accumulator-aware quantization with guaranteed
        overflow avoidance. ICCV 2023. The projection is that of A2Q+ (2024).
    """
    # A kernel row is one contiguous run of numbers, channels innermost.
    rows = values.movedim(1, -1).flatten(-2) if values.ndim == 4 else values
    length = rows.shape[-1]
    size = _STEP * run
    lanes = F.pad(rows, (0, -length % size)).unflatten(-1, (-1, run, 2, _NEIGHBOURS))
    lanes = lanes.transpose(-2, -3).flatten(-2).to(torch.int32)
    positive = _shrink(lanes.clamp_min(0), _LIMITS[0] // data_max)
    negative = _shrink((-lanes).clamp_min(0), _LIMITS[1] // data_max)
    lanes = (positive - negative).unflatten(-1, (run, _NEIGHBOURS)).transpose(-2, -3)
    rows = lanes.flatten(-4)[..., :length].to(torch.int8)
    if values.ndim == 4:
        rows = rows.unflatten(-1, (values.shape[3], values.shape[1])).movedim(-1, 1)
    result: Tensor = rows.contiguous()
    return result


def _shrink(values: Tensor, limit: int) -> Tensor:
    """Return the whole numbers next to the nearest point of not negative sum at most `limit`."""
    ordered = values.sort(dim=-1, descending=True).values
    counts = torch.arange(1, values.shape[-1] + 1)
    # The amount is the one at the last place where the value is above it.
    amounts = (ordered.cumsum(-1) - limit) / counts
    last = (ordered > amounts).sum(-1, keepdim=True).clamp_min(1) - 1
    amount = amounts.gather(-1, last).clamp_min(0.0)
    return (values - amount).clamp_min(0.0).floor().to(torch.int32)
