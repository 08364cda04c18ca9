from typing import Any

import numpy as np
import pytest

from paredown.evaluators.litert.model_writer import ModelWriter, Quantization

schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated")


@pytest.fixture
def content() -> bytes:
    """A model that adds a constant and multiplies by another."""
    writer = ModelWriter()
    source = writer.tensor("x", (1, 3))
    scales = Quantization(np.array([0.5, 0.25], np.float32), 0, axis=1)
    one = writer.constant("one", np.array([1, 2, 3], np.float32))
    writer.constant("odd", np.arange(7, dtype=np.int8))
    steps = writer.constant("steps", np.zeros((3, 2), np.int8), scales)
    total = writer.tensor("sum", (1, 3))
    relu = writer.activation("RELU6")
    writer.operator("ADD", [source, one], [total], "AddOptions", {"fusedActivationFunction": relu})
    assert writer.shape(steps) == (3, 2)
    product = writer.tensor_like(total, (1, 3))
    writer.operator("MUL", [total, one], [product], "MulOptions")
    writer.rename(product, "y")
    return writer.to_bytes([source], [product])


def test_reads_back(content: bytes) -> None:
    model = schema.ModelT.InitFromPackedBuf(content)
    (graph,) = model.subgraphs
    add, mul = graph.operators
    codes = [code.builtinCode for code in model.operatorCodes]
    assert [codes[op.opcodeIndex] for op in (add, mul)] == [
        schema.BuiltinOperator.ADD,
        schema.BuiltinOperator.MUL,
    ]
    assert add.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU6
    assert graph.tensors[graph.outputs[0]].name == b"y"
    (steps,) = [tensor for tensor in graph.tensors if tensor.name == b"steps"]
    assert steps.type == schema.TensorType.INT8
    assert steps.quantization.scale.tolist() == [0.5, 0.25]
    assert steps.quantization.zeroPoint.tolist() == [0, 0]
    assert steps.quantization.quantizedDimension == 1


def test_runs(content: bytes) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.array([[1, -9, 4]], np.float32)
    )
    interpreter.invoke()
    result = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_array_equal(result, [[2, 0, 18]])


def test_constants_can_be_used_in_place(content: bytes) -> None:
    """The schema asks for 16 bytes of alignment; a table is read with vector instructions."""
    assert content[4:8] == b"TFL3"
    model = schema.ModelT.InitFromPackedBuf(content)
    sizes = []
    for buffer in model.buffers:
        if buffer.data is not None:
            data = buffer.data.tobytes()
            sizes.append(len(data))
            if len(set(data)) > 1:  # to be found in the file
                assert content.index(data) % 16 == 0
    assert sizes == [12, 7, 6]
