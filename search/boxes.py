"""What a new point would add to a hypervolume, for many points at once.

The region that no point of a front dominates is cut into boxes. What a point adds is a sum over
the boxes, in which the objectives are factors; so the expectation for a point that is uncertain,
with independent normal objectives, is a sum of products too.

References:
    Yang, Emmerich, Deutz, Bäck. Efficient computation of expected hypervolume improvement using
    box decomposition algorithms. Journal of Global Optimization 75, 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from .pareto import is_pareto_optimal

_CHUNK = 1 << 20  # points times boxes that are held at once

Floats = NDArray[np.float64]
Box = tuple[tuple[float, float], ...]
Factor = Callable[[slice, int], Floats]  # of rows and an objective, shape (n_rows, n_boxes)


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes that together are what no point of a front dominates, up to a reference point.

    Attributes:
        lower: Lower corners, shape `(n_boxes, n_objectives)`; minus infinity where open.
        upper: Upper corners.
    """

    lower: Floats
    upper: Floats

    @classmethod
    def above(cls, front: ArrayLike, reference: ArrayLike) -> Boxes:
        """Cut up what a set of points leaves free.

        Args:
            front: Values to minimise, shape `(n_points, n_objectives)`; need not be a front.
            reference: The worst point that counts, shape `(n_objectives,)`.

        Returns:
            Disjoint boxes, some `2 n + 1` for three objectives.
        """
        points, limit = np.asarray(front, np.float64), np.asarray(reference, np.float64)
        points = points.reshape(-1, len(limit))
        points = points[(points < limit).all(axis=1)]
        points = np.unique(points[is_pareto_optimal(points)], axis=0)
        boxes = np.array(_cut(points.tolist(), limit.tolist()))
        return cls(boxes[:, :, 0], boxes[:, :, 1])

    def improvement(self, points: ArrayLike) -> Floats:
        """Return the volume that each point would add, shape `(n_points,)`.

        Args:
            points: Values to minimise, shape `(n_points, n_objectives)`.
        """
        values = np.asarray(points, np.float64)
        return self._sum(
            len(values),
            lambda rows, j: np.maximum(
                0.0, self.upper[:, j] - np.maximum(self.lower[:, j], values[rows, j, None])
            ),
        )

    def expected_improvement(self, means: ArrayLike, deviations: ArrayLike) -> Floats:
        """Return the volume that each uncertain point would add on average.

        Args:
            means: Of independent normal objectives, shape `(n_points, n_objectives)`.
            deviations: Their standard deviations; 0 for what is known.

        Returns:
            Volumes of shape `(n_points,)`.
        """
        mean, std = np.asarray(means, np.float64), np.asarray(deviations, np.float64)

        def gain(rows: slice, j: int) -> Floats:
            # The corners of the boxes repeat: each distinct one is computed once.
            edges, inverse = np.unique([self.lower[:, j], self.upper[:, j]], return_inverse=True)
            below = _mean_excess(edges, mean[rows, j, None], std[rows, j, None])
            lower, upper = inverse.reshape(2, -1)
            return below[:, upper] - below[:, lower]

        return self._sum(len(mean), gain)

    def _sum(self, n_points: int, factor: Factor) -> Floats:
        """Sum over the boxes the product of the objectives' factors."""
        step = max(1, _CHUNK // len(self.lower))
        total = np.empty(n_points)
        for start in range(0, n_points, step):
            rows = slice(start, start + step)
            product = factor(rows, 0)
            for objective in range(1, self.lower.shape[1]):
                product = product * factor(rows, objective)
            total[rows] = product.sum(axis=1)
        return total


def _mean_excess(edges: Floats, mean: Floats, std: Floats) -> Floats:
    """Return the mean of how far a normal variable stays below each edge, 0 if it is above."""
    gap = np.where(np.isneginf(edges), -1.0, edges - mean)
    scale = np.maximum(std, 1e-12)
    z = gap / scale
    excess = gap * ndtr(z) + scale * np.exp(-0.5 * z * z) / sqrt(2 * pi)
    return np.where(np.isneginf(edges), 0.0, np.maximum(excess, 0.0))


def _cut(front: list[list[float]], limit: list[float]) -> list[Box]:
    """Cut up what a front in lexicographic order leaves free.

    Sweeps along the first objective; between two points what is free in the other ones stays
    the same, and a box grows for as long as it does.
    """
    if len(limit) == 1:
        return [((-inf, front[0][0] if front else limit[0]),)]
    if len(limit) == 2:
        return _cut_plane(front, limit)
    done: list[Box] = []
    begun: dict[Box, float] = dict.fromkeys(_cut([], limit[1:]), -inf)
    seen: list[list[float]] = []
    for x, *rest in front:
        if any(all(a <= b for a, b in zip(other, rest, strict=True)) for other in seen):
            continue  # nothing changes in the other objectives
        seen = [o for o in seen if not all(a <= b for a, b in zip(rest, o, strict=True))]
        seen.append(rest)
        seen.sort()
        now = _cut(seen, limit[1:])
        for box in begun.keys() - set(now):
            start = begun.pop(box)
            if start < x:
                done.append(((start, x), *box))
        for box in now:
            begun.setdefault(box, x)
    return done + [((start, limit[0]), *box) for box, start in begun.items()]


def _cut_plane(front: list[list[float]], limit: list[float]) -> list[Box]:
    starts = [-inf, *(x for x, _ in front)]
    ends = [*(x for x, _ in front), limit[0]]
    heights = [limit[1], *(y for _, y in front)]
    return [
        ((start, end), (-inf, height))
        for start, end, height in zip(starts, ends, heights, strict=True)
    ]
