"""Operators that move numbers: the library means what the file says, and own kernels do it."""

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


def split(b: Any, data: str, n_parts: int, **attributes: Any) -> list[str]:
    """A Split node's outputs; the builder's `op` has one output."""
    from onnx import helper

    outputs = [b.name("part") for _ in range(n_parts)]
    b.nodes.append(helper.make_node("Split", [data], outputs, num_outputs=n_parts, **attributes))
    return outputs


def shuffled(b: Any, data: str, groups: int, shape: tuple[int, ...]) -> str:
    n, c, h, w = shape
    x = b.op("Reshape", data, b.integers(n, groups, c // groups, h, w))
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    moved: str = b.op("Reshape", x, b.integers(n, c, h, w))
    return moved


@case
def shuffle_and_split(b: Any) -> Any:
    x = b.float_conv("input", (24, 3, 1, 1))
    parts = split(b, shuffled(b, x, 2, (2, 24, 6, 7)), 2, axis=1)
    y = b.op("Concat", parts[0], b.float_conv(parts[1], (12, 12, 3, 3), pads=[1] * 4), axis=1)
    return b.model((2, 3, 6, 7), b.float_conv(shuffled(b, y, 3, (2, 24, 6, 7)), (8, 24, 1, 1)), y)


@case
def shuffle_of_many_groups(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (30, 3, 1, 1)))
    return b.model((1, 3, 4, 5), b.float_conv(shuffled(b, x, 5, (1, 30, 4, 5)), (8, 30, 1, 1)))


@case
def shuffle_quantized(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (24, 3, 1, 1), 6, STEP), STEP, 100)
    y = b.quantized(shuffled(b, x, 2, (1, 24, 6, 7)), STEP, 100)
    z = b.quantized(shuffled(b, b.op("Relu", x), 4, (1, 24, 6, 7)), 2 * STEP, 9)
    return b.model(
        (1, 3, 6, 7),
        b.conv(y, (8, 24, 3, 3), 6, STEP, pads=[1] * 4),
        b.conv(z, (8, 24, 1, 1), 6, 2 * STEP),
    )


@case
def crops_and_steps(b: Any) -> Any:
    x = b.float_conv("input", (13, 3, 3, 3))
    i = b.integers
    y = b.op("Slice", x, i(1, 2), i(9, 5), i(2, 3))
    z = b.op("Slice", x, i(0, 5), i(13, 1000), i(1, 2), i(3, 2))
    back = b.op("Slice", x, i(-1, -1), i(-9, -100), i(2, 3), i(-2, -1))
    return b.model((2, 3, 12, 9), b.float_conv(y, (8, 13, 1, 1)), z, b.op("Relu", back))


@case
def focus(b: Any) -> Any:
    i = b.integers
    parts = [
        b.op("Slice", "input", i(y, x), i(99, 99), i(2, 3), i(2, 2))
        for x in (0, 1)
        for y in (0, 1)
    ]
    return b.model((1, 3, 8, 10), b.float_conv(b.op("Concat", *parts, axis=1), (16, 12, 3, 3)))


@case
def pads(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (10, 3, 1, 1)))
    i = b.integers
    outputs = [
        b.op("Pad", x, i(0, 0, 1, 2, 0, 0, 3, 4)),
        b.op("Pad", x, i(0, 0, 1, 2, 0, 0, 3, 1), mode="reflect"),
        b.op("Pad", x, i(0, 0, 1, 0, 0, 0, 0, 1), mode="edge"),
        b.op("Pad", x, i(0, 3, 0, 0, 0, 5, 0, 0), b.number(-1.5)),
        b.op("Pad", x, i(1, 2), b.number(0.5), i(3)),
        b.op("Pad", x, i(0, 0, -1, 1, 0, 0, 1, -2), b.number(0.25)),
        b.op("Pad", b.op("Pad", x, i(1, 1), b.number(2), i(2)), i(1, 1), b.number(3), i(3)),
    ]
    ends = [b.op("Sigmoid", outputs[3]), b.float_conv(outputs[1], (8, 10, 3, 3), pads=[1] * 4)]
    return b.model((1, 3, 5, 6), *outputs, *ends)


@case
def pads_quantized(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (12, 3, 1, 1), 6, STEP), STEP, 100)
    i = b.integers
    y = b.quantized(b.op("Pad", x, i(0, 2, 1, 1, 0, 2, 1, 1)), STEP, 100)
    z = b.quantized(b.op("Pad", b.op("Relu", x), i(1, 1), b.number(0.5), i(2)), 2 * STEP, 20)
    r = b.quantized(b.op("Pad", x, i(0, 0, 2, 2, 0, 0, 2, 2), mode="reflect"), STEP, 100)
    return b.model(
        (1, 3, 5, 6),
        b.conv(y, (8, 16, 3, 3), 6, STEP),
        b.conv(z, (8, 12, 3, 3), 6, 2 * STEP),
        b.conv(r, (8, 12, 3, 3), 6, STEP),
    )


