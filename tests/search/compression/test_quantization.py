from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from paredown.evaluators.onnx_module import OnnxModule
from paredown.search.candidate import LayerChoice
from paredown.search.compression.calibration import calibrate
from paredown.search.compression.quantization import (
    LayerValues,
    activation_names,
    quantize,
)

rng = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    """A convolution with a bias, one without, an addition, a pool and a linear layer."""
    make = helper.make_node
    nodes = [
        make("Conv", ["input", "a.weight", "a.bias"], ["a0"], "a", pads=[1] * 4),
        make("Relu", ["a0"], ["a1"], "a.relu"),
        make("Conv", ["a1", "b.weight"], ["b0"], "b"),
        make("Add", ["b0", "input"], ["s0"], "s"),
        make("Relu", ["s0"], ["s1"], "s.relu"),
        make("MaxPool", ["s1"], ["p0"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["p0"], ["f0"], "f"),
        make("Gemm", ["f0", "c.weight", "c.bias"], ["output"], "c", transB=1),
    ]
    weights = {
        "a.weight": floats(4, 4, 3, 3), "a.bias": floats(4), "b.weight": floats(4, 4, 1, 1),
        "c.weight": floats(3, 16), "c.bias": floats(3),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("input", TensorProto.FLOAT, [1, 4, 4, 4])],
        [value("output", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


INPUTS = torch.from_numpy(floats(64, 4, 4, 4))


Widths = dict[str, tuple[int, int]]
FLOAT = (32, 32)


def quantized(
    model: ModelProto, widths: Widths, values: dict[str, LayerValues] | None = None
) -> ModelProto:
    choices = {name: LayerChoice(*width) for name, width in widths.items()}
    seen = calibrate(OnnxModule(model), INPUTS, activation_names(model.graph))
    result = quantize(model, choices, seen.histograms, "minmax", values=values)
    onnx.checker.check_model(result, full_check=True)
    return result


def arrays(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def node(model: ModelProto, name: str) -> NodeProto:
    nodes: list[NodeProto] = list(model.graph.node)
    return next(n for n in nodes if n.name == name)


ALL: Widths = {"a": (8, 8), "b": (5, 8), "c": (4, 8)}


def test_the_chain_of_nodes_is_the_one_that_was_agreed(model: ModelProto) -> None:
    result = quantized(model, ALL)
    quantized_tensors = [n.input[0] for n in result.graph.node if n.op_type == "QuantizeLinear"]
    assert quantized_tensors == ["input", "a1", "b0", "s1", "p0", "f0"]
    reads = {n.name: n.input[0] for n in result.graph.node}
    assert reads["a"] == "input.dequantized"
    assert reads["a.relu"] == "a0"
    assert reads["b"] == "a1.dequantized"
    assert list(node(result, "s").input) == ["b0.dequantized", "input.dequantized"]
    assert reads["s.relu"] == "s0"
    assert reads["p"] == "s1.dequantized"
    assert reads["f"] == "p0.dequantized"
    assert reads["c"] == "f0.dequantized"
    assert result.graph.node[-1].output[0] == "output"


def test_weights_of_16_bits_are_cast_to_float32_where_they_are_read(model: ModelProto) -> None:
    result = quantized(model, {"a": (16, 32), "b": (8, 8), "c": FLOAT})
    cast = node(result, "a.weight.cast")
    assert (cast.op_type, *cast.input, *cast.output) == ("Cast", "a.weight.float16", "a.weight")
    assert list(node(result, "a").input) == ["input", "a.weight", "a.bias"]
    notes = {p.key: p.value for p in node(result, "a").metadata_props}
    assert notes == {"paredown.weight_bits": "16", "paredown.activation_bits": "32"}
    found, before = arrays(result), arrays(model)
    assert "a.weight" not in found
    np.testing.assert_array_equal(
        found["a.weight.float16"], before["a.weight"].astype(np.float16), strict=True
    )
    np.testing.assert_array_equal(found["c.weight"], before["c.weight"])


def test_a_layer_that_runs_twice_has_its_float16_weights_once(model: ModelProto) -> None:
    twice = ModelProto()
    twice.CopyFrom(model)
    again = twice.graph.node.add()
    again.CopyFrom(node(twice, "b"))
    again.name, again.input[0], again.output[0] = "b#2", "b0", "b1"
    nodes = [n for n in twice.graph.node if n is not again]
    nodes.insert(3, again)
    node(twice, "s").input[0] = "b1"
    ordered = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del twice.graph.node[:]
    twice.graph.node.extend(ordered)
    result = quantized(twice, {"b": (16, 32)})
    assert [n.op_type for n in result.graph.node].count("Cast") == 1


def test_views_read_the_scale_of_what_they_view(model: ModelProto) -> None:
    result = quantized(model, ALL)
    quantizers = {
        n.input[0]: n.input[1] for n in result.graph.node if n.op_type == "QuantizeLinear"
    }
    assert quantizers["p0"] == quantizers["f0"] == quantizers["s1"]
    assert quantizers["b0"] != quantizers["s1"]


def test_types_and_ranges_of_the_constants(model: ModelProto) -> None:
    result = quantized(model, ALL)
    types = {i.name: i.data_type for i in result.graph.initializer}
    values = arrays(result)
    assert types["a.weight.quantized"] == TensorProto.INT8
    assert types["b.weight.quantized"] == TensorProto.INT8
    assert types["c.weight.quantized"] == TensorProto.INT4
    assert np.abs(values["a.weight.quantized"]).max() == 127
    assert np.abs(values["b.weight.quantized"]).max() <= 15
    assert np.abs(values["c.weight.quantized"].astype(np.int8)).max() <= 7
    assert values["a1.zero_point"] == 0
    assert values["a1.zero_point"].dtype == np.uint8
    assert values["input.scale"].dtype == np.float32
    assert values["input.scale"].shape == ()
    assert not any(name in values for name in ("a.weight", "b.weight", "c.weight", "a.bias"))


@pytest.mark.parametrize(("layer", "tensor"), [("a", "input"), ("b", "a1"), ("c", "s1")])
def test_bias_scales_are_products_and_every_layer_has_a_bias(
    model: ModelProto, layer: str, tensor: str
) -> None:
    values = arrays(quantized(model, ALL))
    product = values[f"{layer}.weight.scale"] * values[f"{tensor}.scale"]
    assert np.array_equal(values[f"{layer}.bias.scale"], product)
    integers = values[f"{layer}.bias.quantized"]
    assert integers.dtype == np.int32
    bias = arrays(model).get(f"{layer}.bias", np.zeros(len(product), np.float32))
    assert np.abs(integers * product - bias).max() <= 0.51 * product.max()


def test_seven_bits_are_clipped_before_they_are_quantized(model: ModelProto) -> None:
    result = quantized(model, {"a": (8, 7), "b": (8, 8), "c": (8, 7)})
    values = arrays(result)
    clip = node(result, "input.clip")
    assert clip.output[0] == node(result, "input.quantize").input[0]
    scale, zero = values["input.scale"], int(values["input.zero_point"])
    assert zero < 128
    assert values["input.low"] == np.float32(-zero * scale)
    assert values["input.high"] == np.float32((127 - zero) * scale)
    clipped = {n.name for n in result.graph.node if n.op_type == "Clip"}
    assert clipped == {"input.clip", "s1.clip", "p0.clip", "f0.clip"}
    seen: dict[str, float] = {}
    module = OnnxModule(result)
    module.observe(
        10 * INPUTS,
        ["f0.dequantized"],
        lambda name, x: seen.update({name: x.max().item() / values["s1.scale"].item()}),
    )
    assert round(seen["f0.dequantized"]) == 127


def test_float_layers_keep_their_weights_and_read_what_others_need(model: ModelProto) -> None:
    result = quantized(model, {"a": FLOAT, "b": (8, 8), "c": FLOAT})
    values = arrays(result)
    assert "a.weight" in values
    assert "a.weight.quantized" not in values
    assert node(result, "a").input[0] == "input"
    assert node(result, "c").input[0] == "f0"
    assert {n.input[0] for n in result.graph.node if n.op_type == "QuantizeLinear"} == {"a1"}


def test_layers_carry_their_widths(model: ModelProto) -> None:
    result = quantized(model, {"a": FLOAT, "b": (5, 7), "c": (4, 8)})
    notes = {n.name: {p.key: p.value for p in n.metadata_props} for n in result.graph.node}
    assert notes["a"] == {"paredown.weight_bits": "32", "paredown.activation_bits": "32"}
    assert notes["b"] == {"paredown.weight_bits": "5", "paredown.activation_bits": "7"}
    assert notes["s"] == {}


def test_given_values_take_the_place_of_the_models(model: ModelProto) -> None:
    given = LayerValues(
        weight=torch.ones(3, 16), scale=torch.full((3,), 0.5), gain=torch.full((3,), 3.0),
        bias=torch.tensor([1.0, 2.0, 3.0]),
    )  # fmt: skip
    result = quantized(model, ALL, {"c": given})
    values = arrays(result)
    assert (values["c.weight.quantized"] == 2).all()
    assert (values["c.weight.scale"] == 1.5).all()
    weights = OnnxModule(result).weights
    assert (weights["c.weight"] == 3.0).all()
    torch.testing.assert_close(
        weights["c.bias"].detach(), torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=0.05
    )


def test_the_float_graph_stays_as_it_is(model: ModelProto) -> None:
    before = model.SerializeToString()
    quantized(model, ALL)
    assert model.SerializeToString() == before


def test_unknown_layers_are_refused(model: ModelProto) -> None:
    with pytest.raises(ValueError, match=r"\['z'\] are not among \['a', 'b', 'c'\]"):
        quantize(model, {"z": LayerChoice(8, 8)}, {})


def make_single(op: str, weight: Any, shape: list[int], **attributes: Any) -> ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["input", "a.weight"], ["output"], "a", **attributes)],
        "test",
        [value("input", TensorProto.FLOAT, [1, *shape])],
        [value("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "a.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "weight", "shape", "attributes", "axis", "n_out"),
    [
        ("Conv", floats(6, 2, 3, 3), [4, 5, 5], {"group": 2}, 0, 6),
        ("ConvTranspose", floats(4, 6, 2, 2), [4, 5, 5], {"strides": [2, 2]}, 1, 6),
        ("ConvTranspose", floats(4, 3, 2, 2), [4, 5, 5], {"group": 2}, 1, 6),
        ("Gemm", floats(5, 8), [8], {"transB": 1}, 0, 5),
        ("Gemm", floats(8, 5), [8], {}, 1, 5),
        ("MatMul", floats(8, 5), [3, 8], {}, 1, 0),
    ],
)
def test_scales_are_per_output_channel_of_every_kind_of_layer(
    op: str, weight: Any, shape: list[int], attributes: dict[str, Any], axis: int, n_out: int
) -> None:
    model = make_single(op, weight, shape, **attributes)
    inputs = torch.from_numpy(floats(32, *shape))
    seen = calibrate(OnnxModule(model), inputs, ["input"])
    result = quantize(model, {"a": LayerChoice(8, 8)}, seen.histograms)
    values = arrays(result)
    assert values["a.weight.scale"].shape == (weight.shape[axis],)
    assert next(a.i for a in node(result, "a.weight.dequantize").attribute) == axis
    if n_out:
        assert values["a.bias.quantized"].shape == (n_out,)
    else:
        assert "a.bias.quantized" not in values
    with torch.inference_mode():
        expected, found = OnnxModule(model)(inputs), OnnxModule(result)(inputs)
    assert (found - expected).square().mean() < 1e-3 * expected.var()


@pytest.mark.parametrize("bias_first", [False, True])
def test_the_bias_behind_a_matmul_is_an_integer_too(bias_first: bool) -> None:
    make = helper.make_node
    sum_inputs = ["a0", "a.bias"]
    nodes = [
        make("MatMul", ["input", "a.weight"], ["a0"], "a"),
        make("Add", sum_inputs[::-1] if bias_first else sum_inputs, ["a1"], "a.add"),
        make("MatMul", ["a1", "b.weight"], ["b0"], "b"),
        make("Add", ["b0", "row"], ["output"], "b.add"),  # one number per token: no bias
    ]
    weights = {
        "a.weight": floats(8, 6), "a.bias": floats(6), "b.weight": floats(6, 5),
        "row": floats(3, 1),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("input", TensorProto.FLOAT, [1, 3, 8])],
        [value("output", TensorProto.FLOAT, [1, 3, 5])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inputs = torch.from_numpy(floats(32, 3, 8))
    seen = calibrate(OnnxModule(model), inputs, activation_names(model.graph))
    choices = {name: LayerChoice(8, 8) for name in ("a", "b")}
    result = quantize(model, choices, seen.histograms)
    onnx.checker.check_model(result, full_check=True)
    values = arrays(result)
    step = values["input.scale"] * values["a.weight.scale"]
    expected = np.rint(weights["a.bias"].astype(np.float64) / step)
    np.testing.assert_allclose(values["a.bias.quantized"], expected, atol=1)
    assert values["a.bias.quantized"].dtype == np.int32
    assert "a.bias" in node(result, "a.add").input
    assert "a.bias" not in values
    assert not any(name.startswith("b.bias") for name in values)
    given = quantize(
        model, choices, seen.histograms, values={"a": LayerValues(bias=torch.ones(6))}
    )
    stored = arrays(given)
    found = stored["a.bias.quantized"] * stored["a.bias.scale"].astype(np.float64)
    np.testing.assert_allclose(found, 1, atol=1e-3)
    kept = quantize(model, {"b": LayerChoice(8, 8)}, seen.histograms)
    np.testing.assert_array_equal(arrays(kept)["a.bias"], weights["a.bias"])
