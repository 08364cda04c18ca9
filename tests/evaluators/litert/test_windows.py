from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from paredown.evaluators.measurement import EvaluationError

pytest.importorskip("ai_edge_litert")

OPERATORS = ("Conv", "MaxPool", "AveragePool")


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, list[int], dict[str, Any]]:
    """An operator, the size of its images, and its attributes."""
    op = draw(st.sampled_from(OPERATORS))
    kernel = draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    attributes["strides"] = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    attributes["pads"] = [draw(st.integers(0, kernel[k % 2] - 1)) for k in range(4)]
    if op == "Conv":
        attributes["dilations"] = draw(st.lists(st.integers(1, 2), min_size=2, max_size=2))
    else:
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    return op, draw(st.lists(st.integers(4, 9), min_size=2, max_size=2)), attributes


@pytest.mark.slow
@given(windows())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_window_agrees(
    make_builder: Any, agrees: Any, case: tuple[str, list[int], dict[str, Any]]
) -> None:
    op, size, attributes = case
    reach = [
        (kernel - 1) * dilation + 1
        for kernel, dilation in zip(
            attributes["kernel_shape"], attributes.get("dilations", [1, 1]), strict=True
        )
    ]
    assume(all(n >= k for n, k in zip(size, reach, strict=True)))
    builder = make_builder()
    shape = (3, 2, *attributes["kernel_shape"])
    operands = [builder.floats(*shape)] if op == "Conv" else []
    model = builder.model((1, 2, *size), builder.op(op, "input", *operands, **attributes))
    result = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim][2:]
    for k in range(2):
        # Whether a window counts that begins behind the image, onnx and ONNX Runtime disagree.
        begin = (result[k] - 1) * attributes["strides"][k]
        assume(begin < size[k] + attributes["pads"][k])
    agrees(model)


def test_padding_that_litert_has_costs_no_operator(builder: Any, convert: Any) -> None:
    x = builder.float_conv("input", (4, 4, 3, 3), pads=[1, 1, 1, 1])
    x = builder.float_conv(x, (4, 4, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2])
    x = builder.float_conv(x, (4, 4, 1, 1))
    assert "PAD" not in convert(builder.model((1, 4, 8, 8), x)).operators()


def test_padding_that_no_window_reads_is_left_out(builder: Any, convert: Any) -> None:
    """A stride of 2 over 8 pixels never reaches the last column of the padding."""
    x = builder.op("MaxPool", "input", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    assert set(convert(builder.model((1, 4, 8, 8), x)).operators()) == {"TRANSPOSE", "MAX_POOL_2D"}


def test_positive_images_are_padded_with_zero(builder: Any, convert: Any) -> None:
    """XNNPACK pads with 0, but hands any other value back to the interpreter."""
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    image = builder.float_conv("input", (4, 4, 1, 1))
    positive = builder.op("Relu", image)
    model = builder.model(
        (1, 4, 8, 8),
        builder.op("MaxPool", image, **window),
        builder.op("MaxPool", positive, **window),
        builder.op("MaxPool", builder.quantized(positive, 0.02), **window),
    )
    found = convert(model).operators()
    assert (found["PADV2"], found["PAD"]) == (1, 2)


@pytest.mark.parametrize("pooled", ["MaxPool", "AveragePool"])
def test_dilated_pool_is_named(pooled: str, convert: Any) -> None:
    node = helper.make_node(
        pooled, ["input"], ["output"], kernel_shape=[2, 2], dilations=[2, 2], name="pool"
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", [1, 1, 8, 8]), ("output", [1, 1, 6, 6]))
    ]
    graph = helper.make_graph([node], "net", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    with pytest.raises(EvaluationError, match=rf"operator {pooled} .node 'pool'.* dilated"):
        convert(model)
