"""Parameters of a study as numbers between 0 and 1, and moves among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats = NDArray[np.float64]


class Encoding:
    """Turns parameters into points of the unit cube and back.

    Integers and floats with a step are at even places, so that neighbours are alike. For a model
    a category has an input of its own for each choice.

    Args:
        space: Distribution of each parameter, none of which has a single value.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.names: tuple[str, ...] = tuple(space)
        self._space = dict(space)
        self._counts = np.array([_count(d) for d in space.values()])  # 0: continuous
        self._is_category = np.array(
            [isinstance(d, CategoricalDistribution) for d in space.values()], dtype=bool
        )

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, params: Sequence[Mapping[str, Any]]) -> Floats:
        """Return points of shape `(n, n_parameters)`."""
        rows = [[_encode(d, p[name]) for name, d in self._space.items()] for p in params]
        return np.array(rows, np.float64).reshape(len(rows), len(self.names))

    def decode(self, point: Floats) -> dict[str, Any]:
        """Return the parameters of one point."""
        return {
            name: _decode(d, float(u))
            for (name, d), u in zip(self._space.items(), point, strict=True)
        }

    def values(self, points: Floats) -> NDArray[np.int64]:
        """Return the values of integer parameters, shape `(n, n_parameters)`.

        Raises:
            TypeError: If a parameter is no integer.
        """
        columns = []
        for place, (name, d) in enumerate(self._space.items()):
            if not isinstance(d, IntDistribution) or d.log:
                raise TypeError(f"A prior is for integer parameters, but '{name}' is {d}.")
            index = np.rint(points[:, place] * (self._counts[place] - 1)).astype(np.int64)
            columns.append(d.low + index * d.step)
        return np.stack(columns, axis=1)

    def inputs(self, points: Floats) -> Floats:
        """Return what a model gets to see."""
        columns = []
        for place, count in enumerate(self._counts):
            column = points[:, place]
            if self._is_category[place]:
                index = np.rint(column * (count - 1))
                columns += [(index == choice).astype(np.float64) for choice in range(count)]
            else:
                columns.append(column)
        return np.stack(columns, axis=1)

    def snap(self, points: Floats) -> Floats:
        """Move points to the nearest values that exist."""
        snapped = np.clip(points, 0.0, 1.0)
        steps = np.maximum(self._counts - 1, 1)
        return np.where(self._counts > 0, np.rint(snapped * steps) / steps, snapped)

    def random(self, rng: np.random.Generator, n_points: int) -> Floats:
        """Draw points, every value as likely as any other."""
        draws = rng.random((n_points, len(self.names)))
        counts = np.maximum(self._counts, 1)
        on_grid = np.floor(draws * counts) / np.maximum(counts - 1, 1)
        return np.where(self._counts > 0, on_grid, draws)

    def mutate(self, rng: np.random.Generator, points: Floats, n_changes: float = 2.0) -> Floats:
        """Change some parameters of each point: mostly to a neighbour, else to any value.

        Args:
            rng: Where randomness is from.
            points: Shape `(n, n_parameters)`.
            n_changes: How many parameters change on average; one or more always do.
        """
        shape = points.shape
        is_changed = rng.random(shape) < (n_changes - 1.0) / max(shape[1] - 1, 1)
        is_changed[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = True
        signs = rng.choice([-1.0, 1.0], shape)
        reach = np.where(
            self._counts > 0, 1.0 / np.maximum(self._counts - 1, 1), rng.exponential(0.1, shape)
        )
        near = points + signs * reach
        near = np.where((near < -1e-9) | (near > 1.0 + 1e-9), points - signs * reach, near)
        is_far = (rng.random(shape) < 0.3) | self._is_category
        moved = np.where(is_far, self.random(rng, shape[0]), near)
        return self.snap(np.where(is_changed, moved, points))

    def keys(self, points: Floats) -> list[bytes]:
        """Return what equal points have in common."""
        return [row.tobytes() for row in np.round(points, 9) + 0.0]


def _count(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return (distribution.high - distribution.low) // distribution.step + 1
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return 0


def _encode(distribution: BaseDistribution, value: Any) -> float:
    inner = distribution.to_internal_repr(value)
    if isinstance(distribution, CategoricalDistribution):
        return inner / max(len(distribution.choices) - 1, 1)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return float(np.log(inner / low) / np.log(high / low))
    return (inner - low) / (high - low)


def _decode(distribution: BaseDistribution, place: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[round(place * (len(distribution.choices) - 1))]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** place if distribution.log else low + place * (high - low)
    if isinstance(distribution, IntDistribution):
        return low + round((value - low) / distribution.step) * distribution.step
    if distribution.step is not None:
        value = low + round((value - low) / distribution.step) * distribution.step
    return float(min(max(value, low), high))
