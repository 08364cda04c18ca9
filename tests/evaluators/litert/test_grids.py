import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.litert.grids import Grid, place
from paredown.evaluators.onnx_graph.quantizers import Quantizer


def test_whole_range_is_shifted_by_128() -> None:
    placement = place(Quantizer(0.5, 100), (-math.inf, math.inf), fuses_relu=True)
    assert placement is not None
    assert placement.first == placement.last == Grid(0.5, -28)
    assert placement.activation == "NONE"


def test_seven_bits_after_relu_end_where_int8_ends() -> None:
    """Saturation cuts at 127 steps, the fused ReLU at 0."""
    placement = place(Quantizer(0.5, 0), (0.0, 63.5), fuses_relu=True)
    assert placement is not None
    assert placement.first == placement.last == Grid(0.5, 0, low=0, high=127)
    assert placement.activation == "RELU"


def test_seven_bits_around_zero_take_a_second_step() -> None:
    placement = place(Quantizer(0.5, 60), (-30.0, 33.5), fuses_relu=True)
    assert placement is not None
    assert placement.first == Grid(0.5, -68, low=-128, high=-1)
    assert placement.last == Grid(0.5, 60, low=0, high=127)
    assert placement.activation == "NONE"


def test_bounds_without_zero_have_no_place() -> None:
    assert place(Quantizer(0.5, 0), (1.0, 2.0), fuses_relu=True) is None


@pytest.mark.parametrize(
    ("low", "high", "fits"), [(-100, 27, True), (-128, 27, False), (-100, 28, False)]
)
def test_grid_fits_where_its_values_keep_their_place(low: int, high: int, fits: bool) -> None:
    assert Grid(0.5, 0, low, high).fits(Grid(0.5, 100, 0, 127)) is fits
    assert not Grid(0.25, 0, low, high).fits(Grid(0.5, 100, 0, 127))


steps = st.integers(0, 255)


@given(st.data(), steps, steps, st.booleans())
def test_saturation_and_relu_cut_as_the_file_does(
    data: st.DataObject, first: int, second: int, fuses_relu: bool
) -> None:
    """Any sum of steps, rounded to int8 as the placement says, ends at the same real."""
    low, high = sorted((first, second))
    zero = data.draw(st.integers(low, high))
    scale = data.draw(st.sampled_from([0.5, 0.017, 3.0]))
    bounds = ((low - zero) * scale, (high - zero) * scale)
    placement = place(Quantizer(scale, zero), bounds, fuses_relu=fuses_relu)
    assert placement is not None

    sums = np.arange(-400, 400)  # in steps from zero
    stored = np.clip(sums + placement.first.zero_point, -128, 127)
    if placement.activation == "RELU":
        stored = np.maximum(stored, placement.first.zero_point)
    if placement.last != placement.first:
        shift = placement.last.zero_point - placement.first.zero_point
        stored = np.clip(stored + shift, -128, 127)
    np.testing.assert_array_equal(
        stored - placement.last.zero_point, np.clip(sums + zero, low, high) - zero
    )
    assert (stored.min(), stored.max()) == (placement.last.low, placement.last.high)
