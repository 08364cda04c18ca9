"""Exact cases, and how the estimates hold on the noise that shared machines make."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paredown.evaluators.estimates import (
    half_iqr,
    is_settled,
    median_interval,
    relative_half_width,
    round_ratios,
)

Floats = NDArray[np.float64]

TRUE_RATIO = 0.62
BASELINE_US = 100.0
N_ROUNDS = 40

times = arrays(np.float64, st.integers(1, 60), elements=st.floats(1.0, 1e6))


def rounds(rng: np.random.Generator, window: Floats, first_is_slower: float = 0.0) -> Floats:
    """Return candidate and baseline times under a common slowdown `window` per round."""
    place = np.array([[1 + first_is_slower, 1.0], [1.0, 1 + first_is_slower]])
    order = place[np.arange(len(window)) % 2].T
    clean = np.array([[TRUE_RATIO * BASELINE_US], [BASELINE_US]])
    noise = rng.normal(1, 0.003, (2, len(window)))
    return np.asarray(clean * window * order * noise)


def test_half_iqr_by_hand() -> None:
    assert half_iqr([1, 2, 3, 4, 5]) == 1.0


def test_median_interval_by_hand() -> None:
    # n = 25: ranks floor(12.5 - 4.9) = 7 and ceil(12.5 + 4.9) - 1 = 17, counted from 0.
    assert median_interval(np.arange(25.0)) == (7.0, 17.0)
    assert median_interval([3.0]) == (3.0, 3.0)


def test_median_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.lognormal(size=(2000, 30))  # the median is 1
    intervals = np.array([median_interval(sample) for sample in samples])
    covered = (intervals[:, 0] <= 1) & (1 <= intervals[:, 1])
    assert 0.95 <= covered.mean() <= 0.99


def test_neighbours_cancel_the_favour_of_a_place() -> None:
    ratios = round_ratios([2.0, 1.0, 8.0], [1.0, 2.0, 2.0])
    np.testing.assert_allclose(ratios, [1.0, 4.0])


@pytest.mark.parametrize(("candidate", "baseline"), [([1.0], [1.0, 2.0]), ([], []), (1.0, 1.0)])
def test_ratios_need_one_time_per_round(candidate: object, baseline: object) -> None:
    with pytest.raises(ValueError, match="must have one time per round"):
        round_ratios(candidate, baseline)  # type: ignore[arg-type]  # what is tested


@given(values=times)
def test_interval_holds_the_median(values: Floats) -> None:
    low, high = median_interval(values)
    assert values.min() <= low <= np.median(values) <= high <= values.max()


@given(values=times, factor=st.floats(0.01, 100))
def test_common_slowdown_leaves_ratios_alone(values: Floats, factor: float) -> None:
    baseline = values[::-1]
    ratios = round_ratios(values, baseline)
    np.testing.assert_allclose(round_ratios(factor * values, factor * baseline), ratios)
    np.testing.assert_allclose(round_ratios(values, factor * values), 1 / factor)


def drift(rng: np.random.Generator) -> Floats:
    return np.linspace(1.0, 1.5, N_ROUNDS)


def bimodal(rng: np.random.Generator) -> Floats:
    return np.where(np.arange(N_ROUNDS) // 7 % 2 == 0, 1.0, 1.8)


def random_walk(rng: np.random.Generator) -> Floats:
    return np.exp(np.cumsum(rng.normal(0, 0.05, N_ROUNDS)))


@pytest.mark.parametrize("window", [drift, bimodal, random_walk])
@pytest.mark.parametrize("seed", range(5))
def test_ratio_survives_a_machine_that_changes_its_speed(window: object, seed: int) -> None:
    assert callable(window)
    rng = np.random.default_rng(seed)
    candidate, baseline = rounds(rng, window(rng), first_is_slower=0.05)
    ratio = np.median(round_ratios(candidate, baseline))
    assert ratio == pytest.approx(TRUE_RATIO, rel=0.005)
    assert relative_half_width(list(candidate), list(baseline)) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_ratio_survives_outliers_on_either_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate, baseline = rounds(rng, np.ones(N_ROUNDS))
    candidate[rng.choice(N_ROUNDS, 4, replace=False)] *= 10
    baseline[rng.choice(N_ROUNDS, 4, replace=False)] *= 10
    assert np.median(round_ratios(candidate, baseline)) == pytest.approx(TRUE_RATIO, rel=0.005)


def test_independent_noise_is_not_settled() -> None:
    rng = np.random.default_rng(0)
    candidate, baseline = rng.uniform(50, 150, (2, N_ROUNDS)).tolist()
    assert not is_settled(candidate, baseline, 0.02)
    assert not is_settled(candidate, None, 0.02)
    assert is_settled([100.0] * 9, None, 0.02)
