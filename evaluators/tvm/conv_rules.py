"""Rules for layers with weights: convolution, linear, and the add behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Node, conv_pads
from ..onnx_graph.quantizers import is_constant, quantizer, stored_steps
from ..onnx_graph.transposed import Axis, transposed_axes
from .channel_rules import lower_scale
from .image import Image
from .kernels.script import worth_threads
from .layers import ConvLayer
from .lowering import Lowering
from .packing import ConvGeometry
from .rule_table import rule
from .sink import Sink
from .spread import spread_depthwise
from .stored import are_halves
from .transposed import Phases, phase_weights


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A layer's weights, output channels first.

    Attributes:
        values: Integers in int8, or floats where `scale` is None.
        scale: Step of each output channel.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] | None

    @property
    def reals(self) -> NDArray[np.float32]:
        """The weights as floats."""
        if self.scale is None:
            return self.values.astype(np.float32)
        shape = (-1, *[1] * (self.values.ndim - 1))
        return (self.values.astype(np.float32) * self.scale.reshape(shape)).astype(np.float32)


def _weights(low: Lowering, name: str, out_axis: int, dimensions: int) -> Weights | None:
    """Return constant weights, or None if they are not constant or of other dimensions."""
    stored = stored_steps(low.graph, name)
    if stored is not None and stored.values.ndim == dimensions:
        symmetric = not np.any(stored.zero_point.astype(np.int32))
        per_channel = stored.scale.size == 1 or stored.axis == out_axis
        if symmetric and per_channel and str(stored.values.dtype) in ("int8", "int4", "int2"):
            scale = np.broadcast_to(stored.scale.reshape(-1), (stored.values.shape[out_axis],))
            return Weights(np.moveaxis(stored.values.astype(np.int8), out_axis, 0), scale)
    reals = low.constant(name)
    if reals is None or reals.ndim != dimensions:
        return None
    return Weights(np.moveaxis(reals, out_axis, 0), None)


def _bias(low: Lowering, node: Node, channels: int) -> NDArray[np.float64] | None:
    """Return the bias of a layer as reals; zeros if it has none, None if it is not constant."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return np.zeros(channels)
    stored = stored_steps(low.graph, name)
    value = low.constant(name) if stored is None else stored.doubles
    return None if value is None else _per_channel(value, channels)


def _per_channel(value: NDArray[Any], channels: int) -> NDArray[np.float64] | None:
    """Return a constant that is added along the last dimension, or None if it has another."""
    if value.size not in (1, channels) or (value.ndim and value.shape[-1] != value.size):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,))


