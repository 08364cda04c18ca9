"""Each operator in float, and each that has one in its integer form, against ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from paredown.evaluators.litert.converter import convert_onnx
from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import get_runtime

pytest.importorskip("ai_edge_litert")

STEP = 0.03
Network = Callable[[Any], Any]
FLOAT: list[Network] = []
INTEGER: list[tuple[Network, dict[str, int]]] = []


def floats(network: Network) -> Network:
    FLOAT.append(network)
    return network


def integers(**operators: int) -> Callable[[Network], Network]:
    """A network whose file must have just these operators besides reshapes and transposes."""

    def add(network: Network) -> Network:
        INTEGER.append((network, operators))
        return network

    return add


# ---- float


@floats
def convolutions(b: Any) -> Any:
    x = "input"
    return b.model(
        (1, 4, 9, 8),
        b.float_conv(x, (6, 4, 3, 3), pads=[1, 1, 1, 1]),
        b.float_conv(x, (6, 4, 3, 3), pads=[1, 0, 2, 1], strides=[2, 1]),
        b.float_conv(x, (6, 4, 3, 2), dilations=[2, 3]),
        b.float_conv(x, (6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
        b.float_conv(x, (6, 4, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
        b.float_conv(x, (6, 2, 3, 3), group=2),
        b.float_conv(x, (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
        b.float_conv(x, (8, 1, 3, 3), group=4, strides=[2, 2]),
        b.op("Conv", x, b.floats(5, 4, 1, 1)),
    )


@floats
def activations(b: Any) -> Any:
    x = b.float_conv("input", (6, 4, 1, 1))
    single = [b.op(op, x) for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Abs", "Neg")]
    single += [b.op("Exp", x), b.op("Log", b.op("Exp", x)), b.op("Sqrt", b.op("Abs", x))]
    single += [b.op(op, x) for op in ("Floor", "Ceil", "Sin", "Cos")]
    return b.model(
        (1, 4, 5, 7),
        *single,
        b.op("Clip", x, b.number(0), b.number(6)),
        b.op("Clip", x, b.number(-1), b.number(1)),
        b.op("Clip", x, b.number(-0.3), b.number(0.4)),
        b.op("Clip", x, b.number(0.1)),
        b.op("Clip", b.float_conv("input", (6, 4, 1, 1)), b.number(-0.2), b.number(0.6)),
        b.op("LeakyRelu", x, alpha=0.2),
        b.op("PRelu", x, b.floats(6, 1, 1)),
        b.op("PRelu", x, b.number(0.1)),
        b.op("HardSigmoid", x, alpha=0.3, beta=0.4),
        b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6)),
        b.op("Mul", x, b.op("HardSigmoid", x, alpha=0.2)),
        b.op("Mul", x, b.op("Sigmoid", x)),
        b.op("Gelu", x),
        b.op("Gelu", x, approximate="tanh"),
        erf_gelu(b, x),
    )


def erf_gelu(b: Any, x: str) -> str:
    erf = b.op("Erf", b.op("Div", x, b.number(2**0.5)))
    result: str = b.op("Mul", b.op("Mul", x, b.op("Add", erf, b.number(1))), b.number(0.5))
    return result


@floats
def fused_activations(b: Any) -> Any:
    x = "input"
    return b.model(
        (1, 4, 5, 7),
        b.op("Relu", b.float_conv(x, (6, 4, 3, 3))),
        b.op("Clip", b.float_conv(x, (6, 4, 3, 3)), b.number(0), b.number(6)),
        b.op("Clip", b.op("Add", x, x), b.number(-1), b.number(1)),
        b.op("Relu", b.op("Clip", b.op("Mul", x, x), b.number(-1), b.number(1))),
        b.op("Relu", b.op("MatMul", x, b.op("Transpose", x, perm=[0, 1, 3, 2]))),
    )


@floats
def arithmetic(b: Any) -> Any:
    image, vector = b.float_conv("input", (4, 4, 1, 1)), b.floats(4, 1, 1)
    return b.model(
        (1, 4, 5, 7),
        b.op("Add", image, "input"),
        b.op("Sub", "input", image),
        b.op("Mul", image, vector),
        b.op("Sub", vector, image),
        b.op("Add", image, b.floats(7)),
        b.op("Div", image, b.number(3)),
        b.op("Mul", image, b.op("GlobalAveragePool", image)),
        b.op("Mul", b.op("ReduceMean", image, b.integers(0, 1), keepdims=0), image),
        b.op("Max", image, "input"),
        b.op("Min", image, b.number(0.2)),
        b.op("Pow", b.op("Abs", image), b.number(1.5)),
        b.op("Mul", "input", b.floats(1, 4, 1, 7)),
    )


@floats
def linear_layers(b: Any) -> Any:
    x = b.op("Flatten", b.float_conv("input", (3, 2, 2, 2)))
    rows = b.op("Reshape", "input", b.integers(1, 5, 12))
    transposed = b.op("Transpose", rows, perm=[0, 2, 1])
    return b.model(
        (1, 2, 5, 6),
        b.op("Gemm", x, b.floats(4, 60), b.floats(4), transB=1),
        b.op("Gemm", x, b.floats(60, 4), b.floats(1, 4), alpha=0.5, beta=2.0),
        b.op("Gemm", x, b.floats(60, 4)),
        b.op("Relu", b.op("Add", b.op("MatMul", rows, b.floats(12, 7)), b.floats(7))),
        b.op("Add", b.op("MatMul", rows, b.floats(12, 7)), b.floats(5, 7)),
        b.op("MatMul", rows, transposed),
        b.op("MatMul", b.floats(3, 5), rows),
        b.op("MatMul", rows, b.floats(1, 12, 3)),
        b.op("Add", rows, b.op("MatMul", rows, b.floats(12, 12))),
    )


@floats
def reductions(b: Any) -> Any:
    image = b.float_conv("input", (4, 4, 1, 1))
    softmax = b.op("Softmax", b.op("Flatten", image))
    return b.model(
        (1, 4, 5, 7),
        b.op("GlobalAveragePool", image),
        b.op("ReduceMean", image, b.integers(2, 3)),
        b.op("ReduceMean", image, b.integers(-1, -2), keepdims=0),
        b.op("ReduceMean", image, b.integers(1), keepdims=0),
        b.op("ReduceSum", image, b.integers(1)),
        b.op("ReduceMax", image, b.integers(2), keepdims=0),
        b.op("ReduceMin", "input"),
        softmax,
        b.op("Softmax", image, axis=1),
        b.op("Softmax", image),
        b.op("LogSoftmax", "input", axis=-1),
    )


@floats
def normalizations(b: Any) -> Any:
    image, rows = b.float_conv("input", (4, 4, 1, 1)), b.op("Flatten", "input", axis=2)
    positive = b.constant(np.array([0.5, 1, 2, 4], np.float32))
    return b.model(
        (1, 4, 5, 6),
        b.op("BatchNormalization", image, *(b.floats(4) for _ in range(3)), positive),
        b.op(
            "BatchNormalization",
            rows,
            *(b.floats(30) for _ in range(3)),
            b.op("Exp", b.floats(30)),
        ),
        b.op("LayerNormalization", "input", b.floats(6), b.floats(6)),
        b.op("LayerNormalization", image, b.floats(5, 6), axis=2, epsilon=0.1),
    )


@floats
def moves(b: Any) -> Any:
    image = b.float_conv("input", (4, 4, 1, 1))
    return b.model(
        (1, 4, 6, 8),
        b.op("Transpose", image, perm=[0, 2, 3, 1]),
        b.op("Transpose", image, perm=[0, 3, 1, 2]),
        b.op("Transpose", "input", perm=[0, 1, 3, 2]),
        b.op("Reshape", image, b.integers(4, -1)),
        b.op("Squeeze", image, b.integers(0)),
        b.op("Unsqueeze", image, b.integers(0)),
        b.op("Flatten", b.op("GlobalAveragePool", image)),
        b.op("Concat", image, "input", image, axis=1),
        b.op("Concat", "input", "input", axis=-1),
        b.op("Pad", image, b.integers(0, 0, 1, 2, 0, 1, 3, 4)),
        b.op("Slice", image, b.integers(1, -3), b.integers(3, 100), b.integers(1, 2)),
        b.op("Slice", "input", b.integers(0, 1), b.integers(1, 3)),
        "input",
    )


@floats
def rows(b: Any) -> Any:
    row = b.op("Reshape", "input", b.integers(1, 4, 48))
    return b.model(
        (1, 4, 6, 8),
        b.op("Conv", row, b.floats(6, 4, 3), b.floats(6), pads=[1, 2], strides=[2]),
        b.op("Relu", b.op("Conv", row, b.floats(6, 4, 3), dilations=[2])),
        b.op("Conv", row, b.floats(4, 1, 5), group=4, auto_pad="SAME_UPPER"),
    )


@floats
def transposed_convolutions(b: Any) -> Any:
    x = "input"
    forms: list[dict[str, Any]] = [
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 1, 2], "dilations": [2, 1]},
        {"strides": [3, 2], "output_padding": [2, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ]
    biased = b.op("ConvTranspose", x, b.floats(4, 6, 2, 2), b.floats(6), strides=[2, 2])
    layers = [b.op("ConvTranspose", x, b.floats(4, 6, 3, 3), **form) for form in forms]
    return b.model((1, 4, 5, 7), b.op("Relu", biased), *layers)


@floats
def resized(b: Any) -> Any:
    def resize(scales: tuple[float, float], mode: str, how: str, **more: Any) -> str:
        sizes = b.constant(np.array([1, 1, *scales], np.float32))
        form = {"mode": mode, "coordinate_transformation_mode": how, **more}
        result: str = b.op("Resize", "input", "", sizes, **form)
        return result

    return b.model(
        (1, 4, 6, 8),
        resize((2, 2), "nearest", "asymmetric", nearest_mode="floor"),
        resize((2, 3), "nearest", "half_pixel"),
        resize((0.5, 1.5), "nearest", "asymmetric", nearest_mode="ceil"),
        resize((2, 2), "nearest", "align_corners"),
        resize((2, 2), "linear", "half_pixel"),
        resize((0.5, 1.5), "linear", "asymmetric"),
        resize((2, 3), "linear", "align_corners"),
        resize((1, 2), "linear", "pytorch_half_pixel"),
    )


@floats
def gathered(b: Any) -> Any:
    image = b.float_conv("input", (4, 4, 1, 1))
    return b.model(
        (1, 4, 6, 8),
        b.op("Gather", image, b.integers(3, 0, -2), axis=1),
        b.op("Gather", image, b.constant(np.array(-1)), axis=2),
        b.op("Gather", "input", b.constant(np.array([[0, 2], [1, 1]])), axis=3),
    )


@floats
def casts(b: Any) -> Any:
    x = b.float_conv("input", (4, 4, 1, 1))
    whole = b.op("Cast", b.op("Cast", x, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    return b.model((1, 4, 6, 8), b.op("Relu", b.op("Cast", x, to=onnx.TensorProto.FLOAT)), whole)


@floats
def splits(b: Any) -> Any:
    image = b.float_conv("input", (4, 4, 1, 1))
    outputs = [b.name("part") for _ in range(3)]
    sizes = b.integers(1, 2, 1)
    b.nodes.append(helper.make_node("Split", [image, sizes], outputs, axis=1))
    return b.model((1, 4, 6, 8), b.op("Relu", outputs[0]), outputs[2])


@floats
def pools(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 1, 1))
    positive = b.op("Relu", x)
    forms: list[dict[str, Any]] = [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 1, 0]},
        {"ceil_mode": 1},
        {"ceil_mode": 1, "pads": [1, 0, 1, 1]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "SAME_UPPER"},
    ]
    outputs = []
    for form in forms:
        window = {"kernel_shape": [3, 2], "strides": [2, 2], **form}
        outputs += [b.op("MaxPool", x, **window), b.op("MaxPool", positive, **window)]
        outputs += [b.op("AveragePool", x, count_include_pad=k, **window) for k in (0, 1)]
    return b.model((1, 4, 8, 9), *outputs)


@pytest.mark.parametrize("network", FLOAT, ids=lambda network: network.__name__)
def test_float_operators_agree(network: Network, builder: Any, agrees: Any) -> None:
    agrees(network(builder))


# ---- integers


def end(b: Any, x: str, bits: int = 8) -> str:
    """Quantize a result, so that the model's output lies on a grid of `STEP`."""
    result: str = b.quantized(x, STEP, 60, bits)
    return result


