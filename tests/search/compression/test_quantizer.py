import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from paredown.search.compression.quantizer import (
    activation_grid,
    fit_scale_to_bias,
    largest_integer,
    quantize_bias,
    quantize_weight,
    weight_scales,
)

BITS = st.integers(2, 8)
FINITE = st.floats(-100, 100, width=32)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=6))
    return torch.from_numpy(draw(hnp.arrays("float32", shape, elements=FINITE)))


@given(low=FINITE, high=FINITE, bits=st.integers(7, 8))
def test_an_activation_grid_covers_its_range_and_zero(low: float, high: float, bits: int) -> None:
    low, high = sorted((low, high))
    grid = activation_grid(low, high, bits)
    levels = 2**bits - 1
    assert 0 <= grid.zero_point <= levels
    assert grid.low <= 0.0 <= grid.high
    # Moving zero onto the grid costs half a step at most.
    tolerance = 0.51 * grid.scale
    assert grid.low <= low + tolerance
    assert grid.high >= high - tolerance
    assert grid.high - grid.low == pytest.approx(levels * grid.scale)


def test_activation_grids_of_hand_computed_ranges() -> None:
    assert activation_grid(0.0, 2.55, 8).zero_point == 0
    assert activation_grid(0.0, 2.55, 8).scale == pytest.approx(0.01)
    assert activation_grid(0.5, 1.27, 7).scale == pytest.approx(0.01)
    assert activation_grid(-1.0, 1.55, 8).zero_point == 100
    assert activation_grid(-2.55, -1.0, 8).zero_point == 255
    assert activation_grid(0.0, 0.0, 8).scale > 0


@given(weight=weights(), bits=BITS, data=st.data())
def test_rounding_a_weight_errs_by_half_a_step_and_stays_in_the_narrow_range(
    weight: Tensor, bits: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, 1))
    scale = weight_scales(weight, bits, axis, search=False)
    quantized = quantize_weight(weight, scale, bits, axis)
    assert quantized.values.dtype == torch.int8
    assert quantized.values.abs().max() <= largest_integer(bits)
    assert scale.shape == (weight.shape[axis],)
    assert (scale > 0).all()
    error = (quantized.dequantize() - weight).movedim(axis, 0).flatten(1).abs().amax(1)
    assert (error <= scale * (0.5 + 1e-3) + 1e-6).all()


@given(weight=weights(), bits=BITS)
def test_searching_the_scale_never_errs_more_than_covering_all(weight: Tensor, bits: int) -> None:
    errors = [
        (
            quantize_weight(weight, weight_scales(weight, bits, 0, search=s), bits, 0).dequantize()
            - weight
        )
        .square()
        .flatten(1)
        .sum(1)
        for s in (True, False)
    ]
    rounding = 1e-9 * weight.square().flatten(1).sum(1)
    assert (errors[0] <= errors[1] * (1 + 1e-4) + rounding).all()


@pytest.mark.parametrize(("bits", "share"), [(2, 0.25), (3, 0.6), (4, 0.75)])
def test_searching_the_scale_pays_at_few_bits(bits: int, share: float) -> None:
    weight = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0))
    errors = [
        (
            quantize_weight(weight, weight_scales(weight, bits, 0, search=s), bits, 0).dequantize()
            - weight
        )
        .square()
        .mean()
        for s in (True, False)
    ]
    assert errors[0] < share * errors[1]


@given(bits=BITS, scale=st.floats(2.0**-6, 4.0, width=32))
def test_a_weight_on_a_grid_stays_as_it_is(bits: int, scale: float) -> None:
    top = largest_integer(bits)
    integers = torch.arange(-top, top + 1).float()
    weight = (integers * scale).repeat(3, 1)
    for search in (True, False):
        found = weight_scales(weight, bits, 0, search=search)
        assert torch.equal(
            quantize_weight(weight, found, bits, 0).values[1], integers.to(torch.int8)
        )


def test_channels_of_zeros_have_a_usable_scale() -> None:
    weight = torch.zeros(3, 4)
    weight[1] = 0.7
    scale = weight_scales(weight, 4, 0)
    assert scale[0] == scale[1] == scale[2]
    assert (weight_scales(torch.zeros(2, 4), 4, 0) > 0).all()


@given(
    bias=hnp.arrays("float32", 3, elements=st.floats(-1e4, 1e4, width=32)),
    scale=hnp.arrays("float32", 3, elements=st.floats(2.0**-30, 1.0, width=32)),
)
def test_a_bias_fits_int32_with_room_for_the_sums(
    bias: NDArray[np.float32], scale: NDArray[np.float32]
) -> None:
    wanted, given_scale, input_scale = torch.from_numpy(bias), torch.from_numpy(scale), 0.01
    fitted = fit_scale_to_bias(given_scale, wanted, input_scale)
    assert (fitted >= given_scale).all()
    product = fitted * input_scale
    integers = quantize_bias(wanted, product)
    assert integers.dtype == torch.int32
    assert integers.abs().max() <= 2**30
    error = (integers.double() * product.double() - wanted).abs()
    assert (error <= 0.5 * product + 1e-6 * wanted.abs()).all()


def test_largest_integers() -> None:
    assert [largest_integer(b) for b in range(2, 9)] == [1, 3, 7, 15, 31, 63, 127]
    assert math.isclose(
        activation_grid(-1, 1, 7).high, (127 - 64) * activation_grid(-1, 1, 7).scale
    )
