"""Layers with weights: convolutions and linear layers, in floats and in integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Node, pads_of
from ..onnx_graph.quantizers import stored_steps
from ..onnx_graph.transposed import transposed_axes
from .model_writer import Quantization
from .network import Network
from .rules import Call, Value, rule, unsupported
from .windows import VALID, Window

_MAX_BIAS = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class _Parameters:
    """Constant operands of a layer, with the output channels in the first dimension.

    Attributes:
        weights: float32, or int8 where the layer works on integers.
        bias: float32, or int32 in steps of the sums.
        scale: Steps of the weights, one per output channel; None for floats.
        bias_scale: Steps of the sums.
    """

    weights: NDArray[Any]
    bias: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    bias_scale: NDArray[np.float32] | None = None

    def tensors(self, network: Network, weights: NDArray[Any], axis: int) -> list[int]:
        """Add the operands, the weights in the order of the operator."""
        if self.scale is None or self.bias_scale is None:
            return [network.constant(weights), network.constant(self.bias)]
        return [
            network.constant(weights, Quantization(self.scale, 0, axis)),
            network.constant(self.bias, Quantization(self.bias_scale)),
        ]


@rule("Conv", kind="sum", fuses=True)
def conv(network: Network, call: Call) -> Value | None:
    """Convolution: `CONV_2D`, or `DEPTHWISE_CONV_2D` where each group has one input."""
    shape = network.graph.shape(call.node.inputs[0])
    if len(shape) not in (3, 4):
        raise unsupported(call.node, f"it convolves {len(shape) - 2} dimensions, not 1 or 2")
    parameters = _parameters(network, call, 0)
    if parameters is None:
        return None
    if len(shape) == 4:
        return _convolve(network, call, parameters, network.get(call.inputs[0], image=True))
    # A row is an image of height one.
    batch, channels, length = shape
    rows = network.permuted(network.get(call.inputs[0], image=False), (0, 2, 1))
    image = network.reshaped(rows, (batch, 1, length, channels))
    parameters = replace(parameters, weights=parameters.weights[:, :, None])
    lying = replace(call, node=_lying(call.node), shape=(*call.shape[:2], 1, call.shape[2]))
    value = _convolve(network, lying, parameters, image).index
    value = network.reshaped(value, (batch, call.shape[2], call.shape[1]))
    return Value(network.permuted(value, (0, 2, 1)), False)


def _lying(node: Node) -> Node:
    """Return a one-dimensional convolution as one over the width of an image."""
    attributes = dict(node.attributes)
    for name in ("kernel_shape", "strides", "dilations"):
        if name in attributes:
            attributes[name] = [1, *attributes[name]]
    if "pads" in attributes:
        begin, end = attributes["pads"]
        attributes["pads"] = [0, begin, 0, end]
    return replace(node, attributes=attributes)


def _convolve(network: Network, call: Call, parameters: _Parameters, image: int) -> Value:
    """Convolve an image; its size is that of the tensor, as the node may be of a row."""
    node, weights = call.node, parameters.weights
    batch, height, width, channels = network.writer.shape(image)
    groups, kernel = node.get("group", 1), weights.shape[2:]
    pads = pads_of(node, height, width, (kernel[0], kernel[1]))
    shape = (batch, channels, height, width)
    window = Window.of(node, shape, call.shape, kernel, pads)
    source = window.padded(network, image)
    options: dict[str, Any] = {
        "padding": window.padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
    }
    if groups == channels and groups > 1:
        operands = parameters.tensors(network, weights.transpose(1, 2, 3, 0), 3)
        options["depthMultiplier"] = weights.shape[0] // groups
        code, kind = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
    else:
        operands = parameters.tensors(network, weights.transpose(0, 2, 3, 1), 0)
        code, kind = "CONV_2D", "Conv2DOptions"
    return network.emit(
        code,
        [source, *operands],
        call.shape,
        image=True,
        grid=call.grid,
        options=kind,
        fusedActivationFunction=network.writer.activation(call.activation),
        **options,
    )


@rule("ConvTranspose", kind="sum")
def conv_transpose(network: Network, call: Call) -> Value | None:
    """`TRANSPOSE_CONV` without padding, and what the file's padding cuts off cut off behind it."""
    node, graph = call.node, network.graph
    if len(call.shape) != 4 or node.get("group", 1) != 1:
        raise unsupported(node, "it is not two-dimensional, or has groups")
    parameters = _parameters(network, call, 1)
    if parameters is None:
        return None
    axes = transposed_axes(graph, node)
    channels = call.shape[1]
    weights = np.zeros(
        (*parameters.weights.shape[:2], *((a.kernel - 1) * a.dilation + 1 for a in axes)),
        parameters.weights.dtype,
    )
    weights[:, :, :: axes[0].dilation, :: axes[1].dilation] = parameters.weights
    kernels = weights.shape[2:]
    # `output_padding` may ask for more than what the windows reach.
    whole = [
        max((a.size - 1) * a.stride + k, a.begin + a.out)
        for a, k in zip(axes, kernels, strict=True)
    ]
    full = (call.shape[0], channels, *whole)
    image = network.get(call.inputs[0], image=True)
    operands = parameters.tensors(network, weights.transpose(0, 2, 3, 1), 0)
    value = network.emit(
        "TRANSPOSE_CONV",
        [network.integers(call.shape[0], *whole, channels), operands[0], image, operands[1]],
        full,
        image=True,
        grid=call.grid,
        options="TransposeConvOptions",
        padding=VALID,
        strideH=axes[0].stride,
        strideW=axes[1].stride,
    )
    if full == call.shape:
        return value
    begin = network.integers(0, axes[0].begin, axes[1].begin, 0)
    size = network.integers(call.shape[0], *call.shape[2:], channels)
    inputs = [value.index, begin, size]
    return network.emit(
        "SLICE", inputs, call.shape, image=True, grid=call.grid, options="SliceOptions"
    )