@integers(QUANTIZE=1, CONV_2D=2, DEPTHWISE_CONV_2D=1, PAD=1, DEQUANTIZE=3)
def integer_convolutions(b: Any) -> Any:
    x = b.quantized("input", STEP, 100)
    return b.model(
        (1, 4, 9, 8),
        end(b, b.conv(x, (6, 4, 3, 3), 8, STEP, pads=[1, 1, 1, 1])),
        end(b, b.conv(x, (6, 4, 3, 3), 4, STEP, pads=[1, 1, 1, 1], strides=[1, 2])),
        end(b, b.conv(x, (8, 1, 3, 3), 6, STEP, group=4)),
    )


@integers(QUANTIZE=1, CONV_2D=1, DEQUANTIZE=1)
def seven_bits_after_relu(b: Any) -> Any:
    x = b.op("Relu", b.conv(b.quantized("input", STEP, 100), (6, 4, 3, 3), 7, STEP))
    return b.model((1, 4, 9, 8), b.quantized(x, 0.006, 0, bits=7))


@integers(QUANTIZE=3, CONV_2D=1, DEQUANTIZE=1)
def seven_bits_around_zero(b: Any) -> Any:
    """Input and output take a second step each."""
    x = b.quantized("input", 0.01, 60, bits=7)
    return b.model((1, 4, 9, 8), b.quantized(b.conv(x, (6, 4, 3, 3), 7, 0.01), 0.002, 60, bits=7))


