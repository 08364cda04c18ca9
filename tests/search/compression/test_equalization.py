"""Equalization leaves what a model computes, and evens the ranges of its channels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from paredown.evaluators.onnx_module import OnnxModule
from paredown.search.candidate import LayerChoice
from paredown.search.compression._graph import replace_floats
from paredown.search.compression.calibration import calibrate
from paredown.search.compression.equalization import equalize, find_junctions
from paredown.search.compression.quantization import activation_names, quantize

INPUTS = torch.randn(32, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def make_model(*between: Any, group: int = 8, extra: Any = ()) -> ModelProto:
    """Return a 1x1 convolution, what lies between, a depthwise one and another 1x1."""
    rng = np.random.default_rng(0)
    make = helper.make_node
    chain = [make("Conv", ["input", "a.weight", "a.bias"], ["t0"], "a")]
    for place, (op, inputs, attributes) in enumerate(between):
        chain.append(make(op, [f"t{place}", *inputs], [f"t{place + 1}"], **attributes))
    last = f"t{len(between)}"
    chain += [
        make("Conv", [last, "d.weight", "d.bias"], ["d0"], "d", group=group, pads=[1] * 4),
        make("Conv", ["d0", "p.weight"], ["output"], "p"),
        *extra,
    ]
    rows = 0.3 * np.exp(rng.normal(0, 1.5, 8))  # channels of very different size
    weights = {
        "a.weight": rng.normal(size=(8, 8, 1, 1)) * rows[:, None, None, None],
        "a.bias": rng.normal(size=8) * rows,
        "d.weight": rng.normal(size=(8, 8 // group, 3, 3)) / rows[:, None, None, None],
        "d.bias": rng.normal(size=8),
        "p.weight": rng.normal(size=(4, 8, 1, 1)),
        "zero": np.array(0.0),
        "six": np.array(6.0),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        chain,
        "test",
        [value("input", TensorProto.FLOAT, [1, 8, 6, 6])],
        [value("output", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


Node = tuple[str, list[str], dict[str, Any]]
RELU: Node = ("Relu", [], {})
RELU6: Node = ("Clip", ["zero", "six"], {})
LEAKY: Node = ("LeakyRelu", [], {"alpha": 0.1})
POOL: Node = ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [1] * 4})
SIGMOID: Node = ("Sigmoid", [], {})


def run(model: ModelProto) -> Tensor:
    with torch.inference_mode():
        result: Tensor = OnnxModule(model)(INPUTS)
    return result


def ranges(model: ModelProto, name: str) -> Tensor:
    found: list[Tensor] = []
    OnnxModule(model).observe(INPUTS, [name], lambda _, x: found.append(x.abs().amax((0, 2, 3))))
    return found[0]


def equalized(model: ModelProto) -> ModelProto:
    return replace_floats(model, equalize(model, OnnxModule(model), INPUTS.split(8)))


@pytest.mark.parametrize("between", [(), (RELU,), (LEAKY,), (RELU, POOL)])
def test_the_model_computes_what_it_did_with_channels_of_more_even_range(between: Any) -> None:
    model = make_model(*between)
    (junction,) = find_junctions(model.graph)
    after = equalized(model)
    torch.testing.assert_close(run(after), run(model), rtol=1e-4, atol=1e-4)
    old, new = ranges(model, junction.tensor), ranges(after, junction.tensor)
    assert new.amax() == pytest.approx(old.amax().item(), rel=1e-4)
    torch.testing.assert_close(new, (old * old.amax()).sqrt(), rtol=1e-4, atol=0)
    assert old.amin() < 0.25 * old.amax()


def test_a_channel_that_is_always_zero_stays_as_it_is() -> None:
    model = make_model(RELU)
    bias = next(i for i in model.graph.initializer if i.name == "a.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] = -1e3
    bias.CopyFrom(numpy_helper.from_array(values, "a.bias"))
    found = equalize(model, OnnxModule(model), [INPUTS])
    assert ranges(model, "t1")[3] == 0
    assert found["a.bias"][3] == -1e3
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.parametrize(
    ("between", "options"),
    [
        ((SIGMOID,), {}),
        ((RELU6,), {}),
        ((RELU,), {"group": 1}),
        ((RELU,), {"extra": [helper.make_node("Neg", ["t1"], ["other"])]}),
        ((RELU,), {"extra": [helper.make_node("Neg", ["t0"], ["other"])]}),
    ],
)
def test_what_scaling_would_change_is_left_alone(between: Any, options: Any) -> None:
    model = make_model(*between, **options)
    assert find_junctions(model.graph) == ()
    assert equalize(model, OnnxModule(model), [INPUTS]) == {}


def test_eight_bits_lose_less_of_an_equalized_model() -> None:
    errors = []
    model = make_model(RELU)
    for graph in (model, equalized(model)):
        names = activation_names(graph.graph)
        seen = calibrate(OnnxModule(graph), INPUTS, names)
        choices = {name: LayerChoice(8, 8) for name in "adp"}
        quantized = quantize(graph, choices, seen.histograms, "minmax")
        errors.append((run(quantized) - run(model)).square().mean().item())
    assert errors[1] < 0.8 * errors[0]
