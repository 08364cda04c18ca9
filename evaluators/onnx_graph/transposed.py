"""Transposed convolution, axis by axis: which pixels of the input each output is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .graph import Graph, Node


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
