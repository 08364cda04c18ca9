"""Constants along the channels: the library means what the file says."""

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


def batch_norm(b: Any, data: str, channels: int) -> str:
    variance = b.constant(b.rng.uniform(0.5, 1.5, channels).astype(np.float32))
    mean, scale, bias = (b.floats(channels) for _ in range(3))
    normed: str = b.op("BatchNormalization", data, scale, bias, mean, variance, epsilon=1e-3)
    return normed


@case
def normalized_input(b: Any) -> Any:
    x = b.op("Div", b.op("Sub", "input", b.floats(3, 1, 1)), b.floats(1, 3, 1, 1))
    x = b.op("Add", b.op("Mul", b.float_conv(x, (9, 3, 3, 3)), b.number(0.5)), b.number(1))
    return b.model((2, 3, 6, 7), x, b.op("Sub", b.number(1), b.op("Relu", x)))


@case
def densely_connected(b: Any) -> Any:
    features = [b.float_conv("input", (12, 3, 3, 3), pads=[1] * 4)]
    for _ in range(9):
        x = features[0] if len(features) == 1 else b.op("Concat", *features, axis=1)
        channels = 12 + 5 * (len(features) - 1)
        x = b.op("Relu", batch_norm(b, x, channels))
        features.append(b.float_conv(x, (5, channels, 3, 3), pads=[1] * 4))
    x = b.op("Concat", *features, axis=1)
    return b.model(
        (1, 3, 6, 7), b.op("Sigmoid", batch_norm(b, x, 57)), b.op("Concat", x, x, axis=1)
    )


@case
def quantized_scales(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (12, 3, 1, 1), 6, STEP), STEP, 100)
    y = b.quantized(b.op("Relu", batch_norm(b, x, 12)), STEP)
    z = b.quantized(b.op("PRelu", x, b.floats(12, 1, 1)), STEP, 100)
    outputs = (b.conv(name, (8, 12, 3, 3), 6, STEP, pads=[1] * 4) for name in (y, z))
    return b.model((2, 3, 6, 7), *outputs)


@case
def slopes(b: Any) -> Any:
    x = b.op("PRelu", b.float_conv("input", (12, 3, 3, 3)), b.floats(12, 1, 1))
    x = b.op("PRelu", b.float_conv(x, (5, 12, 1, 1)), b.floats(1, 5, 1, 1))
    return b.model((2, 3, 6, 7), b.op("Tanh", x), b.op("PRelu", x, b.floats(4, 5)))


@case
def rows(b: Any) -> Any:
    x = b.op("MatMul", "input", b.floats(12, 20))
    x = b.op("Relu", b.op("Add", b.op("Mul", x, b.floats(20)), b.floats(1, 20)))
    return b.model((2, 5, 12), b.op("Div", b.op("MatMul", x, b.floats(20, 9)), b.floats(5, 1)))


@case
def constants_of_other_axes(b: Any) -> Any:
    x = b.float_conv("input", (7, 3, 1, 1))
    return b.model(
        (1, 3, 6, 7),
        b.op("Mul", x, b.floats(7)),
        b.op("Add", x, b.floats(6, 1)),
        b.op("Sub", x, b.floats(7, 6, 7)),
        b.op("Mul", b.op("ReduceMean", x, b.integers(2, 3)), b.floats(1, 7, 6, 1)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
