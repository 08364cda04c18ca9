import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import AccuracyError, evaluate, predict, top1_accuracy
from paredown.evaluators.task import Data


def test_top1_accuracy_of_a_hand_computed_case() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.5], [9.0, 1.0]])
    assert top1_accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75


def test_top1_accuracy_counts_pixels_of_segmentations() -> None:
    outputs = torch.zeros(1, 2, 2, 2)
    outputs[0, 1, 0] = 1.0
    assert top1_accuracy(outputs, torch.tensor([[[1, 1], [0, 1]]])) == 0.75


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_predict_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 3), torch.randn(10, 4)
    torch.testing.assert_close(predict(module, inputs, batch_size), module(inputs).detach())


def test_predict_gives_every_submodule_its_mode_back() -> None:
    frozen = nn.BatchNorm1d(4).eval()
    module = nn.Sequential(frozen, nn.Dropout(0.9)).train()
    frozen.eval()
    outputs = predict(module, torch.ones(5, 4))
    assert (outputs == outputs[0]).all(), "dropout must be off"
    assert module.training
    assert module[1].training
    assert not frozen.training


@pytest.mark.parametrize(("n", "batch_size"), [(0, 8), (3, 0)])
def test_predict_needs_samples_and_a_batch(n: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="must"):
        predict(nn.Identity(), torch.zeros(n, 2), batch_size)


def test_evaluate_applies_the_metric_to_all_samples_at_once() -> None:
    data = Data(torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] + 2)

    def largest_error(outputs: Tensor, targets: Tensor) -> float:
        assert len(outputs) == 10
        return (outputs - targets).abs().max().item()

    assert evaluate(nn.Identity(), data, largest_error, batch_size=3) == 2.0


def test_evaluate_refuses_outputs_that_are_not_finite() -> None:
    inputs = torch.ones(4, 2)
    inputs[2, 0] = torch.nan
    with pytest.raises(AccuracyError, match="1 of 4 samples"):
        evaluate(nn.Identity(), Data(inputs, torch.zeros(4, dtype=torch.long)))


def test_evaluate_refuses_a_metric_that_is_not_finite() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> float:
        return float("nan")

    data = Data(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(AccuracyError, match="'broken' returned nan"):
        evaluate(nn.Identity(), data, broken)