@integers(QUANTIZE=2, ADD=2, MUL=1, DEQUANTIZE=1)
def integer_arithmetic(b: Any) -> Any:
    x, y = b.quantized("input", 0.0317, 100), b.quantized("input", 0.0213, 128)
    both = b.quantized(b.op("Relu", b.op("Add", x, y)), 0.0291)
    product = b.quantized(b.op("Mul", both, x), 0.0457, 60)
    return b.model((1, 8, 15, 16), end(b, b.op("Add", product, both)))


@integers(QUANTIZE=1, FULLY_CONNECTED=3, DEQUANTIZE=1)
def integer_linear_layers(b: Any) -> Any:
    x = b.quantized("input", STEP, 100)
    x = b.quantized(b.op("Relu", b.layer("Gemm", x, (16, 12), 8, STEP, transB=1)), STEP)
    weights, _ = b.weights((16, 8), 5, axis=1)
    x = b.quantized(b.op("Add", b.op("MatMul", x, weights), b.floats(8)), STEP, 110)
    weights, _ = b.weights((8, 20), 3, axis=1)
    return b.model((3, 12), end(b, b.op("MatMul", x, weights)))


@integers(QUANTIZE=1, CONCATENATION=1, MAX_POOL_2D=1, PADV2=1, PAD=1, SLICE=1, DEQUANTIZE=1)
def integer_moves(b: Any) -> Any:
    x, grid = b.quantized("input", STEP, 100), (STEP, 100)
    x = b.quantized(
        b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), *grid
    )
    x = b.quantized(b.op("Concat", x, x, axis=1), *grid)
    x = b.quantized(b.op("Pad", x, b.integers(0, 0, 0, 1, 0, 0, 1, 0)), *grid)
    x = b.quantized(b.op("Transpose", x, perm=[0, 2, 3, 1]), *grid)
    x = b.quantized(b.op("Slice", x, b.integers(1), b.integers(5), b.integers(2)), *grid)
    return b.model((1, 4, 6, 8), b.quantized(b.op("Reshape", x, b.integers(1, -1)), *grid))


