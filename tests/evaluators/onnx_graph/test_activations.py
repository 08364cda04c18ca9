"""Activations are recognised in every form that exporters write, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from paredown.evaluators.onnx_graph.activations import Activation, Found, find_activation
from paredown.evaluators.onnx_graph.graph import Graph


def found(b: Any, output: str, *more: str) -> tuple[Graph, Found | None]:
    graph = Graph(b.model((2, 5, 16), output, *more))
    node = graph.producer(output)
    assert node is not None
    return graph, find_activation(graph, graph.constant, node)


def test_single_operators(builder: Any) -> None:
    b = builder
    wanted = {
        b.op("Sigmoid", "input"): Activation("sigmoid"),
        b.op("HardSigmoid", "input", alpha=0.25): Activation("hard_sigmoid", 0.25, 0.5),
        b.op("HardSwish", "input"): Activation("hard_swish", 1 / 6, 0.5),
        b.op("LeakyRelu", "input", alpha=0.5): Activation("leaky_relu", 0.5),
        b.op("PRelu", "input", b.number(0.25)): Activation("leaky_relu", 0.25),
        b.op("Gelu", "input"): Activation("gelu"),
        b.op("Gelu", "input", approximate="tanh"): Activation("gelu_tanh"),
    }
    for name, activation in wanted.items():
        _, match = found(b, name)
        assert match is not None
        assert (match.activation, match.data) == (activation, "input")


@pytest.mark.parametrize("swap", [False, True])
def test_gate_of_itself(builder: Any, swap: bool) -> None:
    gate = builder.op("Sigmoid", "input")
    graph, match = found(builder, builder.op("Mul", *sorted(("input", gate), reverse=swap)))
    assert match is not None
    assert (match.activation, match.data) == (Activation("silu"), "input")
    assert match.is_only_reader(graph)


def test_gate_that_is_read_elsewhere_is_a_product(builder: Any) -> None:
    gate = builder.op("Sigmoid", "input")
    _, match = found(builder, builder.op("Mul", "input", gate), gate)
    assert match is None


@pytest.mark.parametrize(("divisor", "is_gelu"), [(2**0.5, True), (2.0, False)])
def test_gelu_written_out(builder: Any, divisor: float, is_gelu: bool) -> None:
    b = builder
    error = b.op("Erf", b.op("Div", "input", b.number(divisor)))
    product = b.op("Mul", "input", b.op("Add", error, b.number(1)))
    graph, match = found(b, b.op("Mul", product, b.number(0.5)))
    assert (match is not None) == is_gelu
    if match is not None:
        assert (match.activation, match.data) == (Activation("gelu"), "input")
        assert match.is_only_reader(graph)


def test_slope_per_channel_is_none(builder: Any) -> None:
    _, match = found(builder, builder.op("PRelu", "input", builder.floats(16)))
    assert match is None
