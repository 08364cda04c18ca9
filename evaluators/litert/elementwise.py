"""Operators that work on each number by itself, and sums over dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Node
from .network import TO_IMAGE, Network
from .rules import Call, Value, rule, unsupported

_BINARY = {
    "Add": ("ADD", "AddOptions"),
    "Sub": ("SUB", "SubOptions"),
    "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"),
}
_UNARY = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Elu": "ELU",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH",
    "Log": "LOG",
    "Neg": "NEG",
    "Round": "ROUND",
    "Sigmoid": "LOGISTIC",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
_CAST = frozenset(("float32", "int32", "int64", "bool"))
_REDUCTIONS = {
    "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN",
    "ReduceMin": "REDUCE_MIN",
    "ReduceSum": "SUM",
}


@rule("Add", "Mul", kind="sum", fuses=True, n_data=2)
@rule("Sub", "Div", fuses=True, n_data=2)
def binary(network: Network, call: Call) -> Value:
    """Arithmetic of two tensors, with numpy's broadcasting."""
    code, options = _BINARY[call.node.op]
    inputs, image = _operands(network, call)
    fused = network.writer.activation(call.activation)
    return network.emit(
        code,
        inputs,
        call.shape,
        image=image,
        grid=call.grid,
        options=options,
        fusedActivationFunction=fused,
    )


@rule("Pow", "Max", "Min", n_data=2)
def other_binary(network: Network, call: Call) -> Value:
    """`POW`, `MAXIMUM` and `MINIMUM` of two tensors."""
    if len(call.node.inputs) != 2:
        raise unsupported(call.node, f"it has {len(call.node.inputs)} operands, not 2")
    inputs, image = _operands(network, call)
    if call.node.op == "Pow":
        return network.emit("POW", inputs, call.shape, image=image, options="PowOptions")
    code = f"{call.node.op.upper()}IMUM"
    options = "MaximumMinimumOptions"
    return network.emit(code, inputs, call.shape, image=image, options=options)


@rule(*_UNARY)
def unary(network: Network, call: Call) -> Value:
    """A function of single numbers that LiteRT has under another name."""
    if call.node.op == "Elu" and call.node.get("alpha", 1.0) != 1.0:
        raise unsupported(call.node, "its `alpha` is not 1")
    return _apply(network, call, _UNARY[call.node.op])


@rule("Cast", takes=_CAST)
def cast(network: Network, call: Call) -> Value:
    """`CAST`, or nothing between floats."""
    name, image = call.inputs[0], network.is_image(call.inputs[0])
    value = network.get(name, image=image)
    kinds = [network.graph.dtype(tensor) for tensor in (name, call.node.output)]
    if kinds[0] == kinds[1]:
        return Value(value, image)
    inside, outside = (network.writer.type_of(kind) for kind in kinds)
    return network.emit(
        "CAST",
        [value],
        call.shape,
        image=image,
        dtype=kinds[1],
        options="CastOptions",
        inDataType=inside,
        outDataType=outside,
    )


@rule("LeakyRelu")
def leaky_relu(network: Network, call: Call) -> Value:
    """`LEAKY_RELU`."""
    alpha = call.node.get("alpha", 0.01)
    return _apply(network, call, "LEAKY_RELU", "LeakyReluOptions", alpha=alpha)


@rule("Gelu")
def gelu(network: Network, call: Call) -> Value:
    """`GELU`."""
    approximate = call.node.get("approximate", b"none") == b"tanh"
    return _apply(network, call, "GELU", "GeluOptions", approximate=approximate)


@rule("HardSigmoid")
def hard_sigmoid(network: Network, call: Call) -> Value:
    """A line, cut at 0 and 1."""
    slope, height = call.node.get("alpha", 0.2), call.node.get("beta", 0.5)
    name, image = call.inputs[0], network.is_image(call.inputs[0])
    value = network.get(name, image=image)
    for code, number in (("MUL", slope), ("ADD", height)):
        inputs = [value, network.constant(np.array([number], np.float32))]
        options = f"{code.capitalize()}Options"
        value = network.emit(code, inputs, call.shape, image=image, options=options).index
    return network.emit("RELU_0_TO_1", [value], call.shape, image=image)


@rule("PRelu")
def prelu(network: Network, call: Call) -> Value:
    """`PRELU`, whose slopes lack the batch dimension."""
    image = network.is_image(call.inputs[0])
    slope = _aligned(network, call, 1, image)
    if slope is None:
        raise unsupported(call.node, "its slopes are not constant")
    shape = np.broadcast_shapes(slope.shape[1:], (1,) * (len(call.shape) - 1))
    slopes = network.constant(slope.reshape(shape))
    value = network.get(call.inputs[0], image=image)
    return network.emit("PRELU", [value, slopes], call.shape, image=image)


@rule("Softmax", "LogSoftmax")
def softmax(network: Network, call: Call) -> Value:
    """`SOFTMAX` and `LOG_SOFTMAX`, which work on the last dimension."""
    rank = len(call.shape)
    is_old = _opset(network) < 13  # the softmax of all further dimensions together
    axis = call.node.get("axis", 1 if is_old else -1) % rank
    image = rank == 4 and axis == 1 and not is_old
    if not image and axis != rank - 1:
        raise unsupported(call.node, f"it works on dimension {axis}, not the last one")
    value = network.get(call.inputs[0], image=image)
    if call.node.op == "LogSoftmax":
        options = "LogSoftmaxOptions"
        return network.emit("LOG_SOFTMAX", [value], call.shape, image=image, options=options)
    return network.emit(
        "SOFTMAX", [value], call.shape, image=image, options="SoftmaxOptions", beta=1.0
    )