@integers(QUANTIZE=1, TRANSPOSE_CONV=2, SLICE=1, DEQUANTIZE=2)
def integer_transposed_convolutions(b: Any) -> Any:
    x = b.quantized("input", STEP, 100)
    outputs = []
    for form in ({}, {"pads": [1, 1, 0, 0]}):
        weights, _ = b.weights((4, 6, 2, 2), 8, axis=1)
        outputs.append(end(b, b.op("ConvTranspose", x, weights, strides=[2, 2], **form)))
    return b.model((1, 4, 5, 7), *outputs)


@integers(QUANTIZE=1, CONV_2D=1, DEQUANTIZE=1)
def integer_rows(b: Any) -> Any:
    x = b.quantized("input", STEP, 100)
    weights, _ = b.weights((6, 4, 3), 8)
    return b.model((1, 4, 20), end(b, b.op("Conv", x, weights, pads=[1, 1])))


@integers(QUANTIZE=1, RESIZE_NEAREST_NEIGHBOR=1, GATHER=1, DEQUANTIZE=1)
def integer_places(b: Any) -> Any:
    x, grid = b.quantized("input", STEP, 100), (STEP, 100)
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = b.quantized(b.op("Resize", x, "", scales, mode="nearest", **how), *grid)
    return b.model((1, 4, 5, 7), b.quantized(b.op("Gather", x, b.integers(2, 0), axis=1), *grid))


