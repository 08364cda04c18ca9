from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_file import (
    fix_batch,
    read_inputs,
    reads_quantized_in_float,
    widen_integers,
)
from paredown.evaluators.runtimes import TensorSpec


def test_inputs_are_read(small_net: Path, open_batch_net: Path) -> None:
    assert read_inputs(small_net) == (TensorSpec("input", (1, 2, 12, 12), "float32"),)
    assert read_inputs(open_batch_net) == (TensorSpec("input", (None, 2, 12, 12), "float32"),)


def test_weights_listed_as_inputs_are_none(small_net: Path) -> None:
    model = onnx.load(small_net)
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    onnx.save(model, small_net)
    assert [spec.name for spec in read_inputs(small_net)] == ["input"]


def test_open_batch_is_set_to_one(open_batch_net: Path, tmp_path: Path) -> None:
    fixed = fix_batch(open_batch_net, tmp_path)
    assert read_inputs(fixed) == (TensorSpec("input", (1, 2, 12, 12), "float32"),)
    assert read_inputs(open_batch_net)[0].shape[0] is None


def test_fixed_file_is_used_as_it_is(small_net: Path, tmp_path: Path) -> None:
    assert fix_batch(small_net, tmp_path) == small_net


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(small_net: Path, share: float) -> None:
    data = small_net.read_bytes()
    small_net.write_bytes(data[: int(share * len(data))])
    with pytest.raises(EvaluationError, match=r"small\.onnx'.*(cut off|no valid)") as info:
        read_inputs(small_net)
    assert info.value.reason == "model"


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\x00" * 100, b"<html>not found</html>"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"Model file '.*garbage\.onnx'"):
        read_inputs(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="could not be read: No such file"):
        read_inputs(tmp_path / "nowhere.onnx")
    with pytest.raises(EvaluationError, match="could not be read: Is a directory"):
        read_inputs(tmp_path)


def test_invalid_graph_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Relu", ["nowhere"], ["x"])
    path = tmp_path / "loose.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [value])), path)
    with pytest.raises(EvaluationError, match=r"no valid ONNX model: .*nowhere"):
        read_inputs(path)


def narrow_model(**attributes: Any) -> onnx.ModelProto:
    """A MatMul with weights of 4 bits and zero points."""
    shape = [2, 3] if "block_size" in attributes else [3]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"], **attributes),
        helper.make_node("MatMul", ["input", "weight"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "narrow",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3])],
        [
            helper.make_tensor("w", TensorProto.INT4, [4, 3], [k % 15 - 7 for k in range(12)]),
            helper.make_tensor("scale", TensorProto.FLOAT, shape, [0.5] * (len(shape) * 3)),
            helper.make_tensor("zero", TensorProto.INT4, shape, [0] * (len(shape) * 3)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_weights_of_4_bits_become_int8_and_mean_the_same(tmp_path: Path) -> None:
    path, wide = tmp_path / "narrow.onnx", tmp_path / "wide.onnx"
    onnx.save(narrow_model(axis=1), path)
    widen_integers(path, wide)
    kinds = {t.name: t.data_type for t in onnx.load(wide).graph.initializer}
    assert kinds == {"w": TensorProto.INT8, "scale": TensorProto.FLOAT, "zero": TensorProto.INT8}
    onnx.checker.check_model(str(wide), full_check=True)
    data = {"input": np.array([[1, -2, 3, 0.5]], np.float32)}
    before, after = (ReferenceEvaluator(str(p)).run(None, data) for p in (path, wide))
    np.testing.assert_array_equal(before, after)


def test_weights_in_blocks_stay(tmp_path: Path) -> None:
    path, same = tmp_path / "narrow.onnx", tmp_path / "same.onnx"
    onnx.save(narrow_model(axis=0, block_size=2), path)
    widen_integers(path, same)
    assert onnx.load(same) == onnx.load(path)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_float_layers_behind_quantizers_are_found(
    builder: Any, tmp_path: Path, is_quantized: bool
) -> None:
    source = builder.quantized("input", 0.1, 128)
    weight = builder.constant(np.ones((2, 2, 1, 1), np.float32))
    if is_quantized:
        weight = builder.quantized(weight, 0.1, 128)
    path = tmp_path / "net.onnx"
    onnx.save(builder.model((1, 2, 3, 3), builder.op("Conv", source, weight)), path)
    assert reads_quantized_in_float(path) != is_quantized
