from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from paredown.search.knowledge.warm_starts import knapsack_front, spread
from paredown.search.pareto import hypervolume, is_pareto_optimal

OPTIONS = {f"weight_bits/{i}": tuple(range(5)) for i in range(6)}
WEIGHTS = np.array([1.0, 5.0, 2.0, 8.0, 3.0, 1.0])


def costs(names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """A loss that falls with the bits and a size that rises, with weights that differ."""
    assert list(names) == list(OPTIONS)
    loss = (2.0**-values * WEIGHTS[::-1]).sum(axis=1)
    return np.stack([loss, (values * WEIGHTS).sum(axis=1), values.max(axis=1).astype(float)], 1)


def test_it_finds_most_of_the_true_front() -> None:
    every = np.array(list(product(range(5), repeat=6)))
    true = costs(list(OPTIONS), every)
    reference = true.max(axis=0) + 1
    values, found = knapsack_front(OPTIONS, costs)
    assert is_pareto_optimal(found).all()
    assert (costs(list(OPTIONS), values) == found).all()
    assert hypervolume(found, reference) > 0.97 * hypervolume(true, reference)


def test_the_seed_decides() -> None:
    first, again = (knapsack_front(OPTIONS, costs, seed=3)[0] for _ in range(2))
    assert first.tolist() == again.tolist()


def test_a_spread_covers_the_front_and_leaves_out_what_is_known() -> None:
    front = np.array([[0.0, 9.0], [1.0, 4.0], [2.0, 3.9], [4.0, 1.0], [9.0, 0.0]])
    picked = spread(front, np.empty((0, 2)), 3)
    assert len(set(picked)) == 3
    assert picked[0] in (1, 2)
    assert spread(front, front, 3) == []
    assert 1 not in spread(front, front[1:2], 5)
