"""Transposed convolution as one convolution: a group of output channels for each output phase.

Output pixels whose rows and columns leave the same rest after division by the stride are a phase.
All pixels of a phase meet the same weights, so a phase is a plain convolution of the input. The
kernel computes all phases in one call: each has its own output channels, its own shift of the
input, and its own place in the output (`kernels.conv`, `is_spread`).

References:
    Shi and others. Is the deconvolution layer the same as a convolutional layer?
    https://arxiv.org/abs/1609.07009
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.transposed import Axis


@dataclass(frozen=True, slots=True, eq=False)
class Phases:
    """Where the channels of a spread convolution read and write.

    Attributes:
        channels: Output channels of a phase, a multiple of eight.
        shifts: Row and column of a phase's first tap in the input, shape `(phases, 2)`.
        stride: Phases in rows and columns; phases come row by row.
    """

    channels: int
    shifts: NDArray[np.int32]
    stride: tuple[int, int]


def phase_weights(
    weights: NDArray[np.generic], axes: tuple[Axis, Axis]
) -> tuple[NDArray[np.generic], Phases]:
    """Cut the weights of a transposed convolution into those of its phases.

    Args:
        weights: Output channels first, shape `(oc, ic, kh, kw)`.
        axes: Rows and columns.

    Returns:
        The weights of a plain convolution, shape `(phases * channels, ic, taps, taps)`, and the
        phases.
    """
    oc, ic = weights.shape[:2]
    rows, columns = axes
    channels = -(-oc // 8) * 8
    found = np.zeros(
        (rows.stride, columns.stride, channels, ic, rows.n_taps, columns.n_taps), weights.dtype
    )
    shifts = []
    for y, x in np.ndindex(rows.stride, columns.stride):
        shifts.append((rows.shift(y), columns.shift(x)))
        for i, (_, ky) in enumerate(rows.taps(y)):
            for j, (_, kx) in enumerate(columns.taps(x)):
                found[y, x, :oc, :, i, j] = weights[:, :, ky, kx]
    stride = (rows.stride, columns.stride)
    return found.reshape(-1, *found.shape[3:]), Phases(
        channels, np.array(shifts, np.int32), stride
    )
