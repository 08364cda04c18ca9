"""The phases of a transposed convolution, against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.onnx_graph.transposed import Axis
from paredown.evaluators.tvm.transposed import phase_weights


def scatter(data: NDArray[Any], weights: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[Any]:
    """Add every input pixel times the kernel to the output, and cut the padding off."""
    oc, _, kh, kw = weights.shape
    whole = [
        a.stride * (a.size - 1) + (a.kernel - 1) * a.dilation + 1 + a.out for a in (rows, columns)
    ]
    out = np.zeros((oc, *whole), data.dtype)
    for y, x, i, j in np.ndindex(rows.size, columns.size, kh, kw):
        at = y * rows.stride + i * rows.dilation, x * columns.stride + j * columns.dilation
        out[:, at[0], at[1]] += weights[:, :, i, j] @ data[:, y, x]
    return out[:, rows.begin :, columns.begin :][:, : rows.out, : columns.out]


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    size, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    whole = stride * (size - 1) + (kernel - 1) * dilation + 1
    begin = draw(st.integers(0, min(whole - 1, kernel)))
    return Axis(
        size, draw(st.integers(1, whole - begin + stride - 1)), kernel, stride, dilation, begin
    )


@given(rows=axes(), columns=axes(), oc=st.integers(1, 9))
def test_phases_together_are_the_transposed_convolution(
    rows: Axis, columns: Axis, oc: int
) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(-9, 9, (2, rows.size, columns.size))
    weights = rng.integers(-9, 9, (oc, 2, rows.kernel, columns.kernel))
    values, phases = phase_weights(weights, (rows, columns))
    values = values.reshape(len(phases.shifts), phases.channels, *values.shape[1:])
    border = max(rows.border, columns.border)
    padded = np.pad(data, ((0, 0), (border, border), (border, border)))
    found = np.zeros((oc, rows.count * rows.stride, columns.count * columns.stride), data.dtype)
    for y, x, p in np.ndindex(rows.count, columns.count, len(phases.shifts)):
        top, left = phases.shifts[p] + border + np.array([y, x])
        for i, j in np.ndindex(*values.shape[3:]):
            at: NDArray[Any] = padded[:, top + i * rows.step, left + j * columns.step]
            place = y * rows.stride + p // columns.stride, x * columns.stride + p % columns.stride
            found[:, place[0], place[1]] += (
                np.asarray(values)[p, :oc, :, i, j].astype(np.int64) @ at
            )
    assert not values[:, oc:].any()
    assert (found[:, : rows.out, : columns.out] == scatter(data, weights, rows, columns)).all()


@pytest.mark.parametrize(
    ("axis", "taps", "border"),
    [
        (Axis(size=4, out=8, kernel=2, stride=2, dilation=1, begin=0), 1, 0),  # U-Net
        (Axis(size=4, out=8, kernel=4, stride=2, dilation=1, begin=1), 2, 1),
        (Axis(size=4, out=8, kernel=3, stride=2, dilation=1, begin=1), 2, 1),
        (Axis(size=4, out=6, kernel=3, stride=1, dilation=1, begin=0), 3, 2),
    ],
)
def test_no_phase_has_needless_taps(axis: Axis, taps: int, border: int) -> None:
    assert (axis.n_taps, axis.border) == (taps, border)
