"""Calibration: the ranges of activations, from the values they take on a few samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...evaluators.onnx_module import OnnxModule
from .quantizer import ActivationGrid, activation_grid

CalibrationMethod = Literal["minmax", "percentile", "mse"]
CALIBRATION_METHODS: tuple[str, ...] = get_args(CalibrationMethod)

_BINS = 4096
_MAX_SAMPLES = 1 << 20  # values of a tensor and batch that enter its histogram
_PERCENTILE = 0.9999  # share of values inside the range
_FRACTIONS = 32
_LEAST_FRACTION = 0.05
_FINE_FRACTIONS = (0.94, 0.955, 0.97, 0.985, 1.0)


class Histogram:
    """Values of one tensor: exact extremes, and counts of equal bins around zero.

    When a value lies outside, the bins double in width by merging in pairs, so no count is
    ever split and the result does not depend on how samples were divided into batches but for
    the width of the bins.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self._limit = 0.0
        self._counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count values."""
        low, high = (v.item() for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        values = values.reshape(-1)
        # An odd stride does not fall into step with channels.
        values = values[:: len(values) // _MAX_SAMPLES * 2 + 1]
        limit = max(-low, high)
        if self._limit == 0.0:
            self._limit = limit
        if limit == 0.0:
            return
        while self._limit < limit:
            self._widen()
        self._counts += torch.histc(values.float(), _BINS, -self._limit, self._limit)

    def _widen(self) -> None:
        quarter = _BINS // 4
        merged = self._counts.reshape(-1, 2).sum(dim=1)
        self._counts = torch.zeros_like(self._counts)
        self._counts[quarter:-quarter] = merged
        self._limit *= 2

    def grid(self, bits: int, method: CalibrationMethod) -> ActivationGrid:
        """Return the grid for a width.

        Args:
            bits: Width of the integers.
            method: `minmax` covers all values, `percentile` all but one in 10,000, `mse` has the
                least squared error.

        Returns:
            Scale and zero point.
        """
        if method == "minmax" or self._limit == 0.0:
            return activation_grid(self.low, self.high, bits)
        if method == "percentile":
            return activation_grid(*self._percentiles(), bits)
        if method == "mse":
            return self._least_error(bits)
        raise ValueError(f"`method` must be one of {CALIBRATION_METHODS}, but got '{method}'.")

    def _centers(self) -> Tensor:
        width = 2 * self._limit / _BINS
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width - self._limit

    def _percentiles(self) -> tuple[float, float]:
        tail = (1 - _PERCENTILE) / 2 if self.low < 0 else 1 - _PERCENTILE
        shares = self._counts.cumsum(0) / self._counts.sum()
        width = 2 * self._limit / _BINS
        first = int((shares <= tail).sum())
        last = int((shares < 1 - tail).sum())
        low = first * width - self._limit
        high = (last + 1) * width - self._limit
        return max(low, self.low), min(high, self.high)

    def _least_error(self, bits: int) -> ActivationGrid:
        used = self._counts > 0
        centers, counts = self._centers()[used], self._counts[used]
        coarse = torch.logspace(0, math.log10(_LEAST_FRACTION), _FRACTIONS).tolist()
        # Both ends together, then each by itself, then both in finer steps.
        low, high = _best_range(
            [(self.low * f, self.high * f) for f in coarse], centers, counts, bits
        )
        if low < 0 < high:
            ends = [(low, self.high * f) for f in coarse]
            low, high = _best_range(ends, centers, counts, bits)
            ends = [(self.low * f, high) for f in coarse]
            low, high = _best_range(ends, centers, counts, bits)
        fine = [(low * f, high * f) for f in _FINE_FRACTIONS]
        low, high = _best_range(fine, centers, counts, bits)
        return activation_grid(low, high, bits)


def _best_range(
    ranges: list[tuple[float, float]], centers: Tensor, counts: Tensor, bits: int
) -> tuple[float, float]:
    """Return the range with the least squared error; the first of equal ones."""
    grids = [activation_grid(low, high, bits) for low, high in ranges]
    scale = torch.tensor([g.scale for g in grids], dtype=torch.float64)[:, None]
    zero = torch.tensor([float(g.zero_point) for g in grids], dtype=torch.float64)[:, None]
    steps = (centers / scale).round_() + zero
    error = (steps.clamp_(0, 2**bits - 1).sub_(zero).mul_(scale) - centers).square_() @ counts
    return ranges[int(error.argmin())]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of each channel of a tensor."""

    mean: Tensor
    deviation: Tensor


def channel_moments(values: Tensor) -> Moments:
    """Return the moments of each channel, which the second axis counts."""
    axes = [axis for axis in range(values.ndim) if axis != 1]
    variance, mean = torch.var_mean(values, dim=axes, correction=0)
    return Moments(mean, variance.sqrt())


@dataclass(frozen=True)
class Calibration:
    """What a few samples show of a float graph.

    Attributes:
        histograms: Values of each tensor that may be quantized, over all samples.
        moments: Of the channels of layers' outputs, over the first batch.
    """

    histograms: Mapping[str, Histogram]
    moments: Mapping[str, Moments]


def calibrate(
    module: OnnxModule,
    inputs: Tensor,
    names: Collection[str],
    outputs: Collection[str] = (),
    batch_size: int = 64,
) -> Calibration:
    """Run a float graph on samples and collect what quantization needs to know.

    Args:
        module: The float graph.
        inputs: Samples, shape `(n, ...)`.
        names: Tensors whose values are counted.
        outputs: Tensors whose channels' moments are taken.
        batch_size: Samples of one run.
    """
    histograms = {name: Histogram() for name in names}
    moments: dict[str, Moments] = {}

    def collect(name: str, values: Tensor) -> None:
        if name in histograms:
            histograms[name].add(values)
        if name in outputs and name not in moments:
            moments[name] = channel_moments(values)

    for batch in inputs.split(batch_size):
        module.observe(batch, {*names, *outputs}, collect)
    return Calibration(histograms, moments)
