import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import (
    AccuracyError,
    evaluate,
    evaluate_in_batches,
    predict,
    sqnr_db,
    top1_accuracy,
    top1_agreement,
)
from paredown.evaluators.strata import Strata
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


def coin_data(n: int, share: float, seed: int) -> Data:
    """Inputs whose class an identity predicts rightly with a given probability."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (n,), generator=rng)
    is_right = torch.rand(n, generator=rng) < share
    return Data(
        nn.functional.one_hot(torch.where(is_right, targets, 1 - targets), 2).float(), targets
    )


@pytest.mark.parametrize(("step", "counts"), [(40, [40, 80, 100]), (200, [100]), (50, [50, 100])])
def test_partial_accuracies_end_with_that_of_evaluate(step: int, counts: list[int]) -> None:
    data = coin_data(100, 0.8, 0)
    found = list(evaluate_in_batches(nn.Identity(), data, step=step))
    assert [part.n_images for part in found] == counts
    assert found[-1].accuracy == evaluate(nn.Identity(), data)
    assert found[-1].half_width == 0.0
    assert found == list(evaluate_in_batches(nn.Identity(), data, step=step))


def test_partial_accuracies_see_the_samples_of_a_sorted_set_in_another_order() -> None:
    targets = torch.arange(1000) // 500
    data = Data(torch.tensor([[1.0, 0.0]]).expand(1000, 2), targets)  # the first half is right
    first = next(evaluate_in_batches(nn.Identity(), data, step=200))
    assert abs(first.accuracy - 0.5) <= first.half_width < 0.08


@pytest.mark.parametrize("is_share", [True, False])
def test_intervals_hold_the_whole_as_often_as_they_say(is_share: bool) -> None:
    def mean(outputs: Tensor, targets: Tensor) -> float:
        return top1_accuracy(outputs, targets)

    n_inside = 0
    for seed in range(100):
        data = coin_data(1000, 0.9, seed)
        whole = evaluate(nn.Identity(), data)
        parts = evaluate_in_batches(
            nn.Identity(),
            data,
            top1_accuracy if is_share else mean,
            step=50,
            strata=Strata.single(len(data), seed),
        )
        part = next(part for part in parts if part.n_images == 400)
        n_inside += abs(part.accuracy - whole) <= part.half_width
    assert 89 <= n_inside <= 99


def test_few_parts_say_nothing_about_a_metric_that_is_no_share() -> None:
    data = Data(torch.ones(10, 1), torch.ones(10, 1))
    parts = list(evaluate_in_batches(nn.Identity(), data, lambda x, y: 0.5, step=2))
    assert [part.half_width for part in parts] == [*[float("inf")] * 3, 0.0, 0.0]


def test_agreement_compares_the_largest_outputs() -> None:
    reference = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.5]])
    outputs = torch.tensor([[5.0, 6.0], [0.0, 3.0], [0.0, 9.0]])
    assert top1_agreement(outputs, reference) == pytest.approx(2 / 3)


def test_sqnr_of_a_hand_computed_case() -> None:
    reference = torch.tensor([[3.0, 4.0]])
    assert sqnr_db(reference + torch.tensor([[0.3, 0.4]]), reference) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == 200.0


def test_data_of_a_model_agree_with_it() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    data = Data.from_model(model, torch.randn(6, 4))
    assert evaluate(model, data, top1_agreement) == 1.0
