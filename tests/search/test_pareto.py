from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.search.pareto import (
    hypervolume,
    hypervolume_history,
    is_pareto_optimal,
    non_dominated_ranks,
)

Points = list[tuple[int, ...]]
SIDE = 4  # coordinates lie in 0..SIDE and tie often


@st.composite
def points(draw: st.DrawFn, max_size: int = 12) -> Points:
    point = st.tuples(*[st.integers(0, SIDE)] * draw(st.integers(1, 4)))
    return draw(st.lists(point, min_size=1, max_size=max_size))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def count_cells(costs: Points, reference: int) -> int:
    """Count the unit cells that some point dominates."""
    cells = itertools.product(range(reference), repeat=len(costs[0]))
    return sum(
        any(all(a <= b for a, b in zip(p, cell, strict=True)) for p in costs) for cell in cells
    )


def sphere(n_points: int, n_objectives: int) -> NDArray[np.float64]:
    """Return points of which none dominates another."""
    normal = np.abs(np.random.default_rng(0).normal(size=(n_points, n_objectives)))
    return np.asarray(1.0 - normal / np.linalg.norm(normal, axis=1, keepdims=True))


def test_optimal_points_by_hand() -> None:
    costs = [[1, 4], [2, 2], [2, 3], [4, 1], [2, 2], [5, 5]]
    assert is_pareto_optimal(costs).tolist() == [True, True, False, True, True, False]


@given(points())
def test_optimal_points_are_those_nothing_dominates(costs: Points) -> None:
    naive = [not any(dominates(other, point) for other in costs) for point in costs]
    assert is_pareto_optimal(costs).tolist() == naive


def test_optimal_points_beyond_one_chunk() -> None:
    costs = np.random.default_rng(0).integers(0, 9, size=(1500, 4))
    rows = costs.tolist()
    optimal = {tuple(rows[i]) for i in np.flatnonzero(is_pareto_optimal(costs))}
    assert {tuple(r) for r in rows if not any(dominates(o, r) for o in optimal)} == optimal


def test_no_points_no_front() -> None:
    assert is_pareto_optimal(np.empty((0, 3))).tolist() == []
    assert hypervolume(np.empty((0, 3)), [1, 1, 1]) == 0.0
    assert hypervolume_history(np.empty((0, 3)), [1, 1, 1]).tolist() == []


def test_hypervolume_by_hand() -> None:
    # Steps of 3x1, 2x1 and 1x1 under the reference (4, 4).
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [4, 4]) == 6.0
    assert hypervolume([[0, 0, 0]], [2, 3, 4]) == 24.0
    assert hypervolume([[0, 0, 1], [1, 1, 0]], [2, 2, 2]) == 4.0 + 1.0


@given(points())
def test_hypervolume_counts_dominated_cells(costs: Points) -> None:
    reference = SIDE - 1  # some points lie on it, some beyond
    want = count_cells(costs, reference)
    assert hypervolume(costs, [reference] * len(costs[0])) == pytest.approx(want)


@given(points())
def test_history_is_the_hypervolume_of_each_beginning(costs: Points) -> None:
    reference = [SIDE - 1] * len(costs[0])
    history = hypervolume_history(costs, reference)
    want = [hypervolume(costs[: i + 1], reference) for i in range(len(costs))]
    assert history.tolist() == pytest.approx(want)
    assert (np.diff(history) >= 0).all()


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_hypervolume_agrees_with_sampling(n_objectives: int) -> None:
    costs = sphere(50, n_objectives)
    draws = np.random.default_rng(1).random((20_000, n_objectives))
    share = np.mean([(costs <= draw).all(axis=1).any() for draw in draws])
    # Four standard errors of a share.
    assert hypervolume(costs, np.ones(n_objectives)) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("n_objectives", [2, 3])
def test_large_fronts_are_fast(n_objectives: int) -> None:
    costs = sphere(10_000, n_objectives)
    start = time.perf_counter()
    assert is_pareto_optimal(costs).all()
    hypervolume(costs, np.ones(n_objectives))
    assert time.perf_counter() - start < 1.0  # takes 0.04 s


