"""Where to begin: an approximate front of what is known, and a spread of points on it.

For fixed weights of the objectives, the best choice of each layer does not depend on the others:
a multiple-choice knapsack, whose relaxation is solved layer by layer. Pruning ties neighbours
together, so the layers are gone through until nothing changes; all weights are solved at once.

References:
    Sinha, Zoltners. The multiple-choice knapsack problem. Operations Research 27(3), 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..boxes import Boxes
from ..pareto import is_pareto_optimal

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CostModel = Callable[[Sequence[str], Ints], Floats]

_MAX_SWEEPS = 6
_N_WEIGHTS = 60


def knapsack_front(
    options: Mapping[str, Sequence[int]], costs: CostModel, seed: int = 0
) -> tuple[Ints, Floats]:
    """Return candidates that are about optimal by a model of the costs.

    Args:
        options: Values of each parameter.
        costs: Maps parameter names and values of shape `(n, n_parameters)` to costs to minimise.
        seed: Of the weights and of the order of parameters.

    Returns:
        Values of shape `(n, n_parameters)`, and their costs.
    """
    names = list(options)
    rng = np.random.default_rng(seed)
    ends = np.array([[options[n][-1] for n in names], [options[n][0] for n in names]])
    scale = np.maximum(np.ptp(costs(names, ends), axis=0), 1e-12)
    n_objectives = len(scale)
    weights = 10.0 ** rng.uniform(-2.0, 2.0, (_N_WEIGHTS, n_objectives)) / scale
    current = ends[rng.integers(0, 2, len(weights))]
    seen = [current]
    best = (costs(names, current) * weights).sum(axis=1)
    for _ in range(_MAX_SWEEPS):
        before = best.copy()
        for column in rng.permutation(len(names)):
            values = np.array(options[names[column]])
            tried = np.repeat(current[:, None, :], len(values), axis=1)
            tried[:, :, column] = values
            found = costs(names, tried.reshape(-1, len(names)))
            sums = (found.reshape(len(weights), len(values), -1) * weights[:, None]).sum(axis=2)
            place = sums.argmin(axis=1)
            current = tried[np.arange(len(weights)), place]
            best = sums[np.arange(len(weights)), place]
            seen.append(current)
        if np.allclose(before, best):
            break
    found_all = np.unique(np.concatenate(seen), axis=0)
    all_costs = costs(names, found_all)
    optimal = is_pareto_optimal(all_costs)
    return found_all[optimal], all_costs[optimal]


def spread(costs: Floats, known: Floats, n_points: int) -> list[int]:
    """Pick points that together cover a front, each the one that adds most hypervolume.

    Args:
        costs: Values to minimise of what may be picked, shape `(n, n_objectives)`.
        known: Those of what will be measured anyway.
        n_points: How many to pick.

    Returns:
        Their rows, the most useful first; fewer where nothing is added any more.
    """
    everything = np.concatenate([costs, known])
    low, high = everything.min(axis=0), everything.max(axis=0)
    width = np.maximum(high - low, 1e-12)
    scaled, taken = (costs - low) / width, (known - low) / width
    reference = np.full(costs.shape[1], 1.05)
    picked: list[int] = []
    for _ in range(n_points):
        gains = Boxes.above(taken, reference).improvement(scaled)
        place = int(gains.argmax())
        if gains[place] <= 0.0:
            break
        picked.append(place)
        taken = np.concatenate([taken, scaled[place : place + 1]])
    return picked
