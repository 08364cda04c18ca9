"""Pareto optimality, ranks and hypervolume, as functions of arrays.

All costs are minimised; a value to maximise enters with its sign changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 512


def is_pareto_optimal(costs: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point dominates another if it is no worse in any objective and better in one. Equal points
    do not dominate each other, so duplicates are all kept.

    Args:
        costs: Values to minimise, shape `(n_points, n_objectives)`; one unit per column.

    Returns:
        Mask of shape `(n_points,)`.

    Raises:
        ValueError: If `costs` is not two-dimensional or holds a NaN.

    References:
        Kung, Luccio, Preparata. On finding the maxima of a set of vectors. JACM 22(4), 1975.
    """
    points = _checked_costs(costs)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    # `unique` is in lexicographic order: a point is dominated by earlier ones only.
    n_objectives = points.shape[1]
    if n_objectives <= 1:
        optimal = np.arange(len(unique)) == 0
    elif n_objectives <= 3:
        optimal = _sweep_optimal(unique)
    else:
        optimal = _pairwise_optimal(unique)
    return np.asarray(optimal[inverse.reshape(-1)], dtype=np.bool_)


def non_dominated_ranks(costs: ArrayLike) -> NDArray[np.intp]:
    """Return the front that each point is on: 0 for the best, then the best without it, and so on.

    Points in order of the first objective are put on the first front that does not dominate
    them, which a bisection over the fronts finds.

    Args:
        costs: Values to minimise, shape `(n_points, n_objectives)`.

    Returns:
        Ranks of shape `(n_points,)`; equal points have equal ranks.

    Raises:
        ValueError: If `costs` is not two-dimensional or holds a NaN.

    References:
        Zhang, Tian, Cheng, Jin. An efficient approach to nondominated sorting for evolutionary
        multiobjective optimization. IEEE TEC 19(2), 2015.
    """
    points = _checked_costs(costs)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    if points.shape[1] <= 1:
        ranks = np.arange(len(unique))
    elif points.shape[1] <= 3:
        ranks = _staircase_ranks(unique)
    else:
        ranks = _pairwise_ranks(unique)
    return np.asarray(ranks[inverse.reshape(-1)], dtype=np.intp)


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that the points dominate, up to a reference point.

    Exact for any number of objectives: a sweep for two and three, and the exclusive volumes of
    the WFG algorithm above. Points that are not better than the reference in every objective
    add nothing; neither do duplicates and dominated points.

    Args:
        costs: Values to minimise, shape `(n_points, n_objectives)`.
        reference: The worst point that counts, shape `(n_objectives,)`.

    Returns:
        The volume, in the product of the columns' units.

    Raises:
        ValueError: If the shapes do not fit, a value is NaN, or the volume is unbounded.

    References:
        While, Bradstreet, Barone. A fast way of calculating exact hypervolumes. IEEE TEC 16(1),
        2012.
        Beume, Fonseca, Lopez-Ibanez, Paquete, Vahrenhold. On the complexity of computing the
        hypervolume indicator. IEEE TEC 13(5), 2009.
    """
    points, limit = _checked_pair(costs, reference)
    return _volume(_front(points[(points < limit).all(axis=1)]), limit)


def hypervolume_history(costs: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Return the hypervolume of the first 1, 2, ... points.

    Args:
        costs: Values to minimise in the order they were found, shape
            `(n_points, n_objectives)`; a trial that failed has an infinite cost.
        reference: The worst point that counts, shape `(n_objectives,)`.

    Returns:
        Volumes of shape `(n_points,)`; they never fall.

    Raises:
        ValueError: If the shapes do not fit, a value is NaN, or the volume is unbounded.
    """
    points, limit = _checked_pair(costs, reference)
    history = np.zeros(len(points))
    front = np.empty((0, len(limit)))
    total = 0.0
    for place, point in enumerate(points):
        dominated = len(front) > 0 and bool((front <= point).all(axis=1).any())
        if not dominated and bool((point < limit).all()):
            total += _exclusive_volume(point, front, limit)
            beaten = (point <= front).all(axis=1)
            front = np.vstack([front[~beaten], point])
        history[place] = total
    return history


