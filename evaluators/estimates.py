"""Robust estimates from noisy timings: functions of arrays, numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z_95 = 1.96


def half_iqr(values: ArrayLike) -> float:
    """Return half the interquartile range: the spread that half of the values lie within."""
    low, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.75))
    return float(high - low) / 2


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median, free of any assumption on the noise.

    It lies between two order statistics, whose ranks follow from the binomial distribution
    (normal approximation, rounded outwards).

    References:
        David, Nagaraja. Order Statistics, 3rd ed., section 7.1. Wiley, 2003.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    reach = _Z_95 * math.sqrt(n) / 2
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach) - 1)
    return float(ordered[low]), float(ordered[high])


def round_ratios(candidate_us: ArrayLike, baseline_us: ArrayLike) -> NDArray[np.float64]:
    """Return candidate / baseline for each pair of neighbouring rounds.

    The order within a round is swapped from round to round, so the geometric mean of two
    neighbours is free of whatever favours the first or the second place, and of linear drift.
    A last round without a partner counts alone.

    Raises:
        ValueError: If the two sides differ in length, or are empty.
    """
    candidate = np.asarray(candidate_us, np.float64)
    baseline = np.asarray(baseline_us, np.float64)
    if candidate.shape != baseline.shape or candidate.ndim != 1 or not len(candidate):
        raise ValueError(
            "Candidate and baseline must have one time per round each, "
            f"but got the shapes {candidate.shape} and {baseline.shape}."
        )
    logs = np.log(candidate / baseline)
    even = len(logs) - len(logs) % 2
    pairs = logs[:even].reshape(-1, 2).mean(axis=1)
    return np.asarray(np.exp(np.concatenate([pairs, logs[even:]])))


def relative_half_width(
    candidate_us: Sequence[float], baseline_us: Sequence[float] | None
) -> float:
    """Return half the 95 % interval over its median: of the ratio, or of the time alone."""
    values: ArrayLike = candidate_us
    if baseline_us is not None:
        values = round_ratios(candidate_us, baseline_us)
    low, high = median_interval(values)
    return (high - low) / 2 / float(np.median(np.asarray(values)))


def is_settled(
    candidate_us: Sequence[float], baseline_us: Sequence[float] | None, tolerance: float
) -> bool:
    """Say whether the median is known to within `tolerance`, relative, at 95 % confidence."""
    return relative_half_width(candidate_us, baseline_us) <= tolerance
