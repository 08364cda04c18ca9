import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.litert.tails import UNBOUNDED, cut, find_tail, live_nodes
from paredown.evaluators.onnx_graph.graph import Graph
from paredown.evaluators.onnx_graph.quantizers import Quantizer

numbers = st.floats(-5, 5)


def ordered(pair: tuple[float, float]) -> tuple[float, float]:
    return min(pair), max(pair)


@given(st.tuples(numbers, numbers).map(ordered), st.tuples(numbers, numbers).map(ordered), numbers)
def test_bounds_join_as_cutting_twice(
    first: tuple[float, float], second: tuple[float, float], value: float
) -> None:
    assert np.clip(value, *cut(first, second)) == np.clip(np.clip(value, *first), *second)


def test_tail_goes_on_to_the_quantization(builder: Any) -> None:
    x = builder.op("Relu", builder.float_conv("input", (4, 2, 1, 1)))
    graph = Graph(builder.model((1, 2, 4, 4), builder.quantized(x, 0.5, 3, bits=7)))
    tail = find_tail(graph, graph.nodes[0])
    assert tail.bounds == (0.0, 62.0)
    assert tail.quantizer == Quantizer(0.5, 3)
    assert [node.op for node in tail.nodes] == ["Relu", "Clip", "QuantizeLinear"]
    assert tail.result == tail.nodes[-1].output


def test_tail_ends_where_another_node_reads(builder: Any) -> None:
    x = builder.float_conv("input", (4, 2, 1, 1))
    outputs = [builder.op("Relu", x), builder.op("Sigmoid", x)]
    graph = Graph(builder.model((1, 2, 4, 4), *outputs))
    tail = find_tail(graph, graph.nodes[0])
    assert (tail.result, tail.bounds, tail.nodes) == (x, UNBOUNDED, ())


@pytest.mark.parametrize(("shape", "is_bias"), [((6,), True), ((1, 6), True), ((4, 6), False)])
def test_bias_is_a_vector_over_the_last_dimension(
    shape: tuple[int, ...], is_bias: bool, builder: Any
) -> None:
    x = builder.op("MatMul", "input", builder.floats(5, 6))
    graph = Graph(builder.model((4, 5), builder.op("Add", builder.floats(*shape), x)))
    assert (find_tail(graph, graph.nodes[0]).bias is not None) is is_bias


def test_written_out_activation_stands_as_one_node(builder: Any) -> None:
    x = builder.op("Sqrt", "input")
    gate = builder.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    graph = Graph(builder.model((4, 5), builder.op("Mul", x, gate)))
    assert [(node.op, node.inputs) for node in live_nodes(graph)] == [
        ("Sqrt", ("input",)),
        ("HardSwish", (x,)),
    ]


def test_what_no_output_needs_is_left_out(builder: Any) -> None:
    builder.op("Exp", "input")
    graph = Graph(builder.model((4, 5), builder.op("Sqrt", "input")))
    assert [node.op for node in live_nodes(graph)] == ["Sqrt"]


def test_no_bounds_are_infinite() -> None:
    assert cut(UNBOUNDED, (0.0, math.inf)) == (0.0, math.inf)
