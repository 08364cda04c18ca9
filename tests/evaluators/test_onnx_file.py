from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_file import fix_batch, read_inputs
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
