from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_symmetric import quantize_around_zero


def zero_points(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Return type and value of all zero points of a model."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = [
        values[node.input[2]]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    return {(str(zero.dtype), int(value)) for zero in found for value in zero.reshape(-1)}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@given(
    scale=st.sampled_from([0.5, 0.0317, 0.001]),
    zero_point=st.integers(0, 255),
    bits=st.integers(4, 8),
    relu=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_activations_keep_their_meaning(
    make_builder: Any, run_reference: Any, scale: float, zero_point: int, bits: int, relu: bool
) -> None:
    builder = make_builder()
    x = builder.op("Relu", "input") if relu else "input"
    model = builder.model((1, 1024), builder.quantized(x, scale, min(zero_point, 127), bits))
    data = np.linspace(-300 * scale, 300 * scale, 1024, dtype=np.float32)[None]
    found = quantize_around_zero(model)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_array_equal(run_reference(found, data), run_reference(model, data))
    assert zero_points(found) <= {("int8", 0)}


@pytest.mark.parametrize(
    ("zero_point", "bits", "is_int8"),
    [(0, 7, True), (60, 7, True), (127, 7, True), (128, 8, True), (0, 8, False), (127, 8, False)],
)
def test_what_fits_becomes_int8(zero_point: int, bits: int, is_int8: bool, builder: Any) -> None:
    model = builder.model((1, 8), builder.quantized("input", 0.1, zero_point, bits))
    assert ("QuantizeLinear" in operators(quantize_around_zero(model))) is is_int8


def test_network_keeps_its_meaning(builder: Any, run_reference: Any) -> None:
    """Weights become int8, the biases float32; the first layer reads 8 bits and runs in float."""
    b = builder
    x = b.quantized("input", 0.05, 100)
    x = b.quantized(b.op("Relu", b.conv(x, (8, 3, 3, 3), 4, 0.05)), 0.02, 0, bits=7)
    model = b.model((1, 3, 8, 8), b.conv(x, (4, 8, 1, 1), 8, 0.02))
    found = quantize_around_zero(model)
    onnx.checker.check_model(found, full_check=True)
    data = b.rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        run_reference(found, data)[0], run_reference(model, data)[0], rtol=1e-6, atol=1e-6
    )
    assert zero_points(found) == {("int8", 0)}
    counts = operators(found)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (1, 3)
    types = {t.data_type for t in found.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}


def test_weights_with_a_zero_point_become_float(builder: Any, run_reference: Any) -> None:
    stored = builder.constant(np.arange(-4, 4, dtype=np.int8).reshape(2, 4))
    weights = builder.op(
        "DequantizeLinear", stored, builder.number(0.25), builder.constant(np.int8(3))
    )
    model = builder.model((1, 2), builder.op("MatMul", "input", weights))
    found = quantize_around_zero(model)
    assert operators(found) == {"MatMul": 1}
    data = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(run_reference(found, data), run_reference(model, data))


def test_the_model_is_left_as_it_was(builder: Any) -> None:
    model = builder.model((1, 8), builder.quantized("input", 0.1, 100))
    before = model.SerializeToString()
    quantize_around_zero(model)
    assert model.SerializeToString() == before


def test_quantizer_per_channel_is_named(builder: Any) -> None:
    scale = builder.constant(np.array([0.1, 0.2], np.float32))
    x = builder.op("QuantizeLinear", "input", scale)
    model = builder.model((1, 2), builder.op("DequantizeLinear", x, scale))
    with pytest.raises(EvaluationError, match=r"one fixed scale .* 'quantizelinear2' does not"):
        quantize_around_zero(model)


def test_dequantization_of_something_else_is_named(builder: Any) -> None:
    x = builder.op("QuantizeLinear", "input", builder.number(0.1), builder.constant(np.uint8(3)))
    x = builder.op("DequantizeLinear", x, builder.number(0.1), builder.constant(np.uint8(4)))
    with pytest.raises(EvaluationError, match=r"undo a QuantizeLinear node, but Dequantize"):
        quantize_around_zero(builder.model((1, 2), x))
