import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from paredown.evaluators.onnx_module import OnnxModule
from paredown.evaluators.task import Data
from paredown.search.candidate import FLOAT_LAYER, LayerChoice
from paredown.search.compression.calibration import calibrate
from paredown.search.compression.finetuning import QuantizedTraining
from paredown.search.compression.quantization import LayerValues, activation_names, quantize
from paredown.search.compression.quantizer import weight_scales
from paredown.search.training import train

INPUTS = torch.rand(256, 6, generator=torch.Generator().manual_seed(0))
CHOICES = {"a": LayerChoice(3, 8), "b": FLOAT_LAYER, "c": LayerChoice(2, 8)}


@pytest.fixture
def model() -> ModelProto:
    rng = np.random.default_rng(0)
    weights, nodes, source = {}, [], "input"
    for name, n_in, n_out in (("a", 6, 16), ("b", 16, 16), ("c", 16, 3)):
        weights[f"{name}.weight"] = rng.normal(size=(n_out, n_in)).astype(np.float32) / 3
        weights[f"{name}.bias"] = rng.normal(size=n_out).astype(np.float32)
        target = "output" if name == "c" else f"{name}0"
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [target], name, transB=1))
        if name != "c":
            nodes.append(helper.make_node("Relu", [target], [f"{name}1"], f"{name}.relu"))
        source = f"{name}1"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("input", TensorProto.FLOAT, [1, 6])],
        [value("output", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def prepare(model: ModelProto) -> tuple[QuantizedTraining, ModelProto]:
    arrays = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in model.graph.initializer}
    values = {
        name: LayerValues(
            scale=weight_scales(arrays[f"{name}.weight"], CHOICES[name].weight_bits, 0),
            gain=torch.linspace(0.9, 1.1, len(arrays[f"{name}.bias"])),
        )
        for name in ("a", "c")
    }
    seen = calibrate(OnnxModule(model), INPUTS, activation_names(model.graph))
    quantized = quantize(model, CHOICES, seen.histograms, values=values)
    return QuantizedTraining(model, quantized, CHOICES, values), quantized


def write(model: ModelProto, training: QuantizedTraining) -> ModelProto:
    written = ModelProto()
    written.CopyFrom(model)
    for tensor in written.graph.initializer:
        if tensor.name in training.float_values():
            array = training.float_values()[tensor.name].numpy()
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    seen = calibrate(OnnxModule(model), INPUTS, activation_names(model.graph))
    return quantize(written, CHOICES, seen.histograms, values=training.layer_values())


def test_training_starts_at_the_quantized_graph(model: ModelProto) -> None:
    training, quantized = prepare(model)
    torch.testing.assert_close(
        training(INPUTS).detach(), OnnxModule(quantized)(INPUTS).detach(), rtol=1e-4, atol=1e-4
    )


def test_the_file_computes_what_training_ended_with(model: ModelProto) -> None:
    training, quantized = prepare(model)
    teacher = OnnxModule(model)(INPUTS).detach()
    data = Data(INPUTS, teacher)
    before = (training(INPUTS) - teacher).square().mean().item()
    train(training, data, epochs=30, lr=5e-3, batch_size=32, optimizer="adamw", weight_decay=0.0)
    outputs = training(INPUTS).detach()
    assert (outputs - teacher).square().mean() < 0.5 * before
    written = write(model, training)
    with torch.inference_mode():
        # Biases in int32 are a hair off the float ones, which may flip a rounding.
        difference = (OnnxModule(written)(INPUTS) - outputs).abs()
    assert difference.median() < 1e-3
    assert difference.max() < 0.1
    assert written.SerializeToString() != quantized.SerializeToString()


def test_every_parameter_learns(model: ModelProto) -> None:
    training, _ = prepare(model)
    training(INPUTS).square().sum().backward()
    gradients = {n: p.grad for n, p in training.named_parameters() if p.requires_grad}
    assert len(gradients) == 8  # three weights, three biases, scales of two layers
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes(model: ModelProto) -> None:
    """By hand: rounding counts as the identity, so d(s * round(w / s)) / ds = round(w/s) - w/s."""
    training, _ = prepare(model)
    layer = training.layer_values()["c"]
    assert layer.weight is not None
    assert layer.scale is not None
    steps = layer.weight / layer.scale[:, None]
    rounded = steps.round().clamp(-1, 1)
    slope = torch.where(steps.abs() <= 1.5, rounded - steps, rounded)
    hidden: dict[str, torch.Tensor] = {}
    _, quantized = prepare(model)
    OnnxModule(quantized).observe(
        INPUTS, ["b1.dequantized"], lambda n, x: hidden.update({n: x.clone()})
    )
    learned = [p for p in training.parameters() if p.requires_grad]
    growth = next(p for p in learned if p.shape == (3,) and not p.any())  # as yet it is exp(0)
    training(INPUTS).sum().backward()
    wanted = (slope * hidden["b1.dequantized"].sum(0)).sum(1) * layer.scale
    torch.testing.assert_close(growth.grad, wanted, rtol=1e-3, atol=1e-2)