def _checked_costs(costs: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(costs, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(
            f"`costs` must have shape (n_points, n_objectives), but got {points.shape}."
        )
    if np.isnan(points).any():
        row, column = np.argwhere(np.isnan(points))[0]
        raise ValueError(
            f"`costs` must hold no NaN, but point {row} has one in objective {column}. "
            "Leave the point out, or give it an infinite cost."
        )
    return points


def _checked_pair(
    costs: ArrayLike, reference: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = _checked_costs(costs)
    limit = np.asarray(reference, dtype=np.float64)
    if limit.shape != (points.shape[1],) or limit.size == 0:
        raise ValueError(
            f"`reference` must have one value per objective, shape ({points.shape[1]},), but got "
            f"{limit.shape}."
        )
    if not np.isfinite(limit).all():
        raise ValueError(f"`reference` must be finite, but got {limit.tolist()}.")
    if np.isneginf(points).any():
        raise ValueError("`costs` must not reach minus infinity, where the volume is unbounded.")
    return points, limit


def _sweep_optimal(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark optimal points among unique, lexicographically sorted ones, in 2 or 3 objectives.

    Keeps the staircase of the last two objectives: `ys` rises while `zs` falls.
    """
    optimal = np.zeros(len(points), dtype=np.bool_)
    ys: list[float] = []
    zs: list[float] = []
    for place, row in enumerate(points.tolist()):
        y, z = row[1], row[-1]
        at = bisect_right(ys, y)
        if at and zs[at - 1] <= z:
            continue
        optimal[place] = True
        _insert_step(ys, zs, y, z)
    return optimal


def _staircase_ranks(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rank unique, lexicographically sorted points in 2 or 3 objectives."""
    stairs: list[tuple[list[float], list[float]]] = []

    def dominates(rank: int, y: float, z: float) -> bool:
        ys, zs = stairs[rank]
        at = bisect_right(ys, y)
        return at > 0 and zs[at - 1] <= z

    ranks = np.empty(len(points), dtype=np.intp)
    for place, row in enumerate(points.tolist()):
        y, z = row[1], row[-1]
        rank = _first(len(stairs), lambda rank: not dominates(rank, y, z))  # noqa: B023  # at once
        if rank == len(stairs):
            stairs.append(([], []))
        _insert_step(*stairs[rank], y, z)
        ranks[place] = rank
    return ranks


def _pairwise_ranks(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rank unique, lexicographically sorted points in any dimension."""
    fronts: list[list[int]] = []

    def dominates(rank: int, point: NDArray[np.float64]) -> bool:
        return bool((points[fronts[rank]] <= point).all(axis=1).any())

    ranks = np.empty(len(points), dtype=np.intp)
    for place, point in enumerate(points):
        rank = _first(len(fronts), lambda rank: not dominates(rank, point))  # noqa: B023  # at once
        if rank == len(fronts):
            fronts.append([])
        fronts[rank].append(place)
        ranks[place] = rank
    return ranks


def _first(count: int, is_true: Callable[[int], bool]) -> int:
    """Return the first place from which on something is true, by bisection."""
    return bisect_left(range(count), True, key=is_true)


def _insert_step(ys: list[float], zs: list[float], y: float, z: float) -> None:
    """Add a step that no other covers, and drop those that it covers."""
    start = bisect_left(ys, y)
    end = start
    while end < len(ys) and zs[end] >= z:
        end += 1
    ys[start:end] = [y]
    zs[start:end] = [z]


def _pairwise_optimal(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark optimal points among unique, lexicographically sorted ones, in any dimension."""
    front = np.empty((0, points.shape[1]))
    optimal = np.zeros(len(points), dtype=np.bool_)
    for start in range(0, len(points), _CHUNK):
        chunk = points[start : start + _CHUNK]
        # Points are unique, so "no worse anywhere" is domination, save for the point itself.
        alive = ~_covered(chunk, front)
        alive[alive] = ~_covered(chunk[alive], chunk[alive], itself=True)
        optimal[start : start + _CHUNK] = alive
        front = np.vstack([front, chunk[alive]])
    return optimal


def _covered(
    points: NDArray[np.float64], by: NDArray[np.float64], *, itself: bool = False
) -> NDArray[np.bool_]:
    covers = np.ones((len(points), len(by)), dtype=np.bool_)
    for objective in range(points.shape[1]):
        covers &= by[None, :, objective] <= points[:, None, objective]
    if itself:
        np.fill_diagonal(covers, val=False)
    return np.asarray(covers.any(axis=1))


def _front(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distinct optimal points in lexicographic order."""
    return np.unique(points[is_pareto_optimal(points)], axis=0)


def _volume(front: NDArray[np.float64], limit: NDArray[np.float64]) -> float:
    """Return the volume of distinct, mutually non-dominated points inside the limit."""
    if len(front) == 0:
        return 0.0
    if front.shape[1] == 1:
        return float(limit[0] - front[0, 0])
    if front.shape[1] == 2:
        # In order of the first objective the second one falls.
        heights = np.append(limit[1], front[:-1, 1]) - front[:, 1]
        return float(np.dot(limit[0] - front[:, 0], heights))
    if front.shape[1] == 3:
        return _volume_3d(front, limit)
    # From the worst last objective on, so that the limit sets are small.
    ordered = front[np.argsort(-front[:, -1], kind="stable")]
    return sum(
        _exclusive_volume(point, ordered[place + 1 :], limit)
        for place, point in enumerate(ordered)
    )


def _exclusive_volume(
    point: NDArray[np.float64], others: NDArray[np.float64], limit: NDArray[np.float64]
) -> float:
    """Return the volume that `point` dominates and none of `others` does."""
    own = float(np.prod(limit - point))
    if len(others) == 0:
        return own
    # Rounding may leave a little less than nothing.
    return max(0.0, own - _volume(_front(np.maximum(others, point)), limit))


def _volume_3d(front: NDArray[np.float64], limit: NDArray[np.float64]) -> float:
    """Sweep along the first objective, keeping the staircase of the other two.

    No point of a front lies under the staircase of those before it.
    """
    x_limit, y_limit, z_limit = limit.tolist()
    ys: list[float] = []
    zs: list[float] = []
    volume = 0.0
    for x, y, z in front.tolist():
        # Each point adds its new area for the rest of the way to the limit.
        at = bisect_right(ys, y)
        ceiling = zs[at - 1] if at else z_limit
        area = 0.0
        left = y
        while at < len(ys) and zs[at] > z:
            area += (ys[at] - left) * (ceiling - z)
            left, ceiling = ys[at], zs[at]
            at += 1
        right = ys[at] if at < len(ys) else y_limit
        area += (right - left) * (ceiling - z)
        volume += area * (x_limit - x)
        _insert_step(ys, zs, y, z)
    return volume
