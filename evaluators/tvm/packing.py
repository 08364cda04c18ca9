"""Weights in the order kernels read them, and the proof of how far they may sum in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kernels.conv import WIDE_ORDER, Form
from .kernels.neon import SUMMED

RUNS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)  # each from 4 on a multiple of 4
NEON_RUNS = (1, 2, 3)  # longer ones gain nothing


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """Sizes of a convolution as the kernels need them.

    Attributes:
        ic: Input channels.
        icp: Channel pitch of the input image, in elements (`ic` or more).
        oc: Output channels, without padding.
        kernel: Height and width.
        stride: Vertical and horizontal.
        dilation: Vertical and horizontal.
        groups: Groups of channels.
        phases: Of a transposed convolution: each has all groups, and as many of the `oc` channels.
        filled: Channels at the end of each phase that fill it up.
    """

    ic: int
    icp: int
    oc: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    phases: int = 1
    filled: int = 0

    @property
    def ocp(self) -> int:
        """Output channels, filled up to a multiple of eight."""
        return -(-self.oc // 8) * 8

    @property
    def rows_are_whole(self) -> bool:
        """Whether a kernel row is one contiguous run of the input image."""
        return self.groups == 1 and (self.dilation[1] == 1 or self.kernel[1] == 1)

    @property
    def n_segments(self) -> int:
        """Contiguous runs per output pixel."""
        return self.kernel[0] * (1 if self.rows_are_whole else self.kernel[1])

    def groups_of(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the group of output channels; what fills them up belongs to the last one."""
        whole = self.oc // self.phases
        used = whole - self.filled
        inside = np.minimum(np.minimum(channels, self.oc - 1) % whole, used - 1)
        groups: NDArray[np.int64] = inside // (used // self.groups)
        return groups

    def segment_offsets(self, row: int) -> NDArray[np.int32]:
        """Offset of each segment from the first one; `row` is the pitch of the image's rows."""
        ys = np.arange(self.kernel[0]) * self.dilation[0] * row
        xs = np.arange(1 if self.rows_are_whole else self.kernel[1]) * self.dilation[1] * self.icp
        return (ys[:, None] + xs).reshape(-1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Segments:
    """Weights as rows of numbers that meet contiguous input numbers.

    Attributes:
        values: Shape `(blocks, ocb, segments, length)`.
        starts: First channel of each block, shape `(blocks,)`.
        channel_offsets: First input channel that each block reads, shape `(blocks,)`.
    """

    values: NDArray[np.generic]
    starts: NDArray[np.int32]
    channel_offsets: NDArray[np.int32]


def segment(weights: NDArray[np.generic], geometry: ConvGeometry, ocb: int) -> Segments:
    """Cut OIHW weights into blocks of `ocb` output channels and contiguous segments.

    Where a block covers several groups, its segments cover the input channels of all of them and
    hold zeros elsewhere.

    Args:
        weights: Shape `(oc, ic / groups, kh, kw)`.
        geometry: Sizes of the layer.
        ocb: Output channels of a block, a multiple of eight, at most `geometry.ocp`.
    """
    oc, icg, kh, kw = weights.shape
    starts = np.minimum(np.arange(-(-geometry.ocp // ocb)) * ocb, geometry.ocp - ocb)
    rows = np.zeros((geometry.ocp, kh, kw, icg), weights.dtype)
    rows[:oc] = weights.transpose(0, 2, 3, 1)
    index = starts[:, None] + np.arange(ocb)
    blocks = rows[index]  # (blocks, ocb, kh, kw, icg)
    if geometry.groups == 1:
        blocks = np.pad(blocks, [(0, 0)] * 4 + [(0, geometry.icp - icg)])
        offsets = np.zeros(len(starts), np.int32)
    else:
        blocks, offsets = _spread_groups(blocks, index, geometry, icg)
    shape = (len(starts), ocb, geometry.n_segments, -1)
    return Segments(blocks.reshape(shape), starts.astype(np.int32), offsets)


def _spread_groups(
    blocks: NDArray[np.generic], index: NDArray[np.int64], geometry: ConvGeometry, icg: int
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Put weights at their group's place among the input channels that their block reads."""
    group = geometry.groups_of(index)
    length = int((group.max(1) - group.min(1) + 1).max()) * icg
    offsets = np.minimum(group.min(1) * icg, geometry.ic - length)
    spread = np.zeros((*blocks.shape[:4], length), blocks.dtype)
    for b, o in np.ndindex(index.shape):
        at = int(group[b, o] * icg - offsets[b])
        spread[b, o, :, :, at : at + icg] = blocks[b, o]
    return spread, offsets.astype(np.int32)


def pack(segments: Segments, form: Form) -> tuple[NDArray[np.generic], int]:
    """Order weights as block, segment, step, channel, number within the step.

    Returns:
        The flat array in the form's dtype, and the number of steps per segment.
    """
    values = _in_steps(segments.values, form)
    blocks, ocb, n_segments, steps, group = values.shape
    if form.name == "wide":
        eights = values.reshape(blocks, ocb // 8, 8, n_segments, steps, group)
        values = eights[:, :, list(WIDE_ORDER)].reshape(values.shape)
    if form.name in SUMMED:
        return _in_sixteens(values), steps
    packed = np.ascontiguousarray(values.transpose(0, 2, 3, 1, 4), dtype=form.weights)
    return packed.reshape(-1), steps


def _in_sixteens(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Order steps of eight as pairs of steps, channel, 16 numbers; an odd last one behind them."""
    blocks, ocb, n_segments, steps, group = values.shape
    even = steps // 2 * 2
    by_segment = values.transpose(0, 2, 1, 3, 4)
    pairs = by_segment[:, :, :, :even].reshape(blocks, n_segments, ocb, even // 2, 2 * group)
    parts = (pairs.transpose(0, 1, 3, 2, 4), by_segment[:, :, :, even:])
    flat = [part.reshape(blocks, n_segments, part[0, 0].size) for part in parts]
    return np.concatenate(flat, axis=2).reshape(-1).astype(np.int8)


def _in_steps(values: NDArray[np.generic], form: Form) -> NDArray[np.generic]:
    """Fill segments up to whole steps; shape `(blocks, ocb, segments, steps, group)`."""
    size = form.group * form.unroll
    padded = np.pad(values, [(0, 0)] * 3 + [(0, -values.shape[3] % size)])
    return padded.reshape(*values.shape[:3], -1, form.group)


def proved_runs(
    values: NDArray[np.generic], data_max: int, shift: int | None = None
) -> NDArray[np.int32]:
    """Return how many steps each block may sum in s16 without overflow, proved from its weights.

    `pmaddubsw` (x86) adds the products of neighbouring pairs into one s16 lane, steps are of four
    numbers. `smlal` (NEON) adds those that are eight apart, steps are of 16, and data have `shift`
    taken off. Every partial sum of a run lies between two bounds: each product taken with the
    smaller or the larger of what it is with the smallest and the largest input.

    Args:
        values: Segments, shape `(blocks, ocb, segments, length)`, any integers.
        data_max: Largest value of the uint8 input.
        shift: What NEON takes off the input; None for x86.

    Returns:
        For each block the largest proved entry of `RUNS` or `NEON_RUNS`, 0 if not even one step
        fits; shape `(blocks,)`.
    """
    blocks, ocb, n_segments, length = values.shape
    lanes, axis = ((2, 2), -1) if shift is None else ((2, 8), -2)
    size = lanes[0] * lanes[1]
    padded = np.pad(values, [(0, 0)] * 3 + [(0, -length % size)]).astype(np.int32)
    steps = padded.shape[3] // size
    pairs = padded.reshape(blocks, ocb, n_segments, steps, *lanes)
    low, high = -(shift or 0), max(data_max, 1) - (shift or 0)
    sides = [
        np.maximum(pairs * low, pairs * high).sum(axis),
        np.minimum(pairs * low, pairs * high).sum(axis),
    ]
    runs = np.zeros(blocks, np.int32)
    for run in RUNS if shift is None else NEON_RUNS:
        starts = np.arange(0, steps, run)
        top, bottom = (np.add.reduceat(side, starts, axis=3) for side in sides)
        fits = (top.max((1, 2, 3, 4)) <= 32767) & (bottom.min((1, 2, 3, 4)) >= -32768)
        runs = np.where(fits, run, runs)
        if run >= steps or not fits.any():
            break
    return runs.astype(np.int32)