@rule("Conv")
def lower_conv(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Two-dimensional convolution with constant weights."""
    weights = _weights(low, node.inputs[1], 0, 4)
    if weights is None:
        return None
    bias = _bias(low, node, len(weights.values))
    if bias is None:
        return None
    n, oc, ho, wo = low.graph.shape(node.output)
    _, ic, _, _ = low.graph.shape(node.inputs[0])
    _, _, kh, kw = weights.values.shape
    geometry = ConvGeometry(
        ic=ic,
        icp=ic,
        oc=oc,
        kernel=(kh, kw),
        stride=tuple(node.get("strides", [1, 1])),
        dilation=tuple(node.get("dilations", [1, 1])),
        groups=node.get("group", 1),
    )
    top, left, _, _ = conv_pads(low.graph, node)
    name, size = node.proto.name, (n, ho, wo)
    layer = _Layer(node.inputs[0], geometry, weights, bias, (top, left), size, oc, name)
    return _lower_layer(low, layer, sink)


@rule("ConvTranspose")
def lower_transposed_conv(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Two-dimensional transposed convolution with constant weights."""
    weights = _weights(low, node.inputs[1], 1, 4)
    if weights is None or sink.residual is not None:
        return None
    groups = node.get("group", 1)
    weights = _ungrouped(weights, groups)
    bias = _bias(low, node, len(weights.values))
    axes = transposed_axes(low.graph, node)
    if bias is None:
        return None
    n, oc, ho, wo = low.graph.shape(node.output)
    if groups == oc == low.graph.shape(node.inputs[0])[1] > 1:
        return _transposed_depthwise(low, node, weights, bias, axes, sink)
    values, phases = phase_weights(weights.values, axes)

    def of_phases(channels: NDArray[Any]) -> NDArray[Any]:
        return np.tile(np.pad(channels, (0, phases.channels - oc)), len(phases.shifts))

    scale = None if weights.scale is None else of_phases(weights.scale)
    geometry = ConvGeometry(
        ic=groups * values.shape[1],
        icp=groups * values.shape[1],
        oc=len(values),
        kernel=(values.shape[2], values.shape[3]),
        dilation=(axes[0].step, axes[1].step),
        groups=groups,
        phases=len(phases.shifts),
        filled=phases.channels - oc,
    )
    height, width = (axis.count * axis.stride for axis in axes)  # phases of one size
    layer = _Layer(
        *(node.inputs[0], geometry, Weights(values, scale), of_phases(bias), (0, 0)),
        *((n, height, width), oc, node.proto.name, phases),
    )
    if (height, width) == (ho, wo):
        return _lower_layer(low, layer, sink)
    image = _lower_layer(low, layer, replace(sink, border=0))
    return None if image is None else low.emit.part(image, ho, wo, sink)


def _transposed_depthwise(
    low: Lowering,
    node: Node,
    weights: Weights,
    bias: NDArray[np.float64],
    axes: tuple[Axis, Axis],
    sink: Sink,
) -> Image | None:
    source = low.steps(node.inputs[0]) if weights.scale is not None else None
    values, factor = weights.reals, np.ones(len(bias))
    if source is None:
        source = low.image(node.inputs[0])
    elif weights.scale is not None:
        values, factor = weights.values, source.scale * weights.scale.astype(np.float64)
    if source.cp % 8:
        return None
    return spread_depthwise(low, source, axes, values, factor, bias, sink)


def _ungrouped(weights: Weights, groups: int) -> Weights:
    """Return transposed weights `(oc / groups, ic, kh, kw)` as `(oc, ic / groups, kh, kw)`."""
    ocg, ic, *kernel = weights.values.shape
    values = weights.values.reshape(ocg, groups, ic // groups, *kernel)
    values = values.swapaxes(0, 1).reshape(groups * ocg, ic // groups, *kernel)
    return Weights(values, None if weights.scale is None else np.tile(weights.scale, groups))


@rule("Gemm", "MatMul")
def lower_linear(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Linear layer: a matrix product with constant weights, rows of the input as pixels."""
    return _lower_linear(low, node, sink)


def _lower_linear(
    low: Lowering, node: Node, sink: Sink, added: NDArray[Any] | None = None
) -> Image | None:
    """Lower a linear layer; `added` is a constant that an Add node behind it brings."""
    is_scaled = node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0
    shape = low.graph.shape(node.output)
    if is_scaled or node.get("transA", 0) or len(shape) == 4:
        return None  # rows of a tensor of four dimensions do not lie as an image's pixels
    weights = _weights(low, node.inputs[1], 0 if node.get("transB", 0) else 1, 2)
    if weights is None:
        return None
    oc, ic = weights.values.shape
    bias = _bias(low, node, oc)
    more = _per_channel(added, oc) if added is not None else np.zeros(oc)
    if bias is None or more is None:
        return None
    geometry = ConvGeometry(ic=ic, icp=ic, oc=oc, kernel=(1, 1))
    weights = replace(weights, values=weights.values[:, :, None, None])
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    name, size = node.proto.name, (1, 1, rows)
    layer = _Layer(node.inputs[0], geometry, weights, bias + more, (0, 0), size, oc, name)
    return _lower_layer(low, layer, sink)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer as the graph has it.

    Attributes:
        data: The input tensor.
        geometry: Sizes; the input's channel pitch is not known yet.
        weights: OIHW.
        bias: Reals.
        pads: Top and left padding.
        size: Batch, height and width of the output.
        channels: Output channels; those of the geometry are of all phases together.
        name: Name of the node.
        phases: Of a transposed convolution.
    """

    data: str
    geometry: ConvGeometry
    weights: Weights
    bias: NDArray[np.float64]
    pads: tuple[int, int]
    size: tuple[int, int, int]
    channels: int
    name: str
    phases: Phases | None = None


def _lower_layer(low: Lowering, layer: _Layer, sink: Sink) -> Image | None:
    weights = layer.weights
    steps = low.steps(layer.data) if weights.scale is not None else None
    if sink.residual is not None and not _may_add(sink, is_integer=steps is not None):
        return None
    source = low.image(layer.data) if steps is None else steps
    geometry = replace(layer.geometry, icp=source.cp)
    n, h, w = layer.size
    output = sink.image(n, h, w, layer.channels)
    threads = worth_threads(low.threads, _work(geometry, output, weights))
    placed = (source, layer.pads, output, sink, threads)
    if steps is None or weights.scale is None:
        factor, bias = np.ones(geometry.oc, np.float32), layer.bias.astype(np.float32)
        reals = weights.reals
        return low.call_layer(
            ConvLayer(
                *(geometry, reals, bias, factor, *placed),
                name=layer.name,
                phases=layer.phases,
                is_half=are_halves(reals),
            )
        )
    unit = source.scale * weights.scale.astype(np.float64)
    target = sink.scale if sink.accumulates_in_steps else 1.0
    if sink.own is not None:
        target = sink.own.scale
    # Rounded twice, as ONNX Runtime does it: of sums near a tie both then make the same step.
    factor = unit.astype(np.float32) / np.float32(target)
    whole, rest = _whole_steps(layer.bias, unit)
    zero_sum = weights.values.astype(np.int64).sum((1, 2, 3)) * source.zero_point
    fraction = None if rest is None else (rest / target).astype(np.float32)
    bias = (whole - zero_sum).astype(np.int32)
    return low.call_layer(
        ConvLayer(
            *(geometry, weights.values, bias, factor, *placed, fraction),
            name=layer.name,
            phases=layer.phases,
        )
    )


def _work(geometry: ConvGeometry, output: Image, weights: Weights) -> float:
    """Return the work of a layer in the unit of `worth_threads`."""
    products = output.n * output.h * output.w * weights.values.size
    if geometry.groups == geometry.ic > 1:
        return products / 12
    return products / (64 if weights.scale is not None else 32)


def _may_add(sink: Sink, *, is_integer: bool) -> bool:
    """Whether a layer's kernel can add the residual of a sink."""
    assert sink.residual is not None
    if sink.own is not None:  # a sum of steps
        return is_integer
    if is_integer:
        return sink.dtype == "float32"
    return sink.residual.dtype == "float32"


def _whole_steps(
    bias: NDArray[np.float64], unit: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Return a bias in whole steps of the sum, and what that leaves, None if it is nothing."""
    steps = np.divide(bias, unit, out=np.zeros_like(bias), where=unit > 0)
    whole = np.clip(np.rint(steps), -(2.0**30), 2.0**30)  # the rest of the sum has room, too
    rest = bias - whole * unit
    # A stored step is a rounded product, so a whole number of steps comes back only nearly whole.
    is_whole = np.abs(rest) <= 1e-3 * unit + 1e-6 * np.abs(bias)
    return whole.astype(np.int64), None if is_whole.all() else np.where(is_whole, 0.0, rest)


@rule("Add")
def lower_add(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Sum of two tensors of one shape, in the epilogue of the layer behind one where that fits.

    A constant along the last dimension is a bias of the linear layer in front of it.
    """
    graph = low.graph
    for data, other in (node.inputs, node.inputs[::-1]):
        stored = stored_steps(graph, other)
        constant = low.constant(other) if stored is None else stored.doubles
        if constant is not None:
            maker = graph.producer(data)
            same = graph.shape(data) == graph.shape(node.output)
            if maker is None or maker.op != "MatMul" or graph.only_user(data) is not node:
                return lower_scale(low, node, sink)
            linear = _lower_linear(low, maker, sink, constant) if same else None
            return linear or lower_scale(low, node, sink)
    shapes = [graph.shape(i) for i in node.inputs]
    if shapes[0] != shapes[1] or len(shapes[0]) < 2:
        return None
    if node.inputs[0] != node.inputs[1] and sink.residual is None:
        for main, other in (node.inputs, node.inputs[::-1]):
            image = _add_in_epilogue(low, node, main, other, sink)
            if image is not None:
                return image
    return low.emit.store([low.source(i) for i in node.inputs], sink)


def _add_in_epilogue(low: Lowering, node: Node, main: str, other: str, sink: Sink) -> Image | None:
    """Lower the layer behind `main` with the sum in its epilogue, or return None."""
    graph = low.graph
    maker = graph.producer(main)
    if maker is None or graph.only_user(main) is not node:
        return None
    if maker.op in _LAYERS or _adds_bias(low, maker):
        residual = low.source(other)
        if residual.cp % 8:
            return None
        return _LAYERS.get(maker.op, lower_add)(low, maker, replace(sink, residual=residual))
    if maker.op != "DequantizeLinear" or sink.dtype != "uint8":
        return None
    quantize = graph.producer(maker.inputs[0])
    if quantize is None or graph.only_user(maker.inputs[0]) is not maker:
        return None
    layer, own = _layer_behind(low, quantize, maker)
    if layer is None:
        return None
    residual = low.source(other)
    if residual.dtype != "uint8":
        return None
    is_first = node.inputs[0] == other
    sink = replace(sink, residual=residual, is_residual_first=is_first, own=own)
    return _LAYERS[layer.op](low, layer, sink)


def _adds_bias(low: Lowering, node: Node) -> bool:
    """Whether a node adds a constant to what a linear layer makes, so that its kernel does."""
    if node.op != "Add" or not any(is_constant(low.graph, name) for name in node.inputs):
        return False
    makers = [low.graph.producer(name) for name in node.inputs]
    return any(maker is not None and maker.op == "MatMul" for maker in makers)


def _layer_behind(low: Lowering, quantize: Node, dequantize: Node) -> tuple[Node | None, Sink]:
    """Return the layer whose output a Q and DQ pair stores, and how it is stored."""
    steps = quantizer(low.graph, quantize)
    if quantize.op != "QuantizeLinear" or steps is None:
        return None, Sink(0)
    if steps != quantizer(low.graph, dequantize):
        return None, Sink(0)
    own = Sink(0, "uint8", steps.scale, steps.zero_point)
    name, user = quantize.inputs[0], quantize
    while low.graph.only_user(name) is user:
        maker = low.graph.producer(name)
        if maker is None:
            break
        if maker.op in _LAYERS:
            return maker, own
        bounds = low.activation(maker)
        if bounds is None:
            break
        own, name, user = own.clamped(*bounds), maker.inputs[0], maker
    return None, own


_LAYERS: dict[str, Callable[[Lowering, Node, Sink], Image | None]] = {
    "Conv": lower_conv,
    "ConvTranspose": lower_transposed_conv,
    "Gemm": lower_linear,
    "MatMul": lower_linear,
}
