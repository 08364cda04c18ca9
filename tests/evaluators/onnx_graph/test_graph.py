"""What compilers see of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_graph.graph import Graph, Node, load_model, pads_of


def model(nodes: list[onnx.NodeProto], shape: Any, output: str = "output", **more: Any) -> Any:
    data = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", [data], [result])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


def pool(**attributes: Any) -> Node:
    proto = helper.make_node("MaxPool", ["x"], ["y"], **attributes)
    values = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    return Node("MaxPool", ("x",), ("y",), values, proto)


@pytest.mark.parametrize(
    ("attributes", "pads"),
    [
        ({}, (0, 0, 0, 0)),
        ({"pads": [1, 2, 3, 4]}, (1, 2, 3, 4)),
        ({"auto_pad": "NOTSET", "pads": [1, 2, 3, 4]}, (1, 2, 3, 4)),
        ({"auto_pad": "VALID"}, (0, 0, 0, 0)),
        ({"auto_pad": "SAME_UPPER"}, (1, 0, 1, 1)),
        ({"auto_pad": "SAME_LOWER"}, (1, 1, 1, 0)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 3]}, (0, 0, 1, 0)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (1, 0, 0, 0)),
        ({"auto_pad": "SAME_UPPER", "dilations": [2, 3]}, (2, 1, 2, 2)),
    ],
)
def test_padding(attributes: dict[str, Any], pads: tuple[int, ...]) -> None:
    assert pads_of(pool(**attributes), 8, 8, (3, 2)) == pads


def test_identity_is_looked_through() -> None:
    nodes = [
        helper.make_node("Identity", ["input"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["output"]),
    ]
    graph = Graph(model(nodes, (2, 3)))
    (relu,) = graph
    assert relu.inputs == ("input",)
    assert graph.outputs == ["c"]
    assert graph.only_user("c") is None  # it leaves the graph
    assert graph.only_user("input") is relu
    assert graph.producer("b") is None
    assert graph.shape("c") == (2, 3)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value": helper.make_tensor("t", TensorProto.DOUBLE, [1], [0.1])}, np.array([0.1])),
    ],
)
def test_constant_nodes(attribute: dict[str, Any], expected: Any) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], **attribute),
        helper.make_node("Relu", ["input"], ["output"]),
    ]
    graph = Graph(model(nodes, (2,)))
    value = graph.constant("c")
    assert value is not None
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)


def test_what_follows_from_shapes_is_constant() -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"], start=1),
        helper.make_node("Constant", [], ["minus"], value_ints=[-1]),
        helper.make_node("Concat", ["minus", "s"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["output"]),
    ]
    graph = Graph(model(nodes, (2, 3, 4)))
    assert [node.op for node in graph] == ["Relu", "Reshape"]
    target = graph.constant("target")
    assert target is not None
    assert target.tolist() == [-1, 3, 4]


def test_dequantized_constants_stay_nodes(builder: Any) -> None:
    weights, _ = builder.weights((4, 3), 6)
    graph = Graph(builder.model((2, 3), builder.op("Gemm", "input", weights, transB=1)))
    assert [node.op for node in graph] == ["DequantizeLinear", "Gemm"]


def test_random_numbers_are_no_constants(builder: Any) -> None:
    model = builder.model((2,), builder.op("Add", "input", builder.op("RandomNormal", shape=[2])))
    with pytest.raises(EvaluationError, match=r"Operator RandomNormal \(node 'randomnormal1'\)"):
        Graph(model)


def test_split_becomes_slices(builder: Any) -> None:
    builder.nodes.append(helper.make_node("Split", ["input"], ["a", "b"], axis=-1, num_outputs=2))
    graph = Graph(builder.model((2, 3), "b", builder.op("Relu", "a")))
    assert [node.op for node in graph] == ["Slice", "Slice", "Relu"]
    assert [graph.constant(name) for name in graph.nodes[1].inputs[1:]] == [[2], [3], [-1]]


def test_dropout_is_looked_through(builder: Any) -> None:
    graph = Graph(builder.model((2, 3), builder.op("Relu", builder.op("Dropout", "input"))))
    assert [(node.op, node.inputs) for node in graph] == [("Relu", ("input",))]


def test_local_functions_are_unfolded() -> None:
    opsets = [helper.make_opsetid("", 21)]
    twice = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], opsets
    )
    node = helper.make_node("Twice", ["input"], ["output"], domain="own")
    graph = Graph(model([node], (2,), functions=[twice]))
    assert [node.op for node in graph] == ["Add"]


@pytest.mark.parametrize("shape", [("batch", 3), (None, 3), None])
def test_unknown_shape_is_an_error(shape: Any) -> None:
    proto = model([helper.make_node("Relu", ["input"], ["output"])], shape)
    with pytest.raises(EvaluationError, match=r"Operator Relu .* but that of tensor 'input'"):
        Graph(proto)


def test_unknown_type_is_an_error() -> None:
    proto = model([helper.make_node("Thing", ["input"], ["output"], domain="own")], (2,))
    proto.graph.output[0].type.Clear()
    with pytest.raises(EvaluationError, match=r"Operator own\.Thing \(node 'output'\)"):
        Graph(proto)


def test_invalid_model_is_an_error() -> None:
    nodes = [helper.make_node("MatMul", ["input", "input"], ["output"])]
    with pytest.raises(EvaluationError, match="The ONNX model is invalid"):
        Graph(model(nodes, (2, 3)))


def test_missing_file_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(EvaluationError, match=r"'.*none\.onnx' is not a readable ONNX file"):
        load_model(tmp_path / "none.onnx")