@integers(QUANTIZE=4, CONCATENATION=1, DEQUANTIZE=1)
def concatenation_of_other_grids(b: Any) -> Any:
    x, y = b.quantized("input", 0.02, 100), b.quantized("input", 0.05, 128)
    return b.model((1, 4, 6, 8), end(b, b.op("Concat", x, y, axis=1)))


@integers(QUANTIZE=2, DEQUANTIZE=1)
def requantization(b: Any) -> Any:
    return b.model((1, 4, 6, 8), end(b, b.quantized("input", 0.02, 128)))


@integers(QUANTIZE=2, DEQUANTIZE=2, LOGISTIC=1)
def float_island(b: Any) -> Any:
    """LiteRT's integer sigmoid has a grid of its own, so this one runs in float."""
    return b.model((1, 4, 6, 8), end(b, b.op("Sigmoid", b.quantized("input", STEP, 128))))


@integers(QUANTIZE=2, MAXIMUM=1, MINIMUM=1, DEQUANTIZE=2)
def bounds_without_zero(b: Any) -> Any:
    x = b.op("Clip", b.quantized("input", 0.02, 128), b.number(0.5), b.number(1.5))
    return b.model((1, 4, 6, 8), end(b, x))


@pytest.mark.parametrize(("network", "operators"), INTEGER, ids=[n.__name__ for n, _ in INTEGER])
def test_quantized_operators_run_on_integers(
    network: Network, operators: dict[str, int], builder: Any, agrees: Any
) -> None:
    found = agrees(network(builder), STEP).operators()
    del found["RESHAPE"], found["TRANSPOSE"]
    assert found == operators


def test_last_layer_without_quantization_runs_in_float(builder: Any, agrees: Any) -> None:
    b, step = builder, 0.004
    x = b.quantized("input", STEP, 100)
    x = b.quantized(b.op("Relu", b.conv(x, (16, 4, 3, 3), 8, STEP)), 0.02)
    x = b.quantized(b.op("GlobalAveragePool", x), step)
    x = b.quantized(b.op("Flatten", x), step)
    model = b.model((1, 4, 9, 8), b.layer("Gemm", x, (5, 16), 8, step, transB=1))
    converted = agrees(model, step, share=1.0)
    assert converted.types("MEAN") == ["INT8"]
    assert converted.types("FULLY_CONNECTED") == ["FLOAT32"]


def test_int8_activations_are_taken_as_well(builder: Any, agrees: Any) -> None:
    scale, zero = builder.number(STEP), builder.constant(np.int8(-20))
    x = builder.op("QuantizeLinear", "input", scale, zero)
    x = builder.op("DequantizeLinear", x, scale, zero)
    x = builder.conv(x, (6, 4, 3, 3), 8, STEP)
    x = builder.op("QuantizeLinear", x, scale, zero)
    x = builder.op("DequantizeLinear", x, scale, zero)
    converted = agrees(builder.model((1, 4, 9, 8), x), STEP)
    assert converted.types("CONV_2D") == ["INT8"]


def test_weights_with_a_zero_point_run_in_float(builder: Any, agrees: Any) -> None:
    stored = builder.constant(np.arange(-4, 4, dtype=np.int8).reshape(2, 4, 1, 1))
    weights = builder.op(
        "DequantizeLinear", stored, builder.number(0.1371), builder.constant(np.int8(3))
    )
    x = builder.op("Conv", builder.quantized("input", STEP, 100), weights)
    converted = agrees(builder.model((1, 4, 5, 5), end(builder, x)), STEP)
    assert converted.types("CONV_2D") == ["FLOAT32"]


