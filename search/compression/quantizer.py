"""The arithmetic of quantization: scales and integers of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MIN_SCALE = 1e-10  # so that products of scales stay normal float32 numbers
_MAX_BIAS = 2**30  # a bias and a sum of products must fit int32 together
_SAMPLES = 512  # weights of a channel that the search for its scale looks at
_FRACTIONS = 16
_REFINEMENTS = 2


@dataclass(frozen=True, slots=True)
class ActivationGrid:
    """Asymmetric quantization of an activation to unsigned integers `0 .. 2**bits - 1`."""

    scale: float
    zero_point: int
    bits: int

    @property
    def low(self) -> float:
        """The least value on the grid."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value on the grid."""
        return ((1 << self.bits) - 1 - self.zero_point) * self.scale


def activation_grid(low: float, high: float, bits: int) -> ActivationGrid:
    """Return the grid that covers a range and holds zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = (1 << bits) - 1
    scale = max((high - low) / levels, _MIN_SCALE)
    # The scale is kept as float32 in the file.
    scale = torch.tensor(scale, dtype=torch.float32).item()
    return ActivationGrid(scale, min(max(round(-low / scale), 0), levels), bits)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Symmetric quantization of a weight per output channel, in a narrow range.

    Attributes:
        values: int8, in `-(2**(bits-1) - 1) .. 2**(bits-1) - 1`; -1 or 1 for a single bit.
        scale: float32, one for each index of the axis.
        bits: Width of the integers.
        axis: Where the output channels are.
    """

    values: Tensor
    scale: Tensor
    bits: int
    axis: int

    def dequantize(self) -> Tensor:
        """Return the weight that the integers stand for."""
        return self.values.float() * along(self.scale, self.axis, self.values.ndim)


def along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """Return a view of a vector that broadcasts along one axis of a tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def largest_integer(bits: int) -> int:
    """Return the largest integer of a narrow signed range; of one bit, that of -1 and 1."""
    return max(1, (1 << (bits - 1)) - 1)


def nearest_steps(steps: Tensor, bits: int) -> Tensor:
    """Return the nearest integers of a width, in place; a single bit stands for -1 or 1."""
    if bits == 1:
        return steps.copy_(torch.where(steps < 0, -1.0, 1.0))
    top = largest_integer(bits)
    return steps.round_().clamp_(-top, top)


def weight_scales(weight: Tensor, bits: int, axis: int, *, search: bool = True) -> Tensor:
    """Return a scale for each output channel.

    Args:
        weight: The weight.
        bits: Width of the integers.
        axis: Where the output channels are.
        search: Look for the scale with the least squared error, which clips the largest
            weights; otherwise the largest weight becomes the largest integer.

    Returns:
        Positive scales, float32.
    """
    rows = weight.detach().float().movedim(axis, 0).flatten(1)
    top = largest_integer(bits)
    peaks = rows.abs().amax(dim=1)
    if search and rows.shape[1] > 1:
        scales = _search(rows, peaks, bits)
    else:
        scales = peaks / top
    # A channel of zeros takes the scale of another, which suits its bias.
    positive = scales[peaks > 0]
    spare = positive.min().item() if len(positive) else 1.0 / top
    return torch.where(peaks > 0, scales, spare).clamp_min(_MIN_SCALE)


def _search(rows: Tensor, peaks: Tensor, bits: int) -> Tensor:
    top = largest_integer(bits)
    stride = max(1, rows.shape[1] // _SAMPLES)
    sample = rows[:, ::stride].contiguous()
    best = peaks / top
    least = torch.full_like(peaks, torch.inf)
    # A normal distribution wants 0.3 of its peak at 2 bits and nearly all of it at 8.
    for fraction in torch.linspace(1.0, 0.25, _FRACTIONS).tolist():
        scales = (peaks * (fraction / top)).clamp_min(_MIN_SCALE)
        error = (sample - _rounded(sample, scales, bits) * scales[:, None]).square_().sum(dim=1)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    # The best scale for given integers is a projection, which changes the integers in turn.
    for _ in range(_REFINEMENTS):
        integers = _rounded(rows, best, bits)
        norm = integers.square().sum(dim=1)
        projected = (rows * integers).sum(dim=1) / norm.clamp_min(1)
        best = torch.where(norm > 0, projected, best).clamp_min(_MIN_SCALE)
    return best


def _rounded(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    return nearest_steps(rows / scales[:, None], bits)


def quantize_weight(weight: Tensor, scale: Tensor, bits: int, axis: int) -> QuantizedWeight:
    """Round a weight to integers at the given scales."""
    steps = weight.detach().float() / along(scale, axis, weight.ndim)
    return QuantizedWeight(nearest_steps(steps, bits).to(torch.int8), scale, bits, axis)


def fit_scale_to_bias(scale: Tensor, bias: Tensor, input_scale: float) -> Tensor:
    """Enlarge weight scales where the bias, counted in products of scales, would overflow."""
    return torch.maximum(scale, bias.abs() / (input_scale * _MAX_BIAS))


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to int32 at the given scales."""
    steps = (bias.detach().double() / scale.double()).round()
    return steps.clamp(-_MAX_BIAS, _MAX_BIAS).to(torch.int32)
