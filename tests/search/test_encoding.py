from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from paredown.search.encoding import Encoding

SPACE = {
    "keep": IntDistribution(8, 64, step=8),
    "bits": IntDistribution(0, 7),
    "many": IntDistribution(1, 1000, log=True),
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.25),
    "free": FloatDistribution(-1.0, 3.0),
    "kind": CategoricalDistribution(("a", "b", "c")),
}
ENCODING = Encoding(SPACE)


@given(st.integers(0, 2**32 - 1))
def test_points_come_back_as_they_were(seed: int) -> None:
    points = ENCODING.random(np.random.default_rng(seed), 5)
    params = [ENCODING.decode(point) for point in points]
    for values in params:
        assert all(d._contains(d.to_internal_repr(values[n])) for n, d in SPACE.items())
    again = ENCODING.encode(params)
    assert [ENCODING.decode(point) for point in again] == [
        {n: pytest.approx(v) if isinstance(v, float) else v for n, v in values.items()}
        for values in params
    ]


@given(st.integers(0, 2**32 - 1))
def test_mutations_stay_inside_and_change_something(seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = Encoding({name: SPACE[name] for name in ("keep", "bits", "share")})
    points = small.random(rng, 20)
    moved = small.mutate(rng, points, 1.0)
    assert ((moved >= 0) & (moved <= 1)).all()
    assert small.snap(moved) == pytest.approx(moved)
    assert ((moved != points).sum(axis=1) <= 1).all()
    assert (moved != points).any()


def test_random_points_reach_every_value_alike() -> None:
    encoding = Encoding({"bits": SPACE["bits"]})
    drawn = encoding.values(encoding.random(np.random.default_rng(0), 8000))[:, 0]
    assert np.bincount(drawn) == pytest.approx(np.full(8, 1000), abs=150)


def test_values_and_inputs_by_hand() -> None:
    encoding = Encoding({"keep": SPACE["keep"], "kind": SPACE["kind"]})
    points = encoding.encode([{"keep": 24, "kind": "b"}])
    assert points.tolist() == [[pytest.approx(2 / 7), 0.5]]
    assert encoding.inputs(points).tolist() == [[pytest.approx(2 / 7), 0.0, 1.0, 0.0]]
    with pytest.raises(TypeError, match="A prior is for integer parameters, but 'kind'"):
        encoding.values(points)
    assert Encoding({"keep": SPACE["keep"]}).values(points[:, :1]).tolist() == [[24]]


def test_equal_points_have_equal_keys() -> None:
    params: list[dict[str, Any]] = [{"keep": 24, "bits": 3}, {"keep": 32, "bits": 3}]
    encoding = Encoding({name: SPACE[name] for name in ("keep", "bits")})
    first, second, third = encoding.keys(encoding.encode([*params, params[0]]))
    assert first == third != second