@case
def option_a_shortcut(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (8, 3, 3, 3), pads=[1] * 4))
    i = b.integers
    short = b.op("Slice", x, i(0, 0), i(99, 99), i(2, 3), i(2, 2))
    short = b.op("Pad", short, i(0, 4, 0, 0, 0, 4, 0, 0))
    y = b.float_conv(x, (16, 8, 3, 3), pads=[1] * 4, strides=[2, 2])
    return b.model((1, 3, 8, 8), b.op("Relu", b.op("Add", y, short)))


@case
def pixel_shuffles(b: Any) -> Any:
    x = b.float_conv("input", (36, 3, 3, 3))
    return b.model(
        (1, 3, 6, 7),
        b.op("DepthToSpace", x, blocksize=2, mode="CRD"),
        b.op("DepthToSpace", x, blocksize=3, mode="DCR"),
        b.op("SpaceToDepth", b.float_conv("input", (5, 3, 1, 1)), blocksize=1),
        b.op("SpaceToDepth", b.float_conv("input", (5, 3, 3, 2)), blocksize=2),
    )


@case
def flattened(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (10, 3, 1, 1), 6, STEP), STEP, 100)
    y = b.quantized(b.op("Flatten", x), STEP, 100)
    z = b.op("Flatten", b.op("Relu", b.float_conv("input", (5, 3, 3, 3))))
    return b.model(
        (2, 3, 5, 4),
        b.layer("Gemm", y, (5, 200), 6, STEP, transB=1),
        b.layer("Gemm", z, (6, 30), 32, STEP, transB=1),
    )


@case
def rows_and_columns_swapped(b: Any) -> Any:
    x = b.op("Transpose", b.float_conv("input", (9, 3, 1, 1)), perm=[0, 1, 3, 2])
    return b.model(
        (2, 3, 5, 4), b.float_conv(x, (8, 9, 3, 1)), b.op("Transpose", x, perm=[0, 2, 3, 1])
    )


@case
def repeated(b: Any) -> Any:
    x = b.op("GlobalAveragePool", b.op("Relu", b.float_conv("input", (9, 3, 3, 3))))
    y = b.op("Expand", x, b.integers(1, 9, 4, 5))
    z = b.op("Tile", b.float_conv("input", (9, 3, 1, 1)), b.integers(1, 2, 1, 3))
    g = b.op("Gather", x, b.integers(4, 2, -1), axis=1)
    return b.model((1, 3, 6, 5), b.float_conv(y, (8, 9, 3, 3)), z, b.float_conv(g, (8, 3, 1, 1)))


def quantized_pair(b: Any) -> tuple[str, str]:
    x = b.conv(b.quantized("input", STEP, 100), (12, 3, 1, 1), 6, STEP)
    return b.op("Relu", b.float_conv("input", (12, 3, 1, 1))), b.quantized(x, STEP, 100)


@case
def resized(b: Any) -> Any:
    outputs = []
    for x in quantized_pair(b):
        for form in (
            dict(mode="nearest"),
            dict(mode="linear"),
            dict(mode="linear", coordinate_transformation_mode="align_corners"),
            dict(mode="cubic", coordinate_transformation_mode="pytorch_half_pixel"),
        ):
            scales = b.constant(np.array([1, 1, 2, 3], np.float32))
            y = b.op("Resize", x, "", scales, **form)
            outputs.append(b.conv(b.quantized(y, 0.0217, 90), (8, 12, 3, 3), 6, 0.0217))
            y = b.op("Resize", x, "", "", b.integers(4, 9), axes=[2, 3], **form)
            outputs.append(b.op("Sigmoid", y))
    return b.model((2, 3, 5, 6), *outputs)


@case
def squeeze_and_excitation_of_linear_layers(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (9, 3, 3, 3)))
    s = b.op("ReduceMean", x, b.integers(2, 3), keepdims=0)
    s = b.op("Sigmoid", b.layer("Gemm", s, (9, 9), 32, 0.0, transB=1))
    y = b.op("Mul", x, b.op("Reshape", s, b.integers(2, 9, 1, 1)))
    return b.model((2, 3, 6, 5), b.float_conv(y, (8, 9, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
