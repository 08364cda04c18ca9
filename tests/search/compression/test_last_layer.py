import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.search.compression.last_layer import fit_last_layer
from paredown.search.compression.quantization import LayerValues
from paredown.search.training import distance_to, distillation_loss


def make(n_outputs: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs of two kinds, what another layer makes of them, and a layer to begin with."""
    generator = torch.Generator().manual_seed(0)
    inputs = 2 + torch.randn(500, 12, generator=generator)
    wanted = inputs @ torch.randn(n_outputs, 12, generator=generator).T
    weight = 0.3 * torch.randn(n_outputs, 12, generator=generator)
    return inputs, wanted, weight, torch.zeros(n_outputs)


def outputs(inputs: Tensor, values: LayerValues) -> Tensor:
    assert values.weight is not None
    weight = values.weight if values.gain is None else values.weight * values.gain[:, None]
    return F.linear(inputs, weight, values.bias)


@pytest.mark.parametrize("n_outputs", [1, 5])
def test_fit_comes_near(n_outputs: int) -> None:
    inputs, wanted, weight, bias = make(n_outputs)
    before = distillation_loss(F.linear(inputs, weight, bias), wanted)
    fitted = fit_last_layer(inputs, distance_to(wanted), weight, bias, None)
    assert distillation_loss(outputs(inputs, fitted), wanted) < 0.05 * before


def test_rounding_is_made_up_for() -> None:
    inputs, wanted, weight, bias = make()
    fitted = fit_last_layer(inputs, distance_to(wanted), weight, bias, 3)
    assert fitted.weight is not None
    assert fitted.scale is not None
    steps = fitted.weight / fitted.scale[:, None]
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert steps.round().abs().max() <= 3
    whole = fit_last_layer(inputs, distance_to(wanted), weight, bias, None)
    assert whole.weight is not None
    nearest = (whole.weight / fitted.scale[:, None]).round().clamp(-3, 3) * fitted.scale[:, None]
    plain = F.linear(inputs, nearest, whole.bias)
    found = distillation_loss(outputs(inputs, fitted), wanted)
    assert found < 0.8 * distillation_loss(plain, wanted)


def test_what_the_samples_do_not_show_stays() -> None:
    inputs, wanted, weight, bias = make()
    inputs[:, 3] = 0.0  # a channel that never answers here
    fitted = fit_last_layer(inputs, distance_to(wanted), weight, bias, None)
    assert fitted.weight is not None
    assert torch.equal(fitted.weight[:, 3], weight[:, 3])


def test_result_does_not_depend_on_gradients_being_on() -> None:
    inputs, wanted, weight, bias = make()
    arguments = inputs, distance_to(wanted), weight, bias
    with torch.no_grad():
        off = fit_last_layer(*arguments, 4)
    on = fit_last_layer(*arguments, 4)
    assert on.weight is not None
    assert off.weight is not None
    assert torch.equal(on.weight, off.weight)
    assert not on.weight.requires_grad
