from random import Random
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from paredown.evaluators.size import coded_size_bytes, entropy_bits, model_size_bytes


def make_model(nodes: list[Any], initializers: list[TensorProto]) -> ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, [1, 5])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        initializers,
    )
    return helper.make_model(graph)


def array(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def test_a_float_model_has_four_bytes_for_each_parameter() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Clip", ["h", "low"], ["y"]),
    ]
    tensors = [array("w", np.ones((3, 5))), array("b", np.ones(3)), array("low", 0.0)]
    assert model_size_bytes(make_model(nodes, tensors)) == 4 * (15 + 3)


def test_constants_that_give_shapes_are_no_parameters() -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    assert model_size_bytes(make_model(nodes, [array("shape", [1, 5], np.int64)])) == 0


def quantized(bits: int | None, kind: int) -> ModelProto:
    layer = helper.make_node("Gemm", ["xd", "w", "b"], ["y"], name="fc", transB=1)
    if bits is not None:
        layer.metadata_props.add(key="paredown.weight_bits", value=str(bits))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bq", "bs"], ["b"], axis=0),
        layer,
    ]
    return make_model(
        nodes,
        [
            array("s", 0.1),
            array("z", 0, np.uint8),
            helper.make_tensor("wq", kind, (3, 5), [1] * 15),
            array("ws", np.ones(3)),
            helper.make_tensor("wz", kind, (3,), [0] * 3),
            array("bq", np.ones(3), np.int32),
            array("bs", np.ones(3)),
        ],
    )


def test_a_quantized_model_counts_packed_bits_scales_and_biases() -> None:
    rest = (4 + 1) + 3 * 4 + 3 * 4  # the activation's scale and zero point, scales, biases
    assert model_size_bytes(quantized(8, TensorProto.INT8)) == 15 + rest
    assert model_size_bytes(quantized(5, TensorProto.INT8)) == 10 + rest  # 75 bits
    assert model_size_bytes(quantized(4, TensorProto.INT4)) == 8 + rest
    assert model_size_bytes(quantized(2, TensorProto.INT4)) == 4 + rest


def test_without_a_note_the_type_gives_the_width() -> None:
    with_note = model_size_bytes(quantized(8, TensorProto.INT8))
    assert model_size_bytes(quantized(None, TensorProto.INT8)) == with_note
    assert model_size_bytes(quantized(None, TensorProto.INT4)) == with_note - 7


def test_a_tensor_that_is_read_twice_is_counted_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    assert model_size_bytes(make_model(nodes, [array("w", np.ones((5, 5)))])) == 100


def weights(values: list[int], bits: int) -> ModelProto:
    """Return a layer of one input with the given weights."""
    layer = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    layer.metadata_props.add(key="paredown.weight_bits", value=str(bits))
    nodes = [helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0), layer]
    count = len(values)
    return make_model(
        nodes,
        [
            helper.make_tensor("wq", TensorProto.INT4, (count, 1), values),
            array("ws", 1.0),
            helper.make_tensor("wz", TensorProto.INT4, (), [0]),
        ],
    )


def test_entropy_is_that_of_the_values() -> None:
    halves = np.array([0, 0, 1, -1], np.int8)
    assert entropy_bits(halves) == 1.5
    assert entropy_bits(np.zeros(7, np.int8)) == 0.0
    assert entropy_bits(np.arange(-128, 128).astype(np.int8)) == 8.0
    assert entropy_bits(np.zeros(0, np.int8)) == 0.0


def test_the_coded_size_is_the_entropy_a_table_and_the_rest() -> None:
    model = weights([0, 0, 1, -1] * 256, bits=3)
    assert model_size_bytes(model) == 1024 * 3 // 8 + 4
    table = 2 * 8
    assert coded_size_bytes(model) == 1024 * 3 // 2 // 8 + table + 4


def test_what_coding_would_make_larger_stays_packed() -> None:
    model = weights([0, 1, -1, 1], bits=2)
    assert coded_size_bytes(model) == model_size_bytes(model) == 1 + 4


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=400), st.randoms())
def test_coding_depends_on_the_values_not_on_their_order(
    values: list[int], random: Random
) -> None:
    model = weights(values, bits=4)
    size = coded_size_bytes(model)
    assert size <= model_size_bytes(model)
    random.shuffle(values)
    assert coded_size_bytes(weights(values, bits=4)) == size
