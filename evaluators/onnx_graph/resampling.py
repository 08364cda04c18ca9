"""Resize, axis by axis: which numbers of the input each output is a weighted sum of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node

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


def resampled_axes(graph: Graph, node: Node) -> dict[int, Taps] | None:
    """Return the taps of every axis that a Resize or Upsample node changes.

    None if it takes its output from a region, or its scales are not constant.
    """
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    scales = _scales(graph, node)
    mode = node.get("coordinate_transformation_mode", b"half_pixel").decode()
    if scales is None or mode == "tf_crop_and_resize":
        return None
    if _is_old(node):
        mode = "asymmetric"
    found = {}
    for axis, scale in scales.items():
        if after[axis] != before[axis] or scale != 1:
            found[axis] = _taps(node, mode, scale, before[axis], after[axis])
    return found


def _is_old(node: Node) -> bool:
    """Whether a node is Upsample or the Resize of opset 10, which have scales alone."""
    return node.op == "Upsample" or len(node.inputs) == 2


def _scales(graph: Graph, node: Node) -> dict[int, float] | None:
    """Return the factor of each axis that the node names."""
    before = graph.shape(node.inputs[0])
    axes = [axis % len(before) for axis in node.get("axes", range(len(before)))]
    if "scales" in node.attributes:
        return dict(zip(axes, map(float, node.attributes["scales"]), strict=True))
    has_sizes = len(node.inputs) > 3 and node.inputs[3] != ""
    index = 3 if has_sizes else min(2, len(node.inputs) - 1)
    values = graph.constant(node.inputs[index])
    if values is None or values.size != len(axes):
        return None
    if not has_sizes:
        return dict(zip(axes, values.astype(np.float64).tolist(), strict=True))
    ratios = [float(n) / before[axis] for axis, n in zip(axes, values.tolist(), strict=True)]
    policy = node.get("keep_aspect_ratio_policy", b"stretch")
    if policy != b"stretch":
        ratios = [(min if policy == b"not_larger" else max)(ratios)] * len(axes)
    return dict(zip(axes, ratios, strict=True))


def _taps(node: Node, mode: str, scale: float, size: int, out: int) -> Taps:
    at = _coordinates(mode, scale, size, out)
    method = node.get("mode", b"nearest").decode()
    if method == "nearest":
        rounding = node.get("nearest_mode", b"round_prefer_floor").decode()
        name = "floor" if _is_old(node) else rounding
        nearest = np.clip(_NEAREST[name](at), 0, size - 1).astype(np.int64)
        return Taps(nearest[:, None], np.ones((out, 1), np.float32))
    shrink = min(scale, 1.0) if node.get("antialias", 0) else 1.0
    reach = 2 if method == "cubic" else 1
    begin = math.floor(-reach / shrink) + 1
    steps = np.arange(begin, begin + 2 * (1 - begin))
    distance = (steps - (at - np.floor(at))[:, None]) * shrink
    if method == "cubic":
        weights = _cubic(np.abs(distance), node.get("cubic_coeff_a", -0.75))
    else:
        weights = np.clip(1 - np.abs(distance), 0, 1)
    places = np.floor(at).astype(np.int64)[:, None] + steps
    if node.get("exclude_outside", 0):
        weights = np.where((places >= 0) & (places < size), weights, 0.0)
    weights = weights / weights.sum(1, keepdims=True)
    return Taps(np.clip(places, 0, size - 1), weights.astype(np.float32))


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
