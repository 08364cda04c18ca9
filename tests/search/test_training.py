import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.task import Data
from paredown.search.training import (
    TrainingError,
    default_loss,
    distillation_loss,
    train,
)


def two_clouds(n: int = 256) -> Data:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 2
    inputs = torch.randn(n, 4, generator=generator) + 2.0 * targets[:, None]
    return Data(inputs, targets)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_and_ends_in_evaluation_mode(optimizer: str) -> None:
    module, data = model(), two_clouds()
    train(module, data, epochs=8, lr=0.05, batch_size=32, optimizer=optimizer)  # type: ignore[arg-type]  # a parameter
    assert evaluate(module, data) > 0.95
    assert not any(m.training for m in module.modules())


def weights_after(seed: int, disturb: bool = False) -> Tensor:
    module = model()
    if disturb:
        torch.rand(13)
    train(module, two_clouds(), epochs=1, lr=0.05, batch_size=32, seed=seed)
    return next(module.parameters()).detach()


def test_training_depends_on_its_seed_and_not_on_the_global_one() -> None:
    assert torch.equal(weights_after(1), weights_after(1, disturb=True))
    assert not torch.equal(weights_after(1), weights_after(2))


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(nn.Linear(4, 2), two_clouds(), epochs=0, lr=1.0)
    module = model()
    torch.manual_seed(5)
    train(module, two_clouds(), epochs=1, lr=0.05)
    assert torch.equal(torch.rand(3), expected)


def test_augmentation_sees_every_batch_and_reports_come_after_epochs() -> None:
    shapes: list[int] = []
    lines: list[str] = []

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        shapes.append(len(inputs))
        return inputs + 0.01 * torch.randn(inputs.shape, generator=generator)

    train(
        model(),
        two_clouds(100),
        epochs=2,
        lr=0.05,
        batch_size=32,
        augment=augment,
        report=lines.append,
    )
    assert shapes == [32] * 6
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_data_smaller_than_a_batch_are_one_batch() -> None:
    module = nn.Linear(4, 2)
    before = module.weight.detach().clone()
    train(module, two_clouds(10), epochs=1, lr=0.05, batch_size=64)
    assert not torch.equal(module.weight, before)


def test_frozen_parameters_stay() -> None:
    module = model()
    first = next(module.parameters()).requires_grad_(False)
    before = first.clone()
    train(module, two_clouds(), epochs=1, lr=0.05)
    assert torch.equal(first, before)


def test_a_loss_that_diverges_is_an_error() -> None:
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        train(nn.Linear(4, 2), two_clouds(), epochs=2, lr=1e30)


@pytest.mark.parametrize(
    "arguments", [{"epochs": -1}, {"lr": 0.0}, {"batch_size": 0}, {"optimizer": "newton"}]
)
def test_arguments_are_checked(arguments: dict[str, object]) -> None:
    values: dict[str, object] = {"epochs": 1, "lr": 0.1} | arguments
    with pytest.raises(ValueError, match="must be"):
        train(model(), two_clouds(), **values)  # type: ignore[arg-type]  # wrong on purpose


def test_default_loss_follows_the_kind_of_targets() -> None:
    outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert default_loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(0.6931, abs=1e-4)
    assert default_loss(outputs, torch.ones(2, 2)).item() == 1.0


def test_distillation_is_zero_where_the_student_is_the_teacher() -> None:
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(teacher + 2.0, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(-teacher, teacher).item() > 0.1
    assert distillation_loss(torch.zeros(4, 1), torch.ones(4, 1)).item() == 1.0
