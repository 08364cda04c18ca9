"""Gaussian-process regression for a few hundred points, in numpy: fast enough for each trial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

_ROOT5 = 5.0**0.5
_JITTER = 1e-8
_MAX_LOG = 7.0  # of a length scale: the input has no effect


@dataclass(frozen=True, slots=True, eq=False)
class Hyperparameters:
    """What the likelihood decides, as logarithms.

    Attributes:
        lengths: Length scale of each input.
        signal: Variance of the function.
        noise: Variance of an observation.
    """

    lengths: Floats
    signal: float
    noise: float

    @classmethod
    def initial(cls, n_inputs: int) -> Hyperparameters:
        """Return the most likely values before any data."""
        return cls(_expected_lengths(n_inputs), 0.0, -5.0)

    def _vector(self) -> Floats:
        return np.concatenate([self.lengths, [self.signal, self.noise]])


def _expected_lengths(n_inputs: int) -> Floats:
    # Distances grow with the root of the dimension, so the lengths have to.
    return np.full(n_inputs, 0.5 * np.log(max(n_inputs, 1)))


class GaussianProcess:
    """A function of several inputs with Matern-5/2 covariance, one length scale for each.

    Args:
        inputs: Points, shape `(n, n_inputs)`, each input about between 0 and 1.
        values: Observations with mean about 0 and variance about 1, shape `(n,)`.
        hyperparameters: Those of the covariance.

    References:
        Rasmussen, Williams. Gaussian Processes for Machine Learning. MIT Press, 2006.
    """

    def __init__(self, inputs: Floats, values: Floats, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self._scaled = inputs / np.exp(hyperparameters.lengths)
        self._signal = float(np.exp(hyperparameters.signal))
        covariance = self._signal * _matern(_distances(self._scaled, self._scaled))[0]
        covariance[np.diag_indices(len(inputs))] += np.exp(hyperparameters.noise) + _JITTER
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, values)

    def mean(self, inputs: Floats) -> Floats:
        """Return the expected value at points of shape `(n, n_inputs)`."""
        return np.asarray(self._cross(inputs) @ self._weights)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the function, without the noise."""
        cross = self._cross(inputs)
        half = solve_triangular(self._factor[0], cross.T, lower=True, check_finite=False)
        variance = np.maximum(self._signal - (half**2).sum(axis=0), 1e-12)
        return np.asarray(cross @ self._weights), np.sqrt(variance)

    def _cross(self, inputs: Floats) -> Floats:
        scaled = inputs / np.exp(self.hyperparameters.lengths)
        return np.asarray(self._signal * _matern(_distances(scaled, self._scaled))[0])


def fit(
    inputs: Floats, values: Floats, start: Hyperparameters, max_evaluations: int = 40
) -> Hyperparameters:
    """Return the hyperparameters that are most likely, near a start.

    Length scales have a log-normal prior that grows with the dimension: without it, as many
    scales as there are points would fit anything.

    Args:
        inputs: Points, shape `(n, n_inputs)`.
        values: Observations, shape `(n,)`.
        start: Where to begin, such as the last result.
        max_evaluations: Of the likelihood; each costs `O(n^3)`.

    References:
        Hvarfner, Hellsten, Nardi. Vanilla Bayesian optimization performs great in high
        dimensions. ICML 2024.
    """
    expected = np.append(_expected_lengths(inputs.shape[1]), [0.0, -5.0])
    deviations = np.append(np.full(inputs.shape[1], 1.2), [1.0, 2.0])
    bounds = [(-4.0, _MAX_LOG)] * inputs.shape[1] + [(-6.0, 4.0), (-14.0, 1.0)]

    def cost(vector: Floats) -> tuple[float, Floats]:
        value, gradient = _negative_log_likelihood(inputs, values, vector)
        gap = (vector - expected) / deviations
        return value + 0.5 * float(gap @ gap), gradient + gap / deviations

    begin = np.concatenate([start.lengths, [start.signal, start.noise]])
    begin = np.clip(begin, [low for low, _ in bounds], [high for _, high in bounds])
    found = minimize(
        cost, begin, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxfun": max_evaluations},
    )  # fmt: skip
    vector = found.x if np.isfinite(found.fun) else begin
    return Hyperparameters(vector[:-2], float(vector[-2]), float(vector[-1]))


def _negative_log_likelihood(
    inputs: Floats, values: Floats, vector: Floats
) -> tuple[float, Floats]:
    """Return the value and its gradient by the hyperparameters."""
    lengths, signal, noise = vector[:-2], np.exp(vector[-2]), np.exp(vector[-1])
    scaled = inputs / np.exp(lengths)
    matern, slope = _matern(_distances(scaled, scaled))
    covariance = signal * matern
    covariance[np.diag_indices(len(inputs))] += noise + _JITTER
    try:
        factor = cho_factor(covariance, lower=True)
    except np.linalg.LinAlgError:
        return np.inf, np.zeros_like(vector)
    weights = cho_solve(factor, values)
    value = 0.5 * float(values @ weights) + float(np.log(np.diag(factor[0])).sum())
    inner = np.outer(weights, weights) - cho_solve(factor, np.eye(len(values)))
    # The derivative by a log length is the slope times the squared distance in that input.
    pull = signal * slope * inner
    by_length = 2.0 * (pull.sum(axis=1) @ scaled**2 - ((pull @ scaled) * scaled).sum(axis=0))
    by_signal = signal * float((inner * matern).sum())
    by_noise = noise * float(np.trace(inner))
    return value, -0.5 * np.concatenate([by_length, [by_signal, by_noise]])


def _distances(one: Floats, other: Floats) -> Floats:
    """Return squared distances."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None]
    return np.asarray(np.maximum(squares - 2.0 * one @ other.T, 0.0))


def _matern(squared: Floats) -> tuple[Floats, Floats]:
    """Return the correlation, and what its derivative by a log length has per squared distance."""
    root = _ROOT5 * np.sqrt(squared)
    decay = np.exp(-root)
    return (1.0 + root + root**2 / 3.0) * decay, (5.0 / 3.0) * (1.0 + root) * decay
