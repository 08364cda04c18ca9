"""What a sink makes of activations, scales and zero points."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.tvm.sink import Sink

bounds = st.one_of(st.floats(-10, 10), st.sampled_from([-math.inf, math.inf]))
ranges = st.tuples(bounds, bounds).map(sorted)


@given(inner=ranges, outer=ranges, value=st.floats(-20, 20))
def test_clamps_compose(inner: list[float], outer: list[float], value: float) -> None:
    sink = Sink(0, low=outer[0], high=outer[1]).clamped(*inner)
    nested = min(max(min(max(value, inner[0]), inner[1]), outer[0]), outer[1])
    assert min(max(value, sink.low), sink.high) == nested


@pytest.mark.parametrize(
    ("low", "high", "zero_point", "steps"),
    [
        (-math.inf, math.inf, 0, (0, 255)),
        (-math.inf, math.inf, 128, (-128, 127)),
        (0.0, math.inf, 128, (0, 127)),
        (0.0, 6.0, 0, (0, 12)),
        (0.0, 1.25, 0, (0, 2)),  # 2.5 steps: half to even
        (0.0, 1.75, 0, (0, 4)),  # 3.5 steps
        (-1.0, 1.0, 3, (-2, 2)),
        (-9.0, 1000.0, 3, (-3, 252)),
        (0.0, 0.0, 0, (0, 0)),
        (-3.4e38, 3.4e38, 10, (-10, 245)),
        (1000.0, 2000.0, 10, (245, 245)),
        (-2000.0, -1000.0, 10, (-10, -10)),
    ],
)
def test_steps(low: float, high: float, zero_point: int, steps: tuple[int, int]) -> None:
    assert Sink(0, "uint8", 0.5, zero_point, low, high).steps == steps


@given(
    real=st.floats(-300, 300, width=32),
    scale=st.floats(2.0**-10, 1.0, width=32),
    zero_point=st.integers(0, 255),
)
def test_steps_are_those_of_quantize_linear(real: float, scale: float, zero_point: int) -> None:
    stored = np.rint(np.float32(real) / np.float32(scale)) + zero_point
    expected = int(np.clip(stored, 0, 255)) - zero_point
    assert Sink(0, "uint8", scale, zero_point, high=real).steps[1] == expected
    assert Sink(0, "uint8", scale, zero_point, low=real).steps[0] == expected


def test_seven_bits_show_in_the_image() -> None:
    sink = Sink(0, "uint8", 0.5, 20, low=-10.0, high=(127 - 20) * 0.5)
    assert sink.image(1, 2, 2, 9).data_max == 127
    assert sink.image(1, 2, 2, 9).cp == 16
    # The border holds the zero point, so it counts as data.
    assert Sink(1, "uint8", 0.5, 200, high=-30.0).image(1, 2, 2, 8).data_max == 200


def test_leaves_an_image_that_is_what_it_would_make() -> None:
    sink = Sink(1, "uint8", 0.5, 20)
    image = sink.image(1, 2, 2, 8)
    assert sink.leaves(image)
    assert not sink.leaves(replace(image, border=2))
    assert not sink.leaves(replace(image, scale=0.25))
    assert not sink.leaves(replace(image, zero_point=0))
    assert not sink.clamped(0.0, math.inf).leaves(image)
    assert not sink.clamped(-math.inf, 20.0).leaves(image)
    assert sink.clamped(-math.inf, 20.0).leaves(replace(image, data_max=60))
    assert not Sink(1).leaves(image)
    assert Sink(1).leaves(Sink(1).image(1, 2, 2, 8))
    assert not Sink(1, low=0.0).leaves(Sink(1).image(1, 2, 2, 8))
