import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from paredown.evaluators.onnx_module import OnnxModule
from paredown.search.compression.quantizer import along, weight_scales
from paredown.search.compression.rounding import LayerInputs, input_grams, round_by_outputs

BITS, TOP = 3, 3


def problem(n_inputs: int, n_outputs: int = 8, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs that hang together, and their Gram matrices."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(n_outputs, n_inputs, generator=rng)
    mixing = torch.randn(groups, n_inputs, n_inputs, generator=rng)
    inputs = (mixing @ torch.randn(groups, n_inputs, 400, generator=rng)).relu()
    return weight, inputs, inputs @ inputs.transpose(1, 2) / 400


def error(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    return ((weight - rounded) @ inputs).square().sum().item()


@pytest.mark.parametrize(("n_inputs", "share"), [(5, 0.8), (32, 0.9), (300, 0.4)])
def test_outputs_change_less_than_by_rounding_to_nearest(n_inputs: int, share: float) -> None:
    weight, inputs, grams = problem(n_inputs)
    scale = weight_scales(weight, 3, 0)
    steps = along(scale, 0, 2)
    nearest = (weight / steps).round().clamp(-TOP, TOP) * steps
    rounded = round_by_outputs(weight, scale, BITS, LayerInputs.from_gram(grams), 0)
    assert error(weight, rounded, inputs[0]) < share * error(weight, nearest, inputs[0])


def gptq(weight: Tensor, scale: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """GPTQ as its paper has it: with the inverse, one input at a time, largest first."""
    order = gram.diagonal().argsort(descending=True)
    ordered = gram.double()[order][:, order]
    ordered += 0.01 * ordered.diagonal().mean() * torch.eye(len(gram))
    spread = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True)
    rows, kept, result = weight.double()[:, order], kept[:, order], torch.zeros_like(weight)
    for place, source in enumerate(order):
        rounded = (rows[:, place] / scale).round().clamp(-TOP, TOP) * scale * kept[:, place]
        error = (rows[:, place] - rounded) / spread[place, place]
        rows -= error[:, None] * spread[place]  # upper triangular
        result[:, source] = rounded.float()
    return result


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("n_inputs", [7, 150])
def test_it_rounds_as_gptq_does(n_inputs: int, is_sparse: bool) -> None:
    weight, _, grams = problem(n_inputs)
    scale = weight_scales(weight, 3, 0)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    kept |= not is_sparse
    rounded = round_by_outputs(weight, scale, BITS, LayerInputs.from_gram(grams), 0, kept)
    torch.testing.assert_close(rounded, gptq(weight, scale, grams[0], kept))


@pytest.mark.parametrize(
    ("shape", "axis", "groups"), [((8, 6), 0, 1), ((6, 8), 1, 1), ((8, 2, 3, 1), 0, 4)]
)
def test_rounded_weights_lie_on_the_grid(shape: tuple[int, ...], axis: int, groups: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scale = weight_scales(weight, 3, axis)
    inputs = LayerInputs.from_gram(problem(6, groups=groups)[2])
    rounded = round_by_outputs(weight, scale, BITS, inputs, axis)
    steps = rounded / along(scale, axis, weight.ndim)
    assert rounded.shape == weight.shape
    torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0.0)
    assert steps.abs().max() <= TOP + 1e-5


def test_inputs_that_do_not_hang_together_leave_nearest_steps() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    scale = weight_scales(weight, 3, 0)
    steps = along(scale, 0, 2)
    rounded = round_by_outputs(weight, scale, BITS, LayerInputs.from_gram(torch.eye(6)[None]), 0)
    torch.testing.assert_close(rounded, (weight / steps).round().clamp(-TOP, TOP) * steps)


def test_inputs_that_are_all_zero_are_no_fault() -> None:
    weight = torch.randn(4, 6)
    inputs = LayerInputs.from_gram(torch.zeros(1, 6, 6))
    rounded = round_by_outputs(weight, weight_scales(weight, 3, 0), BITS, inputs, 0)
    assert torch.isfinite(rounded).all()


def conv_model(groups: int) -> ModelProto:
    weight = torch.randn(6, 4 // groups, 3, 3).numpy()
    node = helper.make_node(
        "Conv", ["input", "conv.weight"], ["output"], "conv",
        group=groups, pads=[1, 0, 1, 2], strides=[2, 1],
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "test",
        [value("input", TensorProto.FLOAT, [1, 4, 9, 9])],
        [value("output", TensorProto.FLOAT, [1, 6, 5, 9])],
        [numpy_helper.from_array(weight, "conv.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("groups", [1, 2])
def test_gram_of_a_convolution_gives_the_power_of_its_outputs(groups: int) -> None:
    torch.manual_seed(0)
    model = conv_model(groups)
    module, inputs = OnnxModule(model), torch.randn(4, 4, 9, 9)
    (gram,) = input_grams(model.graph, module, inputs).values()
    rows = module.weights["conv.weight"].detach().flatten(1).unflatten(0, (groups, -1))
    power = torch.einsum("god,gde,goe->go", rows, gram, rows).flatten()
    expected = module(inputs).detach().square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(power, expected, rtol=1e-4, atol=1e-4)
