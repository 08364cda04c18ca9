"""When a candidate is not worth measuring to its end.

Optuna's pruners compare learning curves of one objective. Here each objective becomes known at a
time of its own: a candidate is given up as soon as even the best that it can still turn out to be
breaks a constraint, or is dominated by a trial that is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
"""Of the interval around an accuracy: a candidate is looked at some forty times, and given up
wrongly where it is about as good as one that is complete, which costs little."""

LATENCY_DEVIATIONS = 3.0
"""Of the latency model, below its mean: what a candidate may be expected to reach at best."""

DRAFT_DEVIATIONS = 2.0
"""Beyond what a model is expected to reach from its draft: the best that it may reach."""

_LEAST_DRAFTS, _MOST_DRAFTS = 10, 30  # that something is said from


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """What a candidate is compared with.

    Attributes:
        costs: Feasible complete trials, shape `(n, n_objectives)`: accuracy (negated where higher
            is better), bytes, and microseconds on each device.
        numbers: Their numbers.
        limits: Costs that may not be exceeded, infinite where there is no constraint.
        higher_is_better: Whether accuracy is negated.
        latencies_us: Least latency that is expected of the candidate on each device, 0 where
            nothing is known.
    """

    costs: NDArray[np.float64]
    numbers: Sequence[int]
    limits: tuple[float, ...] = (inf, inf, inf)
    higher_is_better: bool = True
    latencies_us: tuple[float, ...] = (0.0,)

    def verdict(
        self,
        size_bytes: float,
        latencies_us: Sequence[float] | None = None,
        accuracy: float | None = None,
    ) -> str | None:
        """Say why a candidate need not be measured further, or None if it must be.

        Args:
            size_bytes: Its size.
            latencies_us: Least latencies that it can have; None takes what was expected.
            accuracy: Best accuracy that it can have; None if nothing is known.
        """
        sign = -1.0 if self.higher_is_better else 1.0
        cost = -inf if accuracy is None else sign * accuracy
        latencies = self.latencies_us if latencies_us is None else latencies_us
        best = np.array([cost, size_bytes, *latencies])
        names = ("accuracy", "size", *["latency"] * len(latencies))
        for name, value, limit in zip(names, best, self.limits, strict=True):
            if value > limit:
                return (
                    f"its {name} is {abs(value):.6g} at best, beyond the bound of {abs(limit):.6g}"
                )
        if not len(self.costs):
            return None
        beaten = (self.costs <= best).all(axis=1) & (self.costs < best).any(axis=1)
        if not beaten.any():
            return None
        number = self.numbers[int(np.flatnonzero(beaten)[0])]
        reached = "any" if accuracy is None else f"{accuracy:.4f} at best"
        return (
            f"trial {number} is better in everything (accuracy {reached}, {size_bytes:.0f} bytes)"
        )


class DraftAccuracies:
    """What accuracy models reach when they are done, by how far their drafts are from the aim.

    A straight line through the models that are done and whose drafts were about as far; further
    away it bends. Whatever they have in common, such as that the last layer is still to be
    fitted, is in the line, and how they differ in that is in its spread. What is further away
    than all of them reaches no more than the furthest.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, distance: float, accuracy: float) -> None:
        """Learn from a model that is done."""
        self._pairs.append((distance, accuracy))

    def predict(self, distance: float) -> tuple[float, float] | None:
        """Return mean and standard deviation of what is reached; None while little is known."""
        if len(self._pairs) < _LEAST_DRAFTS:
            return None
        distance = min(distance, max(pair[0] for pair in self._pairs))
        pairs = sorted(self._pairs, key=lambda pair: abs(pair[0] - distance))[:_MOST_DRAFTS]
        distances, accuracies = np.array(pairs).T
        n, places, here = len(pairs), distances - distances.mean(), distance - distances.mean()
        spread = max(float(places @ places), 1e-12)
        slope = float(places @ accuracies) / spread
        left = accuracies - accuracies.mean() - slope * places
        variance = float(left @ left) / (n - 2) * (1 + 1 / n + here**2 / spread)
        return float(accuracies.mean() + slope * here), float(np.sqrt(variance))


class StoppedEarly(Exception):
    """A candidate was given up.

    Attributes:
        reason: Why.
        estimates: What is known: accuracy of the samples that were run, size, and latencies.
    """

    def __init__(self, reason: str, estimates: tuple[float | None, ...]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.estimates = estimates