def test_quantized_tensor_that_is_read_as_float_too(builder: Any, agrees: Any) -> None:
    x = builder.conv(builder.quantized("input", STEP, 100), (4, 4, 1, 1), 8, STEP)
    quantized = builder.quantized(x, STEP, 100)
    agrees(builder.model((1, 4, 5, 5), builder.op("Sigmoid", x), quantized), STEP)


def test_interface_is_that_of_the_file(builder: Any, convert: Any) -> None:
    output = builder.conv(builder.quantized("input", STEP, 100), (6, 4, 3, 3), 8, STEP)
    converted = convert(builder.model((1, 4, 9, 8), output))
    session = get_runtime("litert").load(converted.path, 1)
    assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [
        ("input", (1, 4, 9, 8), "float32")
    ]
    assert [(s.name, s.shape, s.dtype) for s in session.outputs] == [
        (output, (1, 6, 7, 6), "float32")
    ]


def quantized(b: Any) -> str:
    result: str = b.op("QuantizeLinear", "input", b.number(0.1))
    return result


REFUSED: dict[str, tuple[Network, str]] = {
    "operator": (lambda b: b.op("Erf", "input"), "operator Erf .node 'erf1'. has none: there is"),
    "dimensions": (
        lambda b: b.op("Conv", b.op("Unsqueeze", "input", b.integers(2)), b.floats(2, 5, 1, 1, 1)),
        "operator Conv .* it convolves 3 dimensions, not 1 or 2",
    ),
    "weights": (
        lambda b: b.op("Conv", "input", b.op("Reshape", "input", b.integers(5, 4, 1, 6))),
        "operator Conv .* its weights are not constant",
    ),
    "groups": (
        lambda b: b.op("ConvTranspose", "input", b.floats(5, 1, 2, 2), group=5),
        "operator ConvTranspose .* or has groups",
    ),
    "cubic": (
        lambda b: b.op(
            "Resize", "input", "", b.constant(np.array([1, 1, 2, 2], np.float32)), mode="cubic"
        ),
        "operator Resize .* in another way",
    ),
    "indices": (
        lambda b: b.op("Gather", "input", b.op("Cast", "input", to=onnx.TensorProto.INT64)),
        "operator Gather .* its indices are not constant",
    ),
    "softmax": (lambda b: b.op("Softmax", "input", axis=2), "it works on dimension 2"),
    "pad": (
        lambda b: b.op("Pad", "input", b.integers(0, 0, 1, 0, 0, 0, 1, 0), b.number(1.0)),
        "operator Pad .* it pads with something other than 0",
    ),
    "slice": (
        lambda b: b.op("Slice", "input", *(b.integers(k) for k in (0, 4, 2, 2))),
        "operator Slice .* its steps are not 1",
    ),
    "quantization": (
        lambda b: b.op("Relu", b.op("DequantizeLinear", quantized(b), b.number(0.2))),
        "operator DequantizeLinear .* it does not undo a QuantizeLinear node",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name: str, builder: Any, tmp_path: Path) -> None:
    network, message = REFUSED[name]
    path = tmp_path / "model.onnx"
    onnx.save(builder.model((1, 5, 4, 6), network(builder)), path)
    with pytest.raises(EvaluationError, match=message) as info:
        convert_onnx(path, tmp_path / "model.tflite")
    assert info.value.reason == "build"
    assert not (tmp_path / "model.tflite").exists()


def test_other_types_are_named(builder: Any, tmp_path: Path) -> None:
    model = builder.model((1, 4, 5, 5), builder.op("Relu", "input"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(EvaluationError, match=re.escape("'input' of input 'input' is float64")):
        convert_onnx(path, tmp_path / "model.tflite")


def test_folder_that_cannot_be_written_is_named(builder: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(builder.model((1, 4, 5, 5), builder.op("Relu", "input")), path)
    with pytest.raises(EvaluationError, match=r"nowhere.*could not be written: No such file"):
        convert_onnx(path, tmp_path / "nowhere" / "model.tflite")
