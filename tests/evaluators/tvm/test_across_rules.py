"""Gates, normalization and reductions across pixels or channels: what the file says."""

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


def inputs(b: Any, channels: int) -> tuple[str, str]:
    """A float image of own kernels, and one in steps."""
    x = b.conv(b.quantized("input", STEP, 100), (channels, 3, 1, 1), 6, STEP)
    return b.float_conv("input", (channels, 3, 3, 3), pads=[1] * 4), b.quantized(x, STEP, 100)


@case
def instance_norm(b: Any) -> Any:
    o: list[str] = []
    wide = b.float_conv("input", (16, 3, 3, 3))
    for x in (*inputs(b, 21), wide, "input"):
        channels = {"input": 3, wide: 16}.get(x, 21)
        y = b.op("InstanceNormalization", x, b.floats(channels), b.floats(channels), epsilon=1e-3)
        o.append(b.op("Sigmoid", y))
        o.append(b.float_conv(y, (8, channels, 3, 3), pads=[1] * 4))
    return b.model((2, 3, 9, 7), *o)


@case
def far_from_zero(b: Any) -> Any:
    x = b.op("Add", b.float_conv("input", (8, 3, 1, 1)), b.number(300))
    return b.model((1, 3, 9, 40), b.op("InstanceNormalization", x, b.floats(8), b.floats(8)))


@case
def group_norm_as_exported(b: Any) -> Any:
    o = []
    for x in inputs(b, 20):
        for groups in (1, 5, 20):
            ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
            y = b.op("Reshape", x, b.integers(0, groups, -1))
            y = b.op("InstanceNormalization", y, b.constant(ones), b.constant(zeros))
            y = b.op("Reshape", y, b.integers(2, 20, 6, 7))
            o.append(b.op("Relu", y))
            y = b.op("Add", b.op("Mul", y, b.floats(20, 1, 1)), b.floats(1, 20, 1, 1))
            o.append(b.conv(b.quantized(b.op("Relu", y), STEP), (8, 20, 1, 1), 6, STEP))
    return b.model((2, 3, 6, 7), *o)


@case
def norm_of_other_shapes(b: Any) -> Any:
    x = b.op("Reshape", inputs(b, 8)[0], b.integers(1, 4, -1))
    y = b.op("InstanceNormalization", x, b.floats(4), b.floats(4))
    z = b.op("Reshape", y, b.integers(1, 16, 3, 7))
    return b.model((1, 3, 6, 7), b.op("Relu", z), b.op("Relu", y))


@case
def largest_of_images(b: Any) -> Any:
    o = []
    for x in inputs(b, 19):
        o.append(b.op("GlobalMaxPool", x))
        o.append(b.op("ReduceMax", x, b.integers(3, 2)))
        y = b.op("ReduceMax", x, b.integers(-1, -2), keepdims=0)
        o += [y, b.op("MatMul", y, b.floats(19, 5)), b.op("ReduceMax", x, b.integers(2))]
    return b.model((3, 3, 6, 7), *o)


@case
def spatial_attention(b: Any) -> Any:
    o = []
    for x in inputs(b, 19):
        means = b.op("ReduceMean", x, b.integers(1)), b.op("ReduceMax", x, b.integers(-3))
        gate = b.float_conv(b.op("Concat", *means, axis=1), (1, 2, 3, 3), pads=[1] * 4)
        gate = b.op("Sigmoid", gate)
        o += [*means, b.op("Mul", x, gate)]
        scaled = b.op("Relu", b.op("Mul", b.quantized(gate, 1 / 255), x))
        o.append(b.conv(b.quantized(scaled, STEP), (8, 19, 3, 3), 6, STEP, pads=[1] * 4))
        o.append(b.op("ReduceSum", x, b.integers(1), keepdims=0))
    return b.model((2, 3, 6, 7), *o)


@case
def local_response(b: Any) -> Any:
    o = []
    for x in (*inputs(b, 21), b.op("Relu", inputs(b, 8)[0]), "input"):
        for beta, size in ((0.75, 5), (0.5, 3), (1.0, 1)):
            o.append(b.op("LRN", x, size=size, alpha=0.3, beta=beta, bias=0.7))
        o.append(b.op("MaxPool", o[-3], kernel_shape=[2, 2]))
    o.append(b.op("LRN", b.op("Relu", inputs(b, 9)[1]), size=3, beta=0.6))
    return b.model((2, 3, 5, 4), *o)


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
