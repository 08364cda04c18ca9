"""Pooling, concatenation and changes of shape: the library means what the file says."""

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


@case
def maxpool_ceil(b: Any) -> Any:
    x = b.quantized("input", STEP, 100)
    x = b.quantized(b.conv(x, (8, 4, 1, 1), 6, STEP), STEP, 100)
    return b.model(
        (1, 4, 8, 9),
        b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 0]),
        b.op("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    )


@case
def maxpool_dilated(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 1, 1))
    return b.model(
        (1, 4, 8, 9), b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], dilations=[2, 1])
    )


@case
def maxpool_same(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 1, 1))
    return b.model(
        (1, 4, 8, 9),
        b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        b.op("MaxPool", x, kernel_shape=[2, 4], strides=[1, 3], auto_pad="SAME_LOWER"),
    )


@case
def maxpool_input(b: Any) -> Any:
    return b.model((1, 3, 8, 9), b.op("MaxPool", "input", kernel_shape=[3, 3], strides=[2, 2]))


@case
def maxpool_before_conv(b: Any) -> Any:
    x = b.op("MaxPool", b.quantized("input", STEP, 100), kernel_shape=[2, 2], strides=[2, 2])
    x = b.quantized(x, STEP, 100)
    return b.model((1, 3, 8, 9), b.conv(x, (8, 3, 3, 3), 6, STEP, pads=[1] * 4))


@case
def averagepool(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 1, 1))
    o = []
    forms: list[dict[str, Any]] = [
        dict(count_include_pad=1, pads=[1] * 4),
        dict(pads=[1] * 4),
        dict(ceil_mode=1),
        dict(ceil_mode=1, count_include_pad=1, pads=[1, 0, 1, 1]),
        dict(auto_pad="SAME_LOWER", count_include_pad=1),
        dict(dilations=[1, 2]),
    ]
    for kw in forms:
        o.append(b.op("AveragePool", x, kernel_shape=[3, 2], strides=[2, 2], **kw))
    return b.model((1, 4, 8, 9), *o)


@case
def averagepool_q(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 4, 1, 1), 6, STEP), STEP, 100)
    window = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1] * 4}
    counted = b.op("AveragePool", x, **window, count_include_pad=1)
    outputs = (counted, b.op("AveragePool", x, **window))
    return b.model((1, 4, 8, 9), *(b.quantized(name, 0.0217, 90) for name in outputs))


@case
def windows_that_begin_outside(b: Any) -> Any:
    o = []
    for x in ("input", b.op("Relu", b.float_conv("input", (8, 4, 1, 1)))):
        for op in ("MaxPool", "AveragePool"):
            forms: list[dict[str, Any]] = [
                dict(kernel_shape=[1, 1], strides=[3, 3]),
                dict(kernel_shape=[2, 3], strides=[3, 2], pads=[1, 1, 1, 1]),
            ]
            o += [b.op(op, x, ceil_mode=1, **form) for form in forms]
    return b.model((1, 4, 5, 6), *o, b.float_conv(o[-1], (8, 8, 1, 1)))


@case
def global_pool_border(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 4, 1, 1), 6, STEP), STEP, 100)
    return b.model(
        (2, 4, 8, 9),
        b.op("GlobalAveragePool", x),
        b.op("GlobalMaxPool", x),
        b.conv(x, (8, 8, 5, 5), 6, STEP, pads=[2] * 4),
    )


@case
def concat_input(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 100), (9, 3, 1, 1), 6, STEP)
    c = b.quantized(b.op("Concat", "input", x, axis=1), STEP, 100)
    return b.model((2, 3, 5, 6), b.conv(c, (8, 12, 3, 3), 6, STEP))


@case
def concat_float_tail(b: Any) -> Any:
    x = b.op(
        "Concat",
        b.float_conv("input", (9, 3, 1, 1)),
        "input",
        b.float_conv("input", (5, 3, 3, 3), pads=[1] * 4),
        axis=1,
    )
    return b.model((2, 3, 5, 6), b.float_conv(b.op("Relu", x), (8, 17, 3, 3), pads=[1] * 4))


@case
def concat_other_axis(b: Any) -> Any:
    x = b.float_conv("input", (9, 3, 1, 1))
    return b.model((1, 3, 5, 6), b.op("Concat", x, x, axis=2), b.op("Concat", x, x, axis=-3))


@case
def concat_many(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 1, 1))
    return b.model((1, 3, 5, 6), b.op("Concat", *[x] * 11, axis=1))


@case
def q_after_reshape(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 3, 1, 1), 6, STEP), STEP, 100)
    x = b.quantized(b.op("Reshape", x, b.integers(1, -1)), STEP, 100)
    return b.model((1, 3, 3, 4), b.layer("Gemm", x, (5, 96), 6, STEP, transB=1))


@case
def reshape_pixel(b: Any) -> Any:
    x = b.quantized(b.op("GlobalAveragePool", b.quantized("input", STEP, 100)), 0.0113, 100)
    x = b.quantized(b.op("Squeeze", x, b.integers(2, 3)), 0.0113, 100)
    return b.model((2, 8, 3, 4), b.layer("Gemm", x, (5, 8), 6, 0.0113, transB=1))


@case
def requantize(b: Any) -> Any:
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(x, 0.0313, 90)
    return b.model((1, 3, 6, 7), b.conv(x, (8, 3, 3, 3), 6, 0.0313, pads=[1] * 4), x)


@case
def other_dequantizer(b: Any) -> Any:
    q = b.op("QuantizeLinear", "input", b.number(0.02), b.constant(np.uint8(128)))
    x = b.op("DequantizeLinear", q, b.number(0.03), b.constant(np.uint8(100)))
    return b.model((1, 3, 6, 7), b.conv(x, (8, 3, 3, 3), 6, 0.03, pads=[1] * 4))


@case
def means_over_tokens(b: Any) -> Any:
    x = b.op("MatMul", "input", b.floats(12, 16))
    y = b.op("ReduceMean", x, b.integers(1), keepdims=0)
    z = b.quantized(b.op("ReduceMean", b.quantized(x, STEP, 100), b.integers(-2)), 0.01, 100)
    return b.model((3, 5, 12), b.op("Relu", y), b.op("MatMul", z, b.floats(16, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
