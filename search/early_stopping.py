"""When a candidate is not worth measuring to its end.

Optuna's pruners compare learning curves of one objective. Here each objective becomes known at a
time of its own, more and more surely: a candidate is given up as soon as it almost certainly
breaks a constraint, or is dominated by a trial that is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

CERTAINTY = 0.95
"""From which a candidate is given up. What is given up wrongly is about as good as others that are
complete: of two studies with 100 trials each (ResNet-8 on Fashion-MNIST, all measured whole, and
then gone through with a gate) it lost less than 0.1 % of the hypervolume; with 0.98 nothing, for
3 % of the time."""

_LEAST_DRAFTS, _MOST_DRAFTS = 10, 30  # that something is said from
_N_DRAWS = 256


@dataclass(frozen=True, slots=True)
class Belief:
    """What is known of a quantity: a normal distribution."""

    mean: float
    deviation: float = 0.0

    def __str__(self) -> str:
        """Write it with its deviation."""
        spread = f" ± {self.deviation:.2g}" if self.deviation else ""
        return f"{self.mean:.6g}{spread}"

    def with_evidence(self, other: Belief | None) -> Belief:
        """Return what is known from two independent sources."""
        if other is None or other.deviation == inf or self.deviation == 0.0:
            return self
        if self.deviation == inf or other.deviation == 0.0:
            return other
        own, others = self.deviation**-2, other.deviation**-2
        mean = (own * self.mean + others * other.mean) / (own + others)
        return Belief(mean, 1 / sqrt(own + others))

    def chance_above(self, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how likely the quantity is above each of some limits."""
        if self.deviation == 0.0:
            return (self.mean > limits).astype(np.float64)
        if self.deviation == inf:
            return np.where(np.isinf(limits), 0.0, 0.5)
        return np.asarray(ndtr((self.mean - limits) / self.deviation))


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """What a candidate is compared with.

    Attributes:
        costs: Feasible complete trials, shape `(n, n_objectives)`: accuracy (negated where higher
            is better), bytes, and microseconds on each device.
        numbers: Their numbers.
        limits: Costs that may not be exceeded, infinite where there is no constraint.
        higher_is_better: Whether accuracy is negated.
        latencies_us: What is expected of the candidate on each device; 0 where nothing is known.
    """

    costs: NDArray[np.float64]
    numbers: Sequence[int]
    limits: tuple[float, ...] = (inf, inf, inf)
    higher_is_better: bool = True
    latencies_us: tuple[Belief, ...] = (Belief(0.0),)

    def verdict(
        self,
        size_bytes: float,
        latencies_us: Sequence[Belief] | None = None,
        accuracy: Belief | None = None,
    ) -> str | None:
        """Say why a candidate need not be measured further, or None if it must be.

        Args:
            size_bytes: Its size.
            latencies_us: Its latencies; None takes what was expected.
            accuracy: Its accuracy; None if nothing is known.
        """
        latencies = self.latencies_us if latencies_us is None else latencies_us
        size = Belief(size_bytes)
        sign = -1.0 if self.higher_is_better else 1.0
        cost = None if accuracy is None else Belief(sign * accuracy.mean, accuracy.deviation)
        values = (("accuracy", cost), ("size", size), *(("latency", one) for one in latencies))
        for (name, known), limit in zip(values, self.limits, strict=True):
            if known is not None and known.chance_above(np.array(limit)) >= CERTAINTY:
                shown, bound = (accuracy, sign * limit) if known is cost else (known, limit)
                return f"its {name} is {shown}, beyond the bound of {bound:.6g}"
        if cost is None or not len(self.costs):
            return None
        is_smaller = self.costs[:, 1] <= size_bytes
        costs = self.costs[is_smaller]
        draws = np.array([known.mean for known in latencies]) + _normal_draws(
            len(latencies)
        ) * np.array([known.deviation for known in latencies])
        # Of each trial, for each draw of the latencies: whether it is as small and as fast.
        is_faster = (costs[None, :, 2:] <= draws[:, None]).all(axis=2)
        least = np.where(is_faster, costs[:, 0], inf).min(axis=1, initial=inf)
        if cost.chance_above(least).mean() < CERTAINTY:
            return None
        alone = is_faster.mean(axis=0) * cost.chance_above(costs[:, 0])
        number = np.array(self.numbers)[is_smaller][int(alone.argmax())]
        others = "" if alone.max() >= CERTAINTY else " or another"
        return (
            f"trial {number}{others} is better in everything (accuracy {accuracy}, "
            f"{size_bytes:.0f} bytes)"
        )


@cache
def _normal_draws(n_quantities: int) -> NDArray[np.float64]:
    """Return draws of independent standard normal quantities, shape `(n_draws, n_quantities)`.

    Each quantity has all its quantiles, in an order of its own (Latin hypercube).
    """
    rng = np.random.default_rng(0)
    quantiles = ndtri((np.arange(_N_DRAWS) + 0.5) / _N_DRAWS)
    columns = [rng.permutation(quantiles) for _ in range(n_quantities)]
    return np.stack(columns, axis=1) if columns else np.zeros((1, 0))


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

    def predict(self, distance: float) -> Belief | None:
        """Return what is reached; None while little is known."""
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
        return Belief(float(accuracies.mean() + slope * here), sqrt(variance))


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
