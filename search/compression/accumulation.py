"""Weights whose products can be summed in 16 bits for a wanted number of steps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantizer import QuantizedWeight, along, quantize_weight

_LIMITS = (32767, 32768)  # of a sum in s16, upwards and downwards
_NEIGHBOURS = 2  # products that one instruction adds into a lane
_STEP = 4  # numbers of a step, in two lanes
_FINER = 4  # scales that are tried between one and its double
_DOUBLINGS = 4


def bound_weight(
    rounded: QuantizedWeight, weight: Tensor, run: int, data_max: int
) -> QuantizedWeight:
    """Return integer weights whose sums of so many steps cannot overflow 16 bits.

    The bound changes the large weights, a coarser scale all of them a little: each output channel
    takes the scale at which its weights are nearest to the float ones.

    Args:
        rounded: Of a convolution over two dimensions or a linear layer, output channels first.
        weight: What was rounded.
        run: Steps that are to be summed in 16 bits, see `bound_sums`.
        data_max: Largest value of the unsigned input.
    """
    best = replace(rounded, values=bound_sums(rounded.values, run, data_max))
    is_bounded = (best.values != rounded.values).flatten(1).any(1)
    error = _errors(best, weight)
    for k in range(1, _FINER * _DOUBLINGS + 1):
        if not is_bounded.any():
            break
        scale = rounded.scale * 2.0 ** (k / _FINER)
        tried = quantize_weight(weight, scale, rounded.bits, 0)
        tried = replace(tried, values=bound_sums(tried.values, run, data_max))
        is_nearer = is_bounded & (_errors(tried, weight) < error)
        values = torch.where(along(is_nearer, 0, weight.ndim), tried.values, best.values)
        best = replace(best, values=values, scale=torch.where(is_nearer, scale, best.scale))
        error = torch.where(is_nearer, _errors(tried, weight), error)
    return best


def _errors(quantized: QuantizedWeight, weight: Tensor) -> Tensor:
    """Return the squared error of each output channel."""
    return (quantized.dequantize() - weight).square().flatten(1).sum(1)


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