def test_failed_trials_have_infinite_cost() -> None:
    costs = [[np.inf, np.inf], [1.0, 1.0], [np.inf, 0.0]]
    assert is_pareto_optimal(costs).tolist() == [False, True, True]
    assert hypervolume_history(costs, [2, 2]).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("costs", "reference", "match"),
    [
        ([1.0, 2.0], [3.0], r"`costs` must have shape \(n_points, n_objectives\), but got \(2,\)"),
        ([[1.0, 2.0], [np.nan, 1.0]], [3, 3], "point 1 has one in objective 0"),
        ([[1.0, 2.0]], [3.0], r"`reference` must have one value per objective"),
        ([[1.0, 2.0]], [3.0, np.inf], "`reference` must be finite"),
        ([[1.0, 2.0]], [3.0, np.nan], "`reference` must be finite"),
        ([[1.0, -np.inf]], [3.0, 3.0], "minus infinity"),
    ],
)
def test_wrong_input_is_named(costs: object, reference: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        hypervolume(costs, reference)  # type: ignore[arg-type]  # wrong on purpose


def test_optimal_points_refuse_nan() -> None:
    with pytest.raises(ValueError, match="`costs` must hold no NaN"):
        is_pareto_optimal([[np.nan, 1.0]])


def test_ranks_by_hand() -> None:
    costs = [[1, 4], [2, 2], [2, 3], [4, 1], [2, 2], [5, 5], [3, 4]]
    assert non_dominated_ranks(costs).tolist() == [0, 0, 1, 0, 0, 3, 2]
    assert non_dominated_ranks([[3], [1], [3], [2]]).tolist() == [2, 0, 2, 1]
    assert non_dominated_ranks(np.empty((0, 3))).tolist() == []


@given(points())
def test_ranks_peel_one_front_after_the_other(costs: Points) -> None:
    rows, ranks = np.array(costs), non_dominated_ranks(costs)
    left = np.arange(len(rows))
    for rank in range(len(rows)):
        optimal = is_pareto_optimal(rows[left])
        assert sorted(left[optimal]) == np.flatnonzero(ranks == rank).tolist()
        left = left[~optimal]


def degenerate_sets() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    line = np.arange(60.0)
    return {
        "one": np.ones((1, 3)),
        "equal": np.ones((40, 3)),
        "chain": np.stack([line, line, line], axis=1),
        "plane": np.stack([rng.random(60), rng.random(60), np.zeros(60)], axis=1),
        "ties": rng.integers(0, 4, (80, 4)).astype(float),
        "front": sphere(80, 3),
        "two": rng.random((80, 2)),
        "four": rng.random((80, 4)),
    }


@pytest.mark.parametrize("name", degenerate_sets())
def test_all_agrees_with_pymoo(name: str) -> None:
    pytest.importorskip("pymoo", reason="the extra `test` brings it")
    from pymoo.indicators.hv import HV
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    costs = degenerate_sets()[name]
    fronts, ranks = NonDominatedSorting().do(costs, return_rank=True)
    assert non_dominated_ranks(costs).tolist() == ranks.tolist()
    assert np.flatnonzero(is_pareto_optimal(costs)).tolist() == sorted(fronts[0])
    reference = np.quantile(costs, 0.9, axis=0) + 0.5
    assert hypervolume(costs, reference) == pytest.approx(HV(ref_point=reference)(costs))


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_ranks_of_many_trials_are_fast(n_objectives: int) -> None:
    costs = np.random.default_rng(0).random((10_000, n_objectives))
    chain = np.repeat(np.arange(10_000.0)[:, None], n_objectives, axis=1)
    start = time.perf_counter()
    assert non_dominated_ranks(chain).max() == 9_999
    non_dominated_ranks(costs)
    assert time.perf_counter() - start < 10.0  # takes 0.2 s, with four objectives 1.5 s
