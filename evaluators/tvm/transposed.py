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

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a transposed convolution.

    Attributes:
        size: Of the input.
        out: Of the output.
        kernel, stride, dilation: As in the file.
        begin: Padding that is cut off at the beginning.
    """

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    begin: int

    @property
    def count(self) -> int:
        """Output pixels of the largest phase."""
        return -(-self.out // self.stride)

    @property
    def step(self) -> int:
        """Distance between the input pixels that a phase reads."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    def taps(self, phase: int) -> list[tuple[int, int]]:
        """Return the place in the input, relative to the output pixel, and the kernel's index."""
        shifted = [(phase + self.begin - k * self.dilation, k) for k in range(self.kernel)]
        return sorted((at // self.stride, k) for at, k in shifted if at % self.stride == 0)

    @property
    def n_taps(self) -> int:
        """Kernel size of every phase; those with fewer taps are filled up with zeros."""
        return max(1, *(len(self.taps(phase)) for phase in range(self.stride)))

    def shift(self, phase: int) -> int:
        """Place of a phase's first tap in the input, relative to the output pixel."""
        taps = self.taps(phase)
        return taps[0][0] if taps else 0

    @property
    def border(self) -> int:
        """Pixels around the input that the phases read."""
        shifts = [self.shift(phase) for phase in range(self.stride)]
        behind = max(shifts) + self.count - 1 + (self.n_taps - 1) * self.step - (self.size - 1)
        return max(0, -min(shifts), behind)


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


def transposed_axes(graph: Graph, node: Node) -> tuple[Axis, Axis]:
    """Return the axes of a two-dimensional ConvTranspose node."""
    sizes, outs = graph.shape(node.inputs[0])[2:], graph.shape(node.output)[2:]
    kernel = graph.shape(node.inputs[1])[2:]
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    extra = node.get("output_padding", [0, 0])
    mode = node.get("auto_pad", b"NOTSET").decode()
    axes = []
    for i in range(2):
        whole = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        cut = whole - outs[i]  # what the padding takes away
        begin = cut // 2 if mode == "SAME_UPPER" else cut - cut // 2
        if "output_shape" not in node.attributes and mode in ("NOTSET", ""):
            begin = node.get("pads", [0] * 4)[i]
        axes.append(Axis(sizes[i], outs[i], kernel[i], strides[i], dilations[i], begin))
    return axes[0], axes[1]
