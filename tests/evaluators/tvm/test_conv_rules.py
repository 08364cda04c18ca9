"""Layers in awkward forms: the library means what the file says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

STEP = 0.03
Network = Callable[[Any], Any]
CASES: list[Network] = []


def case(network: Network) -> Network:
    CASES.append(network)
    return network


def matmul(
    b: Any, data: str, shape: tuple[int, int], bits: int, step: float, *, has_float_bias: bool
) -> str:
    """MatMul and Add, as exporters write linear layers."""
    weights, scale = b.weights(shape, bits, axis=1)
    product: str = b.op("MatMul", data, weights)
    if has_float_bias:
        added: str = b.op("Add", b.floats(shape[1]), product)
        return added
    unit = (np.float32(step) * scale).astype(np.float32)
    steps = b.constant(np.rint(b.rng.standard_normal(shape[1]) * 0.1 / unit).astype(np.int32))
    added = b.op("Add", product, b.op("DequantizeLinear", steps, b.constant(unit), axis=0))
    return added


@case
def float_bias(b: Any) -> Any:
    weights, _ = b.weights((8, 4, 3, 3), 3)
    x = b.op("Conv", b.quantized("input", 0.02, 128), weights, b.floats(8))
    depthwise, _ = b.weights((8, 1, 3, 3), 3)
    y = b.op("Conv", b.quantized(x, STEP, 100), depthwise, b.floats(8), group=8)
    return b.model((1, 4, 9, 9), x, y)


@case
def two_paddings(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    return b.model(
        (1, 4, 9, 9),
        b.op(
            "Add",
            b.conv(x, (8, 4, 3, 3), 6, 0.02, pads=[1] * 4),
            b.conv(x, (8, 4, 7, 7), 6, 0.02, pads=[3] * 4),
        ),
    )


@case
def add_itself(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", 0.02, 128), (8, 4, 3, 3), 6, 0.02), STEP, 100)
    return b.model(
        (1, 4, 9, 9),
        b.conv(b.quantized(b.op("Add", x, x), 2 * STEP, 100), (8, 8, 1, 1), 5, 2 * STEP),
    )


@case
def add_itself_float(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    return b.model((1, 4, 9, 9), b.op("Add", x, x))


@case
def add_broadcast_constant(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    x = b.op("Add", x, b.floats(8, 1, 1))
    x = b.op("Add", b.floats(1), x)
    return b.model((1, 4, 9, 9), b.float_conv(b.op("Relu", x), (8, 8, 3, 3)))


@case
def add_broadcast_tensor(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    return b.model((1, 4, 9, 9), b.op("Add", x, b.op("GlobalAveragePool", x)))


@case
def one_by_one_output(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    return b.model((1, 4, 3, 3), b.conv(x, (16, 4, 3, 3), 6, 0.02))


@case
def one_channel(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(b.conv(x, (1, 1, 3, 3), 6, 0.02, pads=[1] * 4), STEP, 128)
    return b.model((2, 1, 5, 6), b.conv(x, (1, 1, 3, 3), 6, STEP))


@case
def one_channel_float(b: Any) -> Any:
    return b.model(
        (2, 1, 5, 6), b.float_conv(b.float_conv("input", (1, 1, 3, 3), pads=[1] * 4), (1, 1, 3, 3))
    )


@case
def one_channel_depthwise(b: Any) -> Any:
    return b.model(
        (2, 8, 5, 6), b.conv(b.quantized("input", 0.02, 128), (8, 1, 3, 3), 6, 0.02, group=8)
    )


@case
def depthwise_few(b: Any) -> Any:
    x = b.quantized(
        b.conv(b.quantized("input", 0.02, 128), (3, 1, 3, 3), 6, 0.02, group=3, pads=[1] * 4),
        STEP,
        120,
    )
    return b.model((1, 3, 5, 6), b.conv(x, (6, 1, 3, 3), 6, STEP, group=3, pads=[1] * 4))


@case
def depthwise_float(b: Any) -> Any:
    x = b.float_conv("input", (3, 1, 3, 3), group=3, pads=[1] * 4)
    return b.model((1, 3, 5, 6), b.float_conv(x, (6, 1, 3, 3), group=3, pads=[1] * 4))


@case
def no_bias(b: Any) -> Any:
    w, _ = b.weights((8, 4, 3, 3), 6)
    x = b.op("Conv", b.quantized("input", 0.02, 128), w)
    return b.model(
        (1, 4, 5, 6),
        b.op("Conv", x, b.floats(8, 8, 1, 1)),
        b.op("Conv", x, b.floats(8, 8, 1, 1), ""),
    )


@case
def residual_same_conv(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 100), (8, 4, 1, 1), 6, STEP)
    a = b.quantized(x, STEP, 100)
    c = b.quantized(b.op("Relu", x), STEP, 0)
    return b.model(
        (1, 4, 6, 5),
        b.conv(b.quantized(b.op("Add", a, c), 2 * STEP, 80), (8, 8, 3, 3), 6, 2 * STEP),
    )


@case
def residual_float_same(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 1, 1))
    return b.model((1, 4, 6, 5), b.op("Add", b.op("Relu", x), x))


@case
def residual_relu6_seven_bits(b: Any) -> Any:
    x = b.quantized(
        b.conv(b.quantized("input", STEP, 100), (8, 4, 3, 3), 6, STEP, pads=[1] * 4),
        STEP,
        64,
        bits=7,
    )
    y = b.quantized(b.conv(x, (8, 8, 3, 3), 6, STEP, pads=[1] * 4), STEP, 64, bits=7)
    z = b.op("Clip", b.op("Add", x, y), b.number(0), b.number(6))
    return b.model(
        (1, 4, 6, 7), b.conv(b.quantized(z, STEP, 0, bits=7), (8, 8, 3, 3), 6, STEP, pads=[1] * 4)
    )


@case
def residual_linear(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    y = b.quantized(b.layer("Gemm", x, (16, 16), 6, 0.02, transB=1), STEP, 100)
    return b.model(
        (5, 16),
        b.layer("Gemm", b.quantized(b.op("Add", x, y), STEP, 110), (4, 16), 6, STEP, transB=1),
    )


@case
def residual_float_other_int(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    y = b.conv(x, (8, 8, 3, 3), 6, 0.02, pads=[1] * 4)
    z = b.float_conv("input", (8, 8, 3, 3), pads=[1] * 4)
    return b.model(
        (1, 8, 5, 5),
        b.op("Relu", b.op("Add", y, z)),
        b.quantized(b.op("Add", b.conv(x, (8, 8, 1, 1), 6, 0.02), x), STEP, 100),
    )


@case
def mlp(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(b.op("Relu", b.layer("Gemm", x, (20, 16), 6, 0.02, transB=1)), STEP)
    x = b.quantized(b.op("Relu", b.layer("Gemm", x, (24, 20), 32, 0.02, transB=1)), STEP)
    return b.model((5, 16), b.layer("Gemm", x, (3, 24), 7, STEP, transB=1))


@case
def matmul_add(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(b.op("Relu", matmul(b, x, (16, 20), 6, 0.02, has_float_bias=False)), STEP)
    return b.model((5, 16), matmul(b, x, (20, 7), 4, STEP, has_float_bias=True))


@case
def matmul_3d(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(b.op("Relu", matmul(b, x, (16, 20), 6, 0.02, has_float_bias=False)), STEP)
    y = matmul(b, x, (20, 20), 4, STEP, has_float_bias=True)
    return b.model((2, 5, 16), b.op("Softmax", b.op("Add", y, x), axis=-1))


@case
def matmul_4d(b: Any) -> Any:
    return b.model((2, 3, 5, 16), b.op("Relu", b.op("MatMul", "input", b.floats(16, 7))))


@case
def matmul_1d(b: Any) -> Any:
    return b.model(
        (16,), b.op("Relu", b.op("Add", b.op("MatMul", "input", b.floats(16, 7)), b.floats(7)))
    )


@case
def matmul_vector(b: Any) -> Any:
    return b.model((3, 16), b.op("MatMul", "input", b.floats(16)))


@case
def matmul_batched(b: Any) -> Any:
    return b.model(
        (2, 3, 16),
        b.op("MatMul", "input", b.floats(2, 16, 5)),
        b.op("MatMul", b.floats(4, 3), "input"),
    )


@case
def gemm_forms(b: Any) -> Any:
    return b.model(
        (5, 16),
        b.op("Gemm", "input", b.floats(16, 5), b.floats(5, 1)),
        b.op("Gemm", "input", b.floats(16, 7), b.floats(5, 7)),
        b.op("Gemm", "input", b.floats(16, 7), b.floats(1)),
        b.op("Gemm", "input", b.floats(16, 7), b.number(0.5)),
        b.op("Gemm", "input", b.floats(16, 7), b.floats(1, 7), alpha=0.5, beta=2.0),
        b.op("Gemm", "input", b.floats(5, 7), transA=1),
        b.op("Gemm", "input", b.floats(16, 7)),
    )


@case
def asymmetric_weights(b: Any) -> Any:
    w = b.op(
        "DequantizeLinear",
        b.constant(b.rng.integers(0, 255, (8, 3, 3, 3)).astype(np.uint8)),
        b.number(0.01),
        b.constant(np.uint8(120)),
    )
    return b.model((1, 3, 6, 7), b.op("Conv", b.quantized("input", 0.02, 128), w))


@case
def blocked_weights(b: Any) -> Any:
    w = b.op(
        "DequantizeLinear",
        b.constant(b.rng.integers(-7, 8, (16, 8)).astype(np.int8)),
        b.constant(b.rng.uniform(0.01, 0.02, (4, 8)).astype(np.float32)),
        axis=0,
        block_size=4,
    )
    return b.model((5, 16), b.op("MatMul", b.quantized("input", 0.02, 128), w))


@case
def wrong_axis_weights(b: Any) -> Any:
    w = b.op(
        "DequantizeLinear",
        b.constant(b.rng.integers(-7, 8, (8, 3, 3, 3)).astype(np.int8)),
        b.constant(b.rng.uniform(0.01, 0.02, 3).astype(np.float32)),
        axis=1,
    )
    return b.model((1, 3, 6, 7), b.op("Conv", b.quantized("input", 0.02, 128), w))


@case
def same_auto_pad(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    return b.model(
        (1, 3, 8, 9),
        b.conv(x, (8, 3, 3, 3), 6, 0.02, auto_pad="SAME_UPPER", strides=[2, 2]),
        b.conv(x, (8, 3, 4, 2), 6, 0.02, auto_pad="SAME_LOWER"),
        b.float_conv("input", (8, 3, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
        b.float_conv("input", (8, 3, 3, 3), auto_pad="VALID"),
    )


@case
def runtime_weights(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 1, 1))
    w = b.op(
        "Reshape",
        b.op("GlobalAveragePool", b.float_conv("input", (16, 3, 1, 1))),
        b.integers(2, 8, 1, 1),
    )
    return b.model((1, 3, 6, 7), b.op("Conv", x, w))


@case
def stem_odd(b: Any) -> Any:
    x = b.quantized("input", 0.02, 120)
    return b.model(
        (1, 3, 225, 223),
        b.op(
            "MaxPool",
            b.op("Relu", b.conv(x, (16, 3, 7, 7), 6, 0.02, strides=[2, 2], pads=[3] * 4)),
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1] * 4,
        ),
    )


@case
def stem_odd_float(b: Any) -> Any:
    return b.model(
        (1, 3, 225, 223), b.float_conv("input", (16, 3, 7, 7), strides=[2, 2], pads=[3] * 4)
    )


@case
def flat_image(b: Any) -> Any:
    x = b.conv(b.quantized("input", 0.02, 120), (8, 3, 1, 1), 6, 0.02)
    return b.model(
        (1, 3, 1, 7), x, b.float_conv("input", (8, 3, 1, 3)), b.op("Add", "input", "input")
    )


@case
def flat_image8(b: Any) -> Any:
    return b.model(
        (1, 9, 1, 7),
        b.conv(b.quantized("input", 0.02, 120), (8, 9, 1, 3), 6, 0.02, pads=[0, 1, 0, 1]),
        b.float_conv("input", (8, 9, 1, 3)),
    )


@case
def batch(b: Any) -> Any:
    x = b.quantized(
        b.op(
            "Relu", b.conv(b.quantized("input", STEP, 100), (12, 4, 3, 3), 6, STEP, pads=[1] * 4)
        ),
        STEP,
    )
    p = b.quantized(b.op("Flatten", b.quantized(b.op("GlobalAveragePool", x), 0.0113)), 0.0113)
    return b.model(
        (3, 4, 6, 5),
        b.layer("Gemm", p, (5, 12), 6, 0.0113, transB=1),
        b.conv(x, (8, 12, 3, 3), 5, STEP, strides=[2, 1]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
