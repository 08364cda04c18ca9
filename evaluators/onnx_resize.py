"""Resize, axis by axis: which numbers of the input each output is a weighted sum of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """What the outputs along one axis are made of.

    Attributes:
        places: Indices of the input, shape `(outputs, taps)`.
        weights: Of the same shape; each row adds up to one.
    """

    places: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a Resize node samples, in ONNX's words.

    Attributes:
        method: `nearest`, `linear` or `cubic`.
        coordinates: `coordinate_transformation_mode`.
        rounding: `nearest_mode`.
        cubic_a: `cubic_coeff_a`.
        is_smooth: `antialias`.
        has_edge: `exclude_outside`.
    """

    method: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    is_smooth: bool = False
    has_edge: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], *, is_old: bool) -> Sampling:
        """Read the attributes of a node.

        Args:
            values: Attributes by name, text as `str` or `bytes`.
            is_old: Whether the node is Upsample or the Resize of opset 10.
        """

        def text(name: str, default: str) -> str:
            value = values.get(name, default)
            return value.decode() if isinstance(value, bytes) else str(value)

        return cls(
            text("mode", "nearest"),
            "asymmetric" if is_old else text("coordinate_transformation_mode", "half_pixel"),
            "floor" if is_old else text("nearest_mode", "round_prefer_floor"),
            float(values.get("cubic_coeff_a", -0.75)),
            bool(values.get("antialias", 0)),
            bool(values.get("exclude_outside", 0)),
        )

    def taps(self, scale: float, size: int, out: int) -> Taps:
        """Return what the `out` outputs along an axis of `size` inputs are made of."""
        at = _coordinates(self.coordinates, scale, size, out)
        if self.method == "nearest":
            nearest = np.clip(_NEAREST[self.rounding](at), 0, size - 1).astype(np.int64)
            return Taps(nearest[:, None], np.ones((out, 1), np.float32))
        shrink = min(scale, 1.0) if self.is_smooth else 1.0
        reach = 2 if self.method == "cubic" else 1
        begin = math.floor(-reach / shrink) + 1
        steps = np.arange(begin, begin + 2 * (1 - begin))
        distance = (steps - (at - np.floor(at))[:, None]) * shrink
        if self.method == "cubic":
            weights = _cubic(np.abs(distance), self.cubic_a)
        else:
            weights = np.clip(1 - np.abs(distance), 0, 1)
        places = np.floor(at).astype(np.int64)[:, None] + steps
        if self.has_edge:
            weights = np.where((places >= 0) & (places < size), weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
        return Taps(np.clip(places, 0, size - 1), weights.astype(np.float32))


def axis_scales(
    values: Mapping[str, Any],
    shape: tuple[int, ...],
    scales: list[float] | None,
    sizes: list[int] | None,
) -> dict[int, float] | None:
    """Return the factor of each axis that a node names, or None if the counts do not fit.

    Args:
        values: Attributes of the node.
        shape: Of the input.
        scales: The factors that the node gives, None if it gives sizes.
        sizes: The sizes that the node gives, None if it gives factors.
    """
    axes = [axis % len(shape) for axis in values.get("axes", range(len(shape)))]
    given = scales if sizes is None else sizes
    if given is None or len(given) != len(axes):
        return None
    if sizes is None:
        return dict(zip(axes, map(float, given), strict=True))
    ratios = [n / shape[axis] for axis, n in zip(axes, sizes, strict=True)]
    policy = values.get("keep_aspect_ratio_policy", "stretch")
    policy = policy.decode() if isinstance(policy, bytes) else policy
    if policy != "stretch":
        ratios = [(min if policy == "not_larger" else max)(ratios)] * len(axes)
    return dict(zip(axes, ratios, strict=True))


_NEAREST: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _coordinates(mode: str, scale: float, size: int, out: int) -> Floats:
    """Return where in the input each output lies."""
    at = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return np.zeros(out) if scale * size == 1 else at * (size - 1) / (scale * size - 1)
    if mode == "pytorch_half_pixel" and scale * size == 1:
        return np.full(out, -0.5)
    shift = 0.0
    if mode == "half_pixel_symmetric":
        shift = size / 2 * (1 - out / (scale * size))
    return shift + (at + 0.5) / scale - 0.5


def _cubic(x: Floats, a: float) -> Floats:
    """Keys' kernel.

    References:
        Keys. Cubic convolution interpolation for digital image processing. IEEE ASSP 29, 1981.
    """
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
