"""How uint8 tensors of a QDQ file become int8 tensors, whose bounds are only -128 and 127."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..onnx_graph.quantizers import Quantizer
from .model_writer import Quantization

_LOWEST, _HIGHEST = -128, 127
_N_STEPS = 255


@dataclass(frozen=True, slots=True)
class Grid:
    """An int8 tensor: it holds `scale * (k - zero_point)` for `k` in `[low, high]`."""

    scale: float
    zero_point: int
    low: int = _LOWEST
    high: int = _HIGHEST

    @property
    def quantization(self) -> Quantization:
        """The grid as the file has it."""
        return Quantization(np.array([self.scale], np.float32), self.zero_point)

    def has_steps_of(self, other: Grid) -> bool:
        """Whether the same integer stands for the same real in both."""
        return (self.scale, self.zero_point) == (other.scale, other.zero_point)

    def fits(self, other: Grid) -> bool:
        """Whether moving to another grid of this scale, by a shift, keeps within its bounds."""
        shift = other.zero_point - self.zero_point
        inside = other.low <= self.low + shift and self.high + shift <= other.high
        return self.scale == other.scale and inside


@dataclass(frozen=True, slots=True)
class Placement:
    """The grid that an operator writes, and the one that the tensor has in the end.

    An int8 tensor saturates at -128 and 127, and a fused activation can cut at the zero point;
    other bounds need a second step. Where `last` differs from `first`, requantizing from one to
    the other shifts the integers and cuts at the second bound.

    Attributes:
        first: What the operator writes.
        activation: What it fuses, "NONE" or "RELU".
        last: What is kept.
    """

    first: Grid
    activation: str
    last: Grid


def place(
    quantizer: Quantizer, bounds: tuple[float, float], *, fuses_relu: bool
) -> Placement | None:
    """Choose int8 grids for a tensor that is cut at real bounds and quantized to uint8.

    Quantizing is monotone, so cutting reals first is the same as cutting the integers at the
    quantized bounds. The grid is shifted so that saturation cuts on one side: values of 7 bits
    lie in -128..-1 or 0..127, and what would be 127 + 1 stays 127.

    Args:
        quantizer: Scale and zero point of the uint8 tensor.
        bounds: Lowest and highest real, infinite where there is none.
        fuses_relu: Whether the operator that writes the tensor can fuse a ReLU.

    Returns:
        The grids, or None if 0 lies outside the bounds, where int8 has no zero point for it.
    """
    low, high = (_steps(bound, quantizer) for bound in bounds)
    zero = quantizer.zero_point
    if not low <= zero <= high:
        return None
    at_top = _shifted(quantizer, low, high, _HIGHEST - high)
    if (low, high) == (0, _N_STEPS):
        return Placement(at_top, "NONE", at_top)
    if fuses_relu and low == zero:
        return Placement(at_top, "RELU", at_top)
    return Placement(_shifted(quantizer, low, high, _LOWEST - low), "NONE", at_top)


def _steps(bound: float, quantizer: Quantizer) -> int:
    """Quantize a bound as the file does: in float32, rounded half to even, saturated."""
    if math.isinf(bound):
        return 0 if bound < 0 else _N_STEPS
    steps = np.rint(np.float32(bound) / np.float32(quantizer.scale)) + quantizer.zero_point
    return int(np.clip(steps, 0, _N_STEPS))


def _shifted(quantizer: Quantizer, low: int, high: int, shift: int) -> Grid:
    return Grid(quantizer.scale, quantizer.zero_point + shift, low + shift, high + shift)
