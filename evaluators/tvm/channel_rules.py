"""Rules for operators that treat every channel alike: scale, shift, slope, normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Node
from .image import Image
from .kernels.moments import moments_kernel
from .kernels.pointwise import channel_kernel
from .kernels.script import worth_threads
from .layers import parameter_arrays
from .lowering import Lowering
from .norms import Norm, find_norm
from .rule_table import rule
from .sink import Sink

Numbers = NDArray[np.float64]
_SCALING = ("Mul", "Div", "Add", "Sub", "BatchNormalization")


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A tensor whose channels are scaled and shifted.

    Attributes:
        data: The tensor.
        scale, shift: A number per channel, or one for all.
        norm: What normalizes the tensor first; its own scale and shift are in the numbers.
    """

    data: str
    scale: Numbers
    shift: Numbers
    norm: Norm | None = None

    def behind(self, other: Scaled) -> Scaled:
        """Return what both do to the tensor that `other` scales."""
        shift = other.shift * self.scale + self.shift
        return Scaled(other.data, other.scale * self.scale, shift, other.norm)


def is_worth_scaling(low: Lowering, node: Node) -> bool:
    """Whether a node scales an image by constants."""
    found = _scaled(low, node)
    return found is not None and _is_worth(low, found.data)


def _is_worth(low: Lowering, data: str) -> bool:
    return low.is_own(data) or (data in low.graph.inputs and len(low.graph.shape(data)) == 4)


@rule("Div", "Sub", "BatchNormalization", worth=is_worth_scaling)
def lower_scale(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Channels times and plus constants, a chain of such operators at once."""
    found = _scaled(low, node)
    if found is None or sink.residual is not None or not low.has_channel_kernels:
        return None
    while low.graph.only_user(found.data) is not None:
        maker = low.graph.producer(found.data)
        inner = None if maker is None else _normed(low, maker) or _scaled(low, maker)
        if inner is None:
            break
        found = found.behind(inner)
    return _call(low, found, "scale", sink)


def _normed(low: Lowering, node: Node) -> Scaled | None:
    norm = find_norm(low.graph, low.constant, node)
    return None if norm is None else Scaled(norm.data, norm.scale, norm.shift, norm)


def _is_norm(low: Lowering, node: Node) -> bool:
    return _normed(low, node) is not None


@rule("InstanceNormalization", "GroupNormalization", "Reshape", worth=_is_norm)
def lower_norm(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Normalization of channels, or groups of them, over all pixels of an image."""
    found = _normed(low, node)
    if found is None or sink.residual is not None:
        return None
    return _call(low, found, "scale", sink)


def _is_worth_slope(low: Lowering, node: Node) -> bool:
    return _slopes(low, node) is not None and _is_worth(low, node.inputs[0])


@rule("PRelu", worth=_is_worth_slope)
def lower_slopes(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """PRelu with a slope per channel."""
    slopes = _slopes(low, node)
    if slopes is None or sink.residual is not None:
        return None
    return _call(low, Scaled(node.inputs[0], slopes, np.zeros(1)), "slope", sink)


def _slopes(low: Lowering, node: Node) -> Numbers | None:
    return _per_channel(low, node.inputs[0], node.output, low.constant(node.inputs[1]))


def _scaled(low: Lowering, node: Node) -> Scaled | None:
    if node.op not in _SCALING or low.graph.dtype(node.output) != "float32":
        return None
    if node.op == "BatchNormalization":
        return _batch_norm(low, node)
    one, zero = np.ones(1), np.zeros(1)
    for data, other in (node.inputs, node.inputs[::-1]):
        number = _per_channel(low, data, node.output, low.constant(other))
        if number is None or low.constant(data) is not None:
            continue
        is_first = data == node.inputs[0]
        match node.op:
            case "Mul":
                return Scaled(data, number, zero)
            case "Add":
                return Scaled(data, one, number)
            case "Sub":
                return Scaled(data, one, -number) if is_first else Scaled(data, -one, number)
            case "Div" if is_first and number.all():
                return Scaled(data, 1 / number, zero)
    return None


def _batch_norm(low: Lowering, node: Node) -> Scaled | None:
    values = [low.constant(name) for name in node.inputs[1:5]]
    if (
        any(node.outputs[1:])
        or node.get("training_mode", 0)
        or len(low.graph.shape(node.output)) != 4
    ):
        return None
    if any(value is None for value in values):
        return None
    scale, bias, mean, variance = (np.asarray(v, np.float64) for v in values)
    scale = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    return Scaled(node.inputs[0], scale, bias - mean * scale)


def _per_channel(
    low: Lowering, data: str, output: str, value: NDArray[Any] | None
) -> Numbers | None:
    """Return constants that stand along the channels of a tensor's image; None if others."""
    shape = low.graph.shape(output)
    if value is None or low.graph.shape(data) != shape or len(shape) < 2:
        return None
    if value.size == 1:
        return value.astype(np.float64).reshape(1)
    axis = 1 if len(shape) == 4 else len(shape) - 1
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    wanted = tuple(n if k == axis else 1 for k, n in enumerate(shape))
    return value.astype(np.float64).reshape(-1) if padded == wanted else None


def _call(low: Lowering, scaled: Scaled, how: str, sink: Sink) -> Image:
    source = low.source(scaled.data)
    output = sink.image(source.n, source.h, source.w, source.c)
    source = low.emit.with_pitch(source, output.cp)
    numbers = []
    for number in (scaled.scale, scaled.shift):
        channels = np.zeros(output.cp, np.float32)
        channels[: source.c] = number
        numbers.append(channels)
    own = 0
    if scaled.norm is not None:
        numbers = [_moments(low, scaled.norm, source, numbers)] * 2
        own = output.cp
    function = sink.activation.name
    kernel = channel_kernel(source.dtype, sink.dtype, how, function, low.threads)
    values = {**output.as_output(), **sink.parameters(), **source.as_source("0")}
    values |= {"z0": source.zero_point, "f0": source.scale, "sns": 2 * own, "bo": own}
    arguments = [source.var, *numbers, *parameter_arrays(kernel, values)]
    return low.emit.image(kernel, arguments, output)


def _moments(low: Lowering, norm: Norm, source: Image, numbers: list[Any]) -> Any:
    """Emit the kernel that finds scale and shift of every channel of every image."""
    lanes = 16 if source.cp % 16 == 0 else 8
    kernel = moments_kernel(source.dtype, lanes, worth_threads(low.threads, source.size))
    per = source.c // norm.groups
    values = {**source.as_source("0"), "z0": source.zero_point, "f0": source.scale}
    values |= {"n": source.n, "h": source.h, "w": source.w, "pitch": source.cp}
    values |= {"groups": norm.groups, "per": per, "eps": norm.epsilon}
    values["share"] = 1.0 / (per * source.h * source.w)
    arguments = [source.var, *numbers, *parameter_arrays(kernel, values)]
    return low.emit.call(kernel, arguments, 2 * source.n * source.cp, "float32")
