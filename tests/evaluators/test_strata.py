from functools import cache

import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import (
    Metric,
    evaluate_in_batches,
    make_strata,
    sqnr_db,
    top1_accuracy,
    top1_agreement,
)
from paredown.evaluators.strata import Strata
from paredown.evaluators.task import Data

N, N_SEEN = 2000, 400


@cache
def scores_and_labels(share: float = 0.9, n: int = N) -> tuple[Tensor, Tensor]:
    """Return scores of ten classes, the largest of which is right for about a share of samples."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (n,), generator=rng)
    scores = torch.randn(n, 10, generator=rng)
    scores[torch.arange(n), labels] += torch.rand(n, generator=rng) * 10 * share**2
    return scores, labels


def compressed(scores: Tensor, seed: int, noise: float = 0.5) -> Tensor:
    """Return scores as a compressed model has them: a little off."""
    rng = torch.Generator().manual_seed(seed)
    return scores + noise * torch.randn(scores.shape, generator=rng)


def is_right(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == labels).double()


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 7, N])
def test_every_sample_has_a_turn_and_all_of_them_leave_no_doubt(share: float, n: int) -> None:
    scores, labels = scores_and_labels(share, n)
    strata = Strata.by_margin(scores, labels, seed=1)
    assert torch.equal(strata.order.sort().values, torch.arange(n))
    assert set(strata.groups.tolist()) == set(range(len(strata.deviations)))
    right = is_right(compressed(scores, 0), labels)[strata.order]
    value, error = strata.estimate(right)
    assert value == pytest.approx(float(right.mean()))
    assert error == 0.0


def test_order_depends_on_the_seed_alone() -> None:
    one, same, other = (Strata.by_margin(*scores_and_labels(), seed).order for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_first_samples_hold_some_of_every_group_and_most_of_the_unsure_ones() -> None:
    scores, labels = scores_and_labels()
    strata = Strata.by_margin(scores, labels, seed=0)
    first = strata.groups[strata.order[:N_SEEN]]
    shares = torch.bincount(first) / torch.bincount(strata.groups)
    assert shares.min() > 0.05
    right, order = scores.gather(1, labels[:, None])[:, 0], scores.sort(dim=1).values
    margins = (right - torch.where(right == order[:, -1], order[:, -2], order[:, -1])).abs()
    assert margins[strata.order[:N_SEEN]].median() < 0.5 * margins.median()


def deviations(noise: float, strata: Strata) -> tuple[Tensor, Tensor]:
    """Return by how much estimates of some compressed models are off, and how much they say."""
    scores, labels = scores_and_labels()
    off, said = [], []
    for seed in range(200):
        right = is_right(compressed(scores, seed, noise), labels)
        value, error = strata.estimate(right[strata.order[:N_SEEN]])
        off.append(value - float(right.mean()))
        said.append(error)
    return torch.tensor(off), torch.tensor(said)


@pytest.mark.parametrize(("noise", "share"), [(0.1, 0.5), (0.5, 0.7), (2.0, 1.3)])
def test_errors_are_as_large_as_it_says_and_smaller_than_in_random_order(
    noise: float, share: float
) -> None:
    seeds = range(8)  # of the order, which all candidates of a study share
    found = [deviations(noise, Strata.by_margin(*scores_and_labels(), seed)) for seed in seeds]
    off, said = (torch.cat(parts) for parts in zip(*found, strict=True))
    root_mean_square = off.square().mean().sqrt()
    assert 0.4 * said.mean() < root_mean_square < 1.2 * said.mean()
    assert ((off.abs() > 2.6 * said).double().mean()) < 0.02
    random, _ = deviations(noise, Strata.single(N, 0))
    assert root_mean_square < share * random.square().mean().sqrt()


def test_a_surprise_is_found() -> None:
    scores, labels = scores_and_labels()
    broken = scores.roll(1, dims=1)  # a model that says the next class
    strata = Strata.by_margin(scores, labels, seed=0)
    right = is_right(broken, labels)
    value, error = strata.estimate(right[strata.order[:N_SEEN]])
    assert abs(value - float(right.mean())) < 2.6 * error
    assert value < 0.2


@pytest.mark.parametrize(
    ("metric", "targets"),
    [(top1_accuracy, scores_and_labels()[1]), (top1_agreement, scores_and_labels()[0])],
)
def test_partial_accuracies_use_the_margins(metric: Metric, targets: Tensor) -> None:
    scores, _ = scores_and_labels()
    data = Data(compressed(scores, 3), targets)
    strata = make_strata(scores, data, metric)
    assert len(strata.deviations) > 5
    *parts, whole = evaluate_in_batches(nn.Identity(), data, metric, strata=strata)
    assert whole.accuracy == metric(data.inputs, targets)
    assert all(abs(p.accuracy - whole.accuracy) <= 2 * p.half_width for p in parts)
    half_widths = [part.half_width for part in parts]
    assert half_widths[-1] < half_widths[0] / 3
    plain = next(evaluate_in_batches(nn.Identity(), data, metric))
    assert half_widths[0] < 0.7 * plain.half_width


@pytest.mark.parametrize(
    ("metric", "outputs"), [(sqnr_db, torch.randn(20, 3)), (top1_accuracy, torch.randn(20, 3, 4))]
)
def test_order_is_random_where_nothing_is_known(metric: Metric, outputs: Tensor) -> None:
    data = Data(torch.zeros(20, 1), torch.zeros(20, 4, dtype=torch.long))
    assert make_strata(outputs, data, metric).deviations == (0.5,)
