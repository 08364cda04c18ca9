"""Order of weights, and the proof of how far they may be summed in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.kernels.conv import FORMS
from paredown.evaluators.tvm.kernels.neon import SUMMED
from paredown.evaluators.tvm.packing import (
    NEON_RUNS,
    RUNS,
    ConvGeometry,
    pack,
    proved_runs,
    segment,
)


def s16_sums(row: NDArray[Any], data: NDArray[Any], run: int) -> list[int]:
    """Every value that the s16 lanes hold while steps of four are summed `run` at a time."""
    row, data = (np.pad(v.astype(int), (0, -len(v) % 4)) for v in (row, data))
    products = (row * data).reshape(-1, 2, 2).sum(2)  # steps, lanes
    held = []
    for start in range(0, len(products), run):
        held += np.cumsum(products[start : start + run], axis=0).reshape(-1).tolist()
    return held


def fits(row: NDArray[Any], data_max: int, run: int) -> bool:
    """Whether no data at all can overflow: the worst is what meets one sign alone."""
    worst = [np.where(row > 0, data_max, 0), np.where(row < 0, data_max, 0)]
    sums = [s for data in worst for s in s16_sums(row, data, run)]
    return min(sums) >= -(2**15) and max(sums) < 2**15


rows = st.lists(st.integers(-128, 127), min_size=1, max_size=70)
data_maxima = st.sampled_from([1, 15, 127, 255])


@given(row=rows, spread=st.sampled_from([1, 4, 16, 64]), data_max=data_maxima)
@settings(max_examples=200, deadline=None)
def test_run_is_the_largest_without_overflow(row: list[int], spread: int, data_max: int) -> None:
    weights = np.array(row) // spread
    run = int(proved_runs(weights[None, None, None], data_max)[0])
    assert run == 0 or (run in RUNS and fits(weights, data_max, run))
    longer = [r for r in RUNS if r > run]
    if longer and run < -(-len(row) // 4):
        assert not fits(weights, data_max, longer[0])


@given(row=rows, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_no_data_overflows_a_proved_run(row: list[int], seed: int) -> None:
    weights = np.array(row) // 8
    run = int(proved_runs(weights[None, None, None], 255)[0])
    data = np.random.default_rng(seed).choice([0, 255], len(row))
    assert run > 0
    assert all(-(2**15) <= s < 2**15 for s in s16_sums(weights, data, run))


def neon_sums(row: NDArray[Any], data: NDArray[Any], run: int) -> list[int]:
    """Every value that the s16 lanes hold while steps of 16 are summed `run` at a time."""
    row, data = (np.pad(v.astype(int), (0, -len(v) % 16)) for v in (row, data))
    products = (row * data).reshape(-1, 2, 8)  # steps, what a lane adds, lanes
    held = []
    for start in range(0, len(products), run):
        in_turn = products[start : start + run].reshape(-1, 8)
        held += np.cumsum(in_turn, axis=0).reshape(-1).tolist()
    return held


@given(row=rows, spread=st.sampled_from([1, 2, 3, 4]), data_max=data_maxima)
@settings(max_examples=200, deadline=None)
def test_run_of_neon_is_the_largest_without_overflow(
    row: list[int], spread: int, data_max: int
) -> None:
    weights = np.array(row) // spread
    shift = (data_max + 1) // 2
    run = int(proved_runs(weights[None, None, None], data_max, shift)[0])
    ends = (-shift, data_max - shift)
    worst = [np.where(weights > 0, a, b) for a, b in (ends, ends[::-1])]

    def fits(run: int) -> bool:
        held = [s for data in worst for s in neon_sums(weights, data, run)]
        return min(held) >= -(2**15) and max(held) < 2**15

    assert run == 0 or (run in NEON_RUNS and fits(run))
    longer = [r for r in NEON_RUNS if r > run]
    if longer and run < -(-len(row) // 16):
        assert not fits(longer[0])


@pytest.mark.parametrize(
    ("weight", "data_max", "run"),
    [
        (-128, 255, 0),  # 2 x 128 x 128 is 32768
        (127, 255, 1),
        (64, 255, 2),  # 4 x 64 x -128 is in range
        (-64, 255, 1),  # and its negative is not
        (-63, 255, 2),
        (-42, 255, 3),
        (127, 127, 2),  # half the range of data is as good as half the weights
        (85, 127, 3),
    ],
)
def test_edge_of_the_bound_of_neon(weight: int, data_max: int, run: int) -> None:
    values = np.full((1, 8, 2, 96), weight)
    found = proved_runs(values, data_max, (data_max + 1) // 2)
    assert found.tolist() == [run]


@pytest.mark.parametrize(
    ("pair", "data_max", "run"),
    [
        ((64, 64), 255, 1),  # 32640
        ((65, 64), 255, 0),  # 32895
        ((-64, -64), 255, 1),
        ((-65, -64), 255, 0),
        ((-64, -64), 256, 1),  # -32768 is in range, 32768 is not
        ((64, 64), 256, 0),
        ((127, 127), 127, 1),  # 32258
        ((127, -127), 255, 1),  # opposite signs: 32385 at most
        ((0, 0), 255, 128),
        ((1, 1), 0, 128),
    ],
)
def test_edge_of_the_bound(pair: tuple[int, int], data_max: int, run: int) -> None:
    values = np.tile(np.array([*pair, 0, 0]), 128)
    if run == 1:
        assert proved_runs(values[None, None, None, :4], data_max)[0] == 1
        values[4:] = 0
        values[4:6] = pair
    found = int(proved_runs(values[None, None, None], data_max)[0])
    assert found == run


def test_run_is_that_of_the_worst_channel_and_segment() -> None:
    values = np.zeros((2, 8, 3, 64), np.int8)
    values[0, 5, 2, 3] = 127  # one product: 32385
    values[1, 1, 1, 0::2] = 16  # 4080 for each pair
    assert proved_runs(values, 255).tolist() == [16, 8]  # 16 steps are all there are


def random_weights(geometry: ConvGeometry) -> NDArray[np.int8]:
    shape = (geometry.oc, geometry.ic // geometry.groups, *geometry.kernel)
    return np.random.default_rng(0).integers(-9, 10, shape).astype(np.int8)


GEOMETRIES = {
    "dense": ConvGeometry(5, 5, 12, (3, 2)),
    "padded pixels": ConvGeometry(13, 16, 9, (2, 3)),
    "dilated": ConvGeometry(8, 8, 16, (3, 3), dilation=(2, 2)),
    "dilated rows": ConvGeometry(8, 8, 16, (3, 1), dilation=(2, 1)),
    "groups": ConvGeometry(12, 16, 18, (3, 3), groups=3),
    "depthwise": ConvGeometry(20, 24, 20, (3, 3), groups=20),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_segments_meet_the_right_pixels(name: str) -> None:
    """Products of segments and what lies at their offsets are the convolution."""
    geometry = GEOMETRIES[name]
    weights = random_weights(geometry)
    kh, kw = geometry.kernel
    dh, dw = geometry.dilation
    width = dw * (kw - 1) + 3
    image = np.random.default_rng(1).integers(0, 9, (dh * (kh - 1) + 1, width, geometry.icp))
    flat = np.append(image.reshape(-1), np.full(64, 99))
    cut = segment(weights, geometry, 8)
    offsets = geometry.segment_offsets(width * geometry.icp)
    assert len(offsets) == geometry.n_segments == (kh if geometry.rows_are_whole else kh * kw)
    got: dict[int, int] = {}
    for block, (start, first) in enumerate(zip(cut.starts, cut.channel_offsets, strict=True)):
        for channel, rows in enumerate(cut.values[block]):
            parts = [
                flat[first + o : first + o + len(r)] for o, r in zip(offsets, rows, strict=True)
            ]
            got[int(start) + channel] = int(
                sum((p * r).sum() for p, r in zip(parts, rows, strict=True))
            )
    taps = image[::dh, : dw * (kw - 1) + 1 : dw]
    per_group, outputs = geometry.ic // geometry.groups, geometry.oc // geometry.groups
    for channel in range(geometry.oc):
        first = channel // outputs * per_group
        reads = taps[..., first : first + per_group].transpose(2, 0, 1)
        assert got[channel] == int((reads * weights[channel]).sum())
    assert all(got[channel] == 0 for channel in range(geometry.oc, geometry.ocp))


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_packing_can_be_undone(form: Any, name: str) -> None:
    geometry = GEOMETRIES[name]
    cut = segment(random_weights(geometry), geometry, 8)
    packed, steps = pack(cut, form)
    blocks, ocb, segments, length = cut.values.shape
    assert packed.dtype == form.weights
    assert steps % form.unroll == 0
    if form.name in SUMMED:  # two steps of a channel side by side, an odd one behind them
        flat = packed.reshape(blocks, segments, -1)
        even = steps // 2 * ocb * 16
        pairs = flat[:, :, :even].reshape(blocks, segments, -1, ocb, 16)
        sides = (pairs[..., :8], pairs[..., 8:])
        last = flat[:, :, even:].reshape(blocks, segments, -1, ocb, 8)
        stacked = np.stack(sides, 3).reshape(blocks, segments, -1, ocb, 8)
        packed = np.concatenate([stacked, last], 2)
    values = packed.reshape(blocks, segments, steps, ocb, form.group).transpose(0, 3, 1, 2, 4)
    if form.name == "wide":  # two `phaddd` inputs hold channels 0 1 4 5 and 2 3 6 7
        values = values[:, np.argsort([0, 1, 4, 5, 2, 3, 6, 7])]
    values = values.reshape(blocks, ocb, segments, steps * form.group)
    np.testing.assert_array_equal(values[..., :length], cut.values)
    assert not values[..., length:].any()


def test_last_block_overlaps_its_neighbour() -> None:
    cut = segment(np.zeros((40, 8, 1, 1), np.int8), ConvGeometry(8, 8, 40, (1, 1)), 16)
    assert cut.starts.tolist() == [0, 16, 24]
