from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.search.boxes import Boxes
from paredown.search.pareto import hypervolume

Points = list[tuple[int, ...]]
SIDE = 4


@st.composite
def points(draw: st.DrawFn) -> Points:
    point = st.tuples(*[st.integers(0, SIDE)] * draw(st.integers(1, 4)))
    return draw(st.lists(point, min_size=1, max_size=10))


@given(points(), st.integers(0, 2**32 - 1))
def test_improvement_is_the_growth_of_the_hypervolume(front: Points, seed: int) -> None:
    n_objectives = len(front[0])
    reference = [SIDE - 1] * n_objectives
    new = np.random.default_rng(seed).integers(-2, SIDE + 1, (5, n_objectives))
    before = hypervolume(front, reference)
    want = [hypervolume([*front, point], reference) - before for point in new]
    assert Boxes.above(front, reference).improvement(new).tolist() == pytest.approx(want)


@given(points())
def test_boxes_are_disjoint(front: Points) -> None:
    boxes = Boxes.above(front, [SIDE - 1] * len(front[0]))
    draws = np.random.default_rng(0).uniform(-1, SIDE, (50, len(front[0])))
    inside = (boxes.lower <= draws[:, None]) & (draws[:, None] < boxes.upper)
    assert (inside.all(axis=2).sum(axis=1) <= 1).all()


def test_no_front_leaves_one_box() -> None:
    boxes = Boxes.above(np.empty((0, 3)), [1, 2, 3])
    assert boxes.upper.tolist() == [[1, 2, 3]]
    assert boxes.improvement([[0, 0, 0]]).tolist() == [6.0]


@pytest.mark.parametrize("n_objectives", [2, 3])
def test_expected_improvement_agrees_with_sampling(n_objectives: int) -> None:
    rng = np.random.default_rng(0)
    boxes = Boxes.above(rng.random((20, n_objectives)), np.ones(n_objectives))
    mean, std = rng.random(n_objectives) * 0.5, np.full(n_objectives, 0.3)
    draws = rng.normal(mean, std, (40_000, n_objectives))
    sampled = boxes.improvement(draws)
    error = 4 * sampled.std() / np.sqrt(len(draws))
    assert boxes.expected_improvement([mean], [std])[0] == pytest.approx(sampled.mean(), abs=error)


def test_expected_improvement_of_what_is_known() -> None:
    boxes = Boxes.above([[0.5, 0.5, 0.5]], [1, 1, 1])
    known = boxes.expected_improvement([[0.25, 0.5, 0.75], [0.6, 0.6, 0.6]], np.zeros((2, 3)))
    assert known == pytest.approx(boxes.improvement([[0.25, 0.5, 0.75], [0.6, 0.6, 0.6]]))


def test_many_points_are_fast() -> None:
    normal = np.abs(np.random.default_rng(0).normal(size=(150, 3)))
    front = 1.0 - normal / np.linalg.norm(normal, axis=1, keepdims=True)
    start = time.perf_counter()
    boxes = Boxes.above(front, np.ones(3))
    assert len(boxes.lower) <= 2 * len(front) + 1
    boxes.expected_improvement(front[:100], np.full((100, 3), 0.1))
    assert time.perf_counter() - start < 0.5  # takes 0.04 s
