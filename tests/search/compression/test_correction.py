import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from paredown.evaluators.onnx_module import OnnxModule
from paredown.search.candidate import FLOAT_LAYER, LayerChoice
from paredown.search.compression.calibration import calibrate, channel_moments
from paredown.search.compression.correction import (
    changes_spread,
    correct_layers,
    correctable_layers,
)
from paredown.search.compression.quantization import LayerValues, activation_names, quantize
from paredown.search.compression.quantizer import weight_scales
from paredown.search.compression.sparsity import Sparsity

INPUTS = torch.rand(64, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def make_model() -> ModelProto:
    rng = np.random.default_rng(0)
    make = helper.make_node
    nodes = [
        make("Conv", ["input", "a.weight"], ["a0"], "a"),
        make("Relu", ["a0"], ["a1"], "r"),
        make("Conv", ["a1", "b.weight"], ["output"], "b"),
    ]
    weights = {
        n: rng.normal(size=(8, 8, 3, 3)).astype(np.float32) for n in ("a.weight", "b.weight")
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("input", TensorProto.FLOAT, [1, 8, 6, 6])],
        [value("output", TensorProto.FLOAT, [1, 8, 2, 2])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: ModelProto) -> Tensor:
    with torch.inference_mode():
        result: Tensor = OnnxModule(model)(INPUTS)
    return result


def test_corrected_outputs_have_the_moments_of_the_float_graph() -> None:
    model = make_model()
    outputs = correctable_layers(model.graph)
    assert outputs == {"a": "a0", "b": "output"}
    seen = calibrate(OnnxModule(model), INPUTS, activation_names(model.graph), outputs.values())
    choices = {name: LayerChoice(2, 8) for name in outputs}
    tensors = {
        i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer
    }
    values = {n: LayerValues(scale=weight_scales(tensors[f"{n}.weight"], 2, 0)) for n in outputs}
    plain = quantize(model, choices, seen.histograms, values=values)
    corrections = correct_layers(OnnxModule(plain), INPUTS, outputs, seen.moments, outputs)
    corrected = quantize(
        model,
        choices,
        seen.histograms,
        values={
            n: LayerValues(scale=values[n].scale, gain=c.gain, bias=c.bias)
            for n, c in corrections.items()
        },
    )
    wanted = channel_moments(run(model))
    before, after = channel_moments(run(plain)), channel_moments(run(corrected))
    torch.testing.assert_close(after.mean, wanted.mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(after.deviation, wanted.deviation, rtol=0.02, atol=0.0)
    assert (before.mean - wanted.mean).abs().mean() > 0.1
    error = [(run(m) - run(model)).square().mean() for m in (plain, corrected)]
    assert error[1] < 0.7 * error[0]


def test_channels_that_never_change_keep_their_scale() -> None:
    model = make_model()
    inputs = torch.zeros(4, 8, 6, 6)
    seen = calibrate(OnnxModule(model), inputs, activation_names(model.graph), ["a0", "output"])
    plain = quantize(model, {"a": LayerChoice(4, 8), "b": LayerChoice(4, 8)}, seen.histograms)
    corrections = correct_layers(
        OnnxModule(plain), inputs, {"a": "a0", "b": "output"}, seen.moments, {"a", "b"}
    )
    assert all((c.gain == 1).all() for c in corrections.values())
    assert all(c.bias.isfinite().all() for c in corrections.values())


def test_few_bits_and_zeros_change_the_spread() -> None:
    assert changes_spread(LayerChoice(4, 8), None)
    assert not changes_spread(LayerChoice(5, 8), None)
    assert changes_spread(LayerChoice(8, 8), Sparsity(0.5))
    assert not changes_spread(FLOAT_LAYER, Sparsity(0.5))


def test_scales_stay_where_the_spread_does() -> None:
    model = make_model()
    outputs = correctable_layers(model.graph)
    seen = calibrate(OnnxModule(model), INPUTS, activation_names(model.graph), outputs.values())
    plain = quantize(model, dict.fromkeys("ab", LayerChoice(5, 8)), seen.histograms)
    found = correct_layers(OnnxModule(plain), INPUTS, outputs, seen.moments, {"a"})
    assert (found["a"].gain != 1).all()
    assert (found["b"].gain == 1).all()
    assert (found["b"].bias != 0).all()


def test_moments_of_a_hand_computed_tensor() -> None:
    values = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[1.0, 3.0], [5.0, 5.0]]])
    moments = channel_moments(values)
    assert moments.mean.tolist() == [2.0, 5.0]
    assert moments.deviation.tolist() == [1.0, 0.0]