@rule("Gemm", kind="sum", fuses=True)
def gemm(network: Network, call: Call) -> Value | None:
    """Linear layer: `FULLY_CONNECTED`."""
    node = call.node
    if node.get("transA", 0):
        raise unsupported(node, "it transposes its first operand")
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    parameters = _parameters(network, call, 0 if node.get("transB", 0) else 1, alpha, beta)
    return None if parameters is None else _linear(network, call, parameters)


@rule("MatMul", kind="sum", fuses=True)
def matmul(network: Network, call: Call) -> Value | None:
    """Product with a constant matrix as `FULLY_CONNECTED`, any other as `BATCH_MATMUL`."""
    graph, (first, second) = network.graph, call.node.inputs
    if network.reals(second) is not None and len(graph.shape(second)) == 2:
        parameters = _parameters(network, call, 1)
        return None if parameters is None else _linear(network, call, parameters)
    if call.grid is not None:
        return None
    if min(len(graph.shape(first)), len(graph.shape(second))) < 2:
        raise unsupported(call.node, "one of its operands is a vector")
    inputs = [network.get(name, image=False) for name in (first, second)]
    product = network.emit(
        "BATCH_MATMUL", inputs, call.shape, image=False, options="BatchMatMulOptions"
    )
    if call.activation == "NONE":
        return product
    return network.emit(call.activation, [product.index], call.shape, image=False)


def _linear(network: Network, call: Call, parameters: _Parameters) -> Value:
    source = network.get(call.inputs[0], image=False)
    return network.emit(
        "FULLY_CONNECTED",
        [source, *parameters.tensors(network, parameters.weights, 0)],
        call.shape,
        image=False,
        grid=call.grid,
        options="FullyConnectedOptions",
        keepNumDims=len(call.shape) > 2,
        fusedActivationFunction=network.writer.activation(call.activation),
    )


def _parameters(
    network: Network, call: Call, axis: int, alpha: float = 1.0, beta: float = 1.0
) -> _Parameters | None:
    """Return weights and bias of a layer whose output channels lie along `axis`.

    None if the layer is to work on integers, but its weights are not stored as LiteRT wants
    them: 8 bits or fewer, with 0 as the zero point and one step per tensor or output channel.
    """
    node = call.node
    weights = network.reals(node.inputs[1])
    if weights is None:
        raise unsupported(node, "its weights are not constant")
    bias = _bias(network, call, weights.shape[axis], beta)
    if call.grid is None:
        weights = np.moveaxis(weights, axis, 0) * np.float32(alpha)
        return _Parameters(weights, bias.astype(np.float32))
    stored = stored_steps(network.graph, node.inputs[1])
    if stored is None or stored.zero_point.astype(np.int64).any():
        return None
    values = stored.values.astype(np.int64)
    if values.min() < -128 or values.max() > 127:
        return None
    if stored.scale.size > 1 and stored.axis != axis:
        return None
    scale = np.broadcast_to(stored.scale.reshape(-1) * np.float32(alpha), len(bias))
    sum_scale = scale.astype(np.float64) * call.grids[0].scale
    steps = np.rint(bias / sum_scale)
    if np.abs(steps).max() > _MAX_BIAS:
        return None
    return _Parameters(
        np.moveaxis(values, axis, 0).astype(np.int8),
        steps.astype(np.int32),
        scale.astype(np.float32),
        sum_scale.astype(np.float32),
    )


def _bias(network: Network, call: Call, channels: int, beta: float) -> NDArray[np.float64]:
    """Return the bias of a layer as one number per output channel."""
    node = call.node
    total = np.zeros(channels)
    if call.bias is not None:
        total += call.bias
    if len(node.inputs) > 2 and node.inputs[2]:
        stored = stored_steps(network.graph, node.inputs[2])
        value = network.reals(node.inputs[2]) if stored is None else stored.doubles
        if value is None:
            raise unsupported(node, "its bias is not constant")
        if value.size not in (1, channels):
            raise unsupported(node, f"its bias has the shape {value.shape}")
        total += beta * value.reshape(-1).astype(np.float64)
    return total
