from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paredown.search.compression.batch_norm import fold_batch_norm, reestimate_batch_norm
from paredown.search.errors import PruningError

Build = Callable[[str], tuple[nn.Module, Tensor]]


def lively(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return norm


class Branches(nn.Module):
    """Normalisation that cannot be folded, beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.read_twice = nn.Conv2d(3, 8, 1)
        self.norm1 = nn.BatchNorm2d(8)
        self.run_twice = nn.Conv2d(8, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm3 = nn.BatchNorm2d(8)
        self.without_statistics = nn.BatchNorm2d(8, track_running_stats=False)
        self.conv2 = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read_twice(self.before(x))
        x = self.norm1(x) + x
        x = self.norm2(self.run_twice(self.run_twice(x)))
        x = self.norm3(self.conv(x))
        out: Tensor = self.without_statistics(self.conv2(x))
        return out


class Branching(Branches):
    """The same with control flow that depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("name", ["residual", "separable", "mlp"])
def test_folding_keeps_the_output_and_the_names(build: Build, name: str) -> None:
    model, data = build(name)
    folded = fold_batch_norm(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(data), model(data), rtol=1e-5, atol=1e-5)
    assert dict(folded.named_modules()).keys() == dict(model.named_modules()).keys()
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    assert all(m.bias is not None for m in folded.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    ],
)
def test_every_convolution_can_take_the_norm(layer: nn.Module) -> None:
    model = nn.Sequential(layer, lively(nn.BatchNorm2d(6, eps=0.1))).eval()
    data = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fold_batch_norm(model)(data), model(data), rtol=1e-5, atol=1e-5)


def test_a_norm_without_weights() -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    model = nn.Sequential(nn.Linear(2, 3), lively(norm)).eval()
    data = torch.randn(4, 2)
    torch.testing.assert_close(fold_batch_norm(model)(data), model(data))


@pytest.mark.parametrize("kind", [Branches, Branching])
def test_what_cannot_be_folded_is_left(kind: type[Branches]) -> None:
    torch.manual_seed(0)
    model = kind()
    data = torch.randn(1, 3, 4, 4)
    model(torch.randn(8, 3, 4, 4))
    model.eval()
    folded = fold_batch_norm(model, data)
    left = {name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert left == {"before", "norm1", "norm2", "without_statistics"}
    with torch.no_grad():
        torch.testing.assert_close(folded(data), model(data), rtol=1e-4, atol=1e-5)


def test_control_flow_needs_an_example() -> None:
    with pytest.raises(PruningError, match=r"'Branching' is not.*Pass `example_input`"):
        fold_batch_norm(Branching())


class Named(nn.Conv2d):
    """A convolution in all but name."""


class Rectified(nn.Conv2d):
    """A convolution and an activation in one."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_a_subclass_with_a_forward_of_its_own_is_left() -> None:
    model = nn.Sequential(
        Named(3, 4, 1), lively(nn.BatchNorm2d(4)), Rectified(4, 4, 1), lively(nn.BatchNorm2d(4))
    ).eval()
    data = torch.randn(1, 3, 4, 4)
    folded = fold_batch_norm(model)
    left = {name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert left == {"3"}
    torch.testing.assert_close(folded(data), model(data), rtol=1e-5, atol=1e-5)


def test_new_statistics_are_those_of_all_inputs() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    lively(norm)
    data = torch.randn(60, 3)
    reestimate_batch_norm(model, data, batch_size=60)
    seen = model[0](data).detach()
    torch.testing.assert_close(norm.running_mean, seen.mean(0))
    torch.testing.assert_close(norm.running_var, seen.var(0))
    assert norm.momentum == 0.1
    assert norm.training
    assert model[2].training


def test_batches_count_alike_and_have_nearly_the_same_size() -> None:
    # 7 samples in batches of 3 would leave one alone, whose variance is undefined.
    norm = nn.BatchNorm1d(2).eval()
    data = torch.randn(7, 2)
    reestimate_batch_norm(norm, data, batch_size=3)
    batches = data.tensor_split(3)
    want = torch.stack([batch.var(0) for batch in batches]).mean(0)
    assert [len(batch) for batch in batches] == [3, 2, 2]
    torch.testing.assert_close(norm.running_var, want)
    assert not norm.training


def test_a_model_without_statistics_does_not_run() -> None:
    reestimate_batch_norm(nn.Linear(3, 3), torch.zeros(1, 99))


def test_no_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`inputs` must hold samples .* got 0 samples and 256"):
        reestimate_batch_norm(nn.BatchNorm1d(2), torch.zeros(0, 2))
