from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from paredown.search.gaussian_process import GaussianProcess, Hyperparameters, fit


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points and a function that depends on the first input alone."""
    points = np.random.default_rng(seed).random((n, 4))
    return points, np.sin(6.0 * points[:, 0])


def test_it_goes_through_its_points_and_is_unsure_elsewhere() -> None:
    points, values = sample(15)
    process = GaussianProcess(points, values, Hyperparameters(np.zeros(4), 0.0, -12.0))
    mean, deviation = process.predict(points)
    assert mean == pytest.approx(values, abs=1e-3)
    assert deviation.max() < 0.01
    assert process.predict(np.full((1, 4), 5.0))[1] == pytest.approx(1.0, abs=0.05)
    assert process.mean(points).tolist() == pytest.approx(mean.tolist())


def test_one_point_by_hand() -> None:
    # Matern-5/2 at distance 1, noise of 1/4: k / (1 + 1/4).
    root = 5.0**0.5
    k = (1 + root + 5 / 3) * np.exp(-root)
    noise = float(np.log(0.25))
    process = GaussianProcess(np.zeros((1, 1)), np.ones(1), Hyperparameters(np.zeros(1), 0, noise))
    mean, deviation = process.predict(np.ones((1, 1)))
    assert mean[0] == pytest.approx(k / 1.25)
    assert deviation[0] == pytest.approx(np.sqrt(1 - k**2 / 1.25))


def test_fitting_finds_the_inputs_that_matter() -> None:
    points, values = sample(40)
    found = fit(points, values / values.std(), Hyperparameters.initial(4))
    assert found.lengths[0] < found.lengths[1:].min() - 1.0
    new, truth = sample(50, seed=1)
    guess = GaussianProcess(points, values, found).mean(new)
    assert np.abs(guess - truth).max() < 0.1


def test_a_fit_is_where_the_likelihood_is_flat() -> None:
    points, values = sample(20)
    noisy = values + np.random.default_rng(1).normal(size=20) * 0.3
    found = fit(points, noisy, Hyperparameters.initial(4), max_evaluations=500)
    start = np.concatenate([found.lengths, [found.signal, found.noise]])

    def cost(vector: np.ndarray) -> float:
        """Return the negative log posterior, from its definition."""
        gap = (points[:, None] - points[None]) / np.exp(vector[:4])
        r = np.sqrt(5 * (gap**2).sum(axis=2))
        k = np.exp(vector[4]) * (1 + r + r**2 / 3) * np.exp(-r)
        k += (np.exp(vector[5]) + 1e-8) * np.eye(20)
        likelihood = 0.5 * noisy @ np.linalg.solve(k, noisy) + 0.5 * np.linalg.slogdet(k)[1]
        expected = np.append(np.full(4, 0.5 * np.log(4)), [0.0, -5.0])
        scale = np.append(np.full(4, 1.2), [1.0, 2.0])
        return float(likelihood + 0.5 * (((vector - expected) / scale) ** 2).sum())

    slope = approx_fprime(start, cost, 1e-6)
    assert np.abs(slope).max() < 0.05