@rule("BatchNormalization")
def batch_norm(network: Network, call: Call) -> Value:
    """A factor and an offset for each channel."""
    operands = [network.reals(name) for name in call.node.inputs[1:]]
    if any(operand is None for operand in operands):
        raise unsupported(call.node, "its statistics are not constant")
    scale, offset, mean, variance = (np.asarray(v, np.float64) for v in operands)
    factor = scale / np.sqrt(variance + call.node.get("epsilon", 1e-5))
    image = len(call.shape) == 4
    shape = [-1 if axis == (3 if image else 1) else 1 for axis in range(len(call.shape))]
    value = network.get(call.inputs[0], image=image)
    for code, numbers in (("MUL", factor), ("ADD", offset - mean * factor)):
        inputs = [value, network.constant(numbers.astype(np.float32).reshape(shape))]
        options = f"{code.capitalize()}Options"
        value = network.emit(code, inputs, call.shape, image=image, options=options).index
    return Value(value, image)


@rule("LayerNormalization")
def layer_norm(network: Network, call: Call) -> Value:
    """Normalization over the last dimensions, written out."""
    shape, rank = call.shape, len(call.shape)
    axes = range(call.node.get("axis", -1) % rank, rank)
    reduced = [1 if axis in axes else size for axis, size in enumerate(shape)]

    def emit(code: str, *inputs: int, to: Sequence[int] = shape, options: str = "") -> int:
        return network.emit(code, inputs, to, image=False, options=options).index

    def mean(value: int) -> int:
        inputs = [value, network.integers(*axes)]
        return network.emit(
            "MEAN", inputs, reduced, image=False, options="ReducerOptions", keepDims=True
        ).index

    value = network.get(call.inputs[0], image=False)
    centred = emit("SUB", value, mean(value), options="SubOptions")
    epsilon = network.constant(np.array([call.node.get("epsilon", 1e-5)], np.float32))
    variance = mean(emit("MUL", centred, centred, options="MulOptions"))
    variance = emit("ADD", variance, epsilon, to=reduced, options="AddOptions")
    value = emit("MUL", centred, emit("RSQRT", variance, to=reduced), options="MulOptions")
    for code, name in zip(("MUL", "ADD"), call.node.inputs[1:], strict=False):
        if name:
            operand = network.get(name, image=False)
            value = emit(code, value, operand, options=f"{code.capitalize()}Options")
    return Value(value, False)


@rule("ReduceMean", kind="sum")
@rule("ReduceMax", "ReduceMin", "ReduceSum")
def reduction(network: Network, call: Call) -> Value:
    """Mean, sum or extreme over dimensions."""
    node, source = call.node, network.graph.shape(call.node.inputs[0])
    axes = _axes(network, node, len(source))
    keeps = bool(node.get("keepdims", 1))
    image = network.is_image(call.inputs[0])
    if not keeps and axes != [2, 3]:  # what is left of an image is in ONNX's order only then
        image = False
    places = [TO_IMAGE.index(axis) for axis in axes] if image else axes
    inputs = [network.get(call.inputs[0], image=image), network.integers(*places)]
    return network.emit(
        _REDUCTIONS[node.op],
        inputs,
        call.shape,
        image=image and keeps,
        grid=call.grid,
        options="ReducerOptions",
        keepDims=keeps,
    )


def _axes(network: Network, node: Node, rank: int) -> list[int]:
    """Return the dimensions of a reduction, an input since opset 18 and an attribute before."""
    axes = node.get("axes", None)
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = network.graph.constant(node.inputs[1])
        if axes is None:
            raise unsupported(node, "its dimensions are not constant")
    if axes is None or not len(axes):
        if node.get("noop_with_empty_axes", 0):
            raise unsupported(node, "it reduces nothing")
        axes = range(rank)
    return sorted(int(axis) % rank for axis in axes)


def _apply(network: Network, call: Call, code: str, options: str = "", **values: Any) -> Value:
    """Emit an operator on single numbers, in the form that its operand has."""
    image = network.is_image(call.inputs[0])
    inputs = [network.get(call.inputs[0], image=image)]
    return network.emit(code, inputs, call.shape, image=image, options=options, **values)


def _operands(network: Network, call: Call) -> tuple[list[int], bool]:
    """Return two operands in one form, with all dimensions of the result where they need them."""
    rank = len(call.shape)
    image = rank == 4 and any(network.is_image(name) for name in call.inputs[:2])
    operands = []
    for k, name in enumerate(call.inputs[:2]):
        shape = network.graph.shape(call.node.inputs[k])
        constant = _aligned(network, call, k, image)
        if constant is not None:
            operands.append(network.constant(constant))
        elif image and len(shape) < rank:
            plain = (1,) * (rank - len(shape)) + shape
            operands.append(
                network.permuted(network.reshaped(network.get(name, image=False), plain), TO_IMAGE)
            )
        else:
            operands.append(network.get(name, image=image))
    return operands, image


def _aligned(
    network: Network, call: Call, position: int, image: bool
) -> NDArray[np.float32] | None:
    """Return a constant operand with as many dimensions as the result, or None if it is none."""
    value = network.reals(call.node.inputs[position])
    if value is None:
        return None
    value = value.reshape((1,) * (len(call.shape) - value.ndim) + value.shape)
    return value.transpose(TO_IMAGE) if image else value


def _opset(network: Network) -> int:
    imports = network.graph.model.opset_import
    return max((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=1)
