"""Parts of networks with their channels last: the library means what the file says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paredown.evaluators.onnx_graph.graph import Graph
from paredown.evaluators.tvm.flattening import flatten_pixels

STEP = 0.03
Network = Callable[[Any], Any]
CASES: list[Network] = []


def case(network: Network) -> Network:
    CASES.append(network)
    return network


def block(b: Any, x: str, channels: int) -> str:
    """A block of ConvNeXt."""
    y = b.float_conv(x, (channels, 1, 3, 3), pads=[1] * 4, group=channels)
    y = b.op("Transpose", y, perm=[0, 2, 3, 1])
    y = b.op("LayerNormalization", y, b.floats(channels), b.floats(channels), axis=3)
    y = b.op("Add", b.op("MatMul", y, b.floats(channels, 40)), b.floats(40))
    y = b.op("Add", b.floats(channels), b.op("MatMul", b.op("Gelu", y), b.floats(40, channels)))
    y = b.op("Mul", y, b.floats(1, 1, 1, channels))
    y = b.op("Transpose", y, perm=[0, 3, 1, 2])
    joined: str = b.op("Add", x, y)
    return joined


@case
def convnext(b: Any) -> Any:
    x = b.float_conv("input", (16, 3, 2, 2), strides=[2, 2])
    x = block(b, block(b, x, 16), 16)
    return b.model((2, 3, 12, 10), x, b.float_conv(x, (8, 16, 3, 3)))


@case
def odd_channels(b: Any) -> Any:
    return b.model((1, 3, 6, 5), block(b, b.float_conv("input", (13, 3, 1, 1)), 13))


@case
def ends_of_all_kinds(b: Any) -> Any:
    """Channels last from the start, residual sums in that form, other readers of the parts."""
    x = b.op("MatMul", "input", b.floats(12, 16))
    y = b.op("Add", x, b.op("Relu", b.op("MatMul", b.op("Sigmoid", x), b.floats(16, 16))))
    z = b.op("Reshape", y, b.integers(2, 20, 16))
    planes = b.float_conv(b.op("Transpose", y, perm=[0, 3, 1, 2]), (8, 16, 3, 3))
    other = b.op("Transpose", y, perm=[0, 3, 2, 1])
    return b.model((2, 5, 4, 12), y, z, planes, other, b.op("ReduceMean", y, b.integers(1, 2)))


@case
def quantized(b: Any) -> Any:
    x = b.quantized(b.float_conv("input", (16, 3, 1, 1)), STEP, 100)
    x = b.quantized(b.op("Transpose", x, perm=[0, 2, 3, 1]), STEP, 100)
    for width in (24, 16):
        weights, _ = b.weights((width, 40 - width), 6)
        x = b.op("MatMul", x, b.op("Transpose", weights, perm=[1, 0]))
        x = b.quantized(b.op("Add", x, b.floats(width)), STEP, 100)
    return b.model((1, 3, 6, 5), b.op("Transpose", x, perm=[0, 3, 1, 2]), x)


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))


def test_a_block_has_no_tensor_of_four_dimensions(builder: Any) -> None:
    graph = Graph(block_model(builder), flatten_pixels)
    inside = [n for n in graph if n.op in ("MatMul", "LayerNormalization", "Gelu", "Mul")]
    assert len(inside) == 5
    assert {len(graph.shape(node.output)) for node in inside} == {3}
    assert [n.op for n in graph if n.op == "Transpose"] == ["Transpose"] * 2


def block_model(b: Any) -> Any:
    return b.model((1, 16, 4, 4), block(b, "input", 16))


def test_other_products_stay_as_they_are(builder: Any) -> None:
    """Four dimensions without a linear layer over the last one, and layers of three."""
    b = builder
    scores = b.op("MatMul", "input", b.op("Transpose", "input", perm=[0, 1, 3, 2]))
    rows = b.op("MatMul", b.op("Reshape", "input", b.integers(3, 4, 5)), b.floats(5, 7))
    model = b.model((1, 3, 4, 5), b.op("Softmax", scores), b.op("Relu", rows))
    before = model.SerializeToString()
    flatten_pixels(model)
    assert model.SerializeToString() == before
