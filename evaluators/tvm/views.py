"""Tensors read or written through strides, so that Transpose and Reshape move nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..onnx_graph.graph import Graph, Node
from .image import Image

MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor inside a flat buffer.

    Attributes:
        image: The buffer, and how its numbers are quantized.
        shape: Of the tensor.
        strides: In numbers, one for each dimension.
        offset: Place of the first number.
    """

    image: Image
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of_rows(cls, image: Image, shape: Sequence[int]) -> View:
        """Return the view of a tensor whose last dimension is the channels of a row of pixels."""
        pixels = [image.cp * math.prod(shape[k + 1 : -1]) for k in range(len(shape) - 1)]
        return cls(image, tuple(shape), (*pixels, 1), image.origin)

    def transposed(self, order: Sequence[int]) -> View:
        """Return the view with its dimensions in another order."""
        shape, strides = ([values[k] for k in order] for values in (self.shape, self.strides))
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """Return the view with another shape, or None if that would have to move numbers."""
        before = [d for d in zip(self.shape, self.strides, strict=True) if d[0] != 1]
        after = [size for size in shape if size != 1]
        strides: list[int] = []
        while before and after:
            old, new = [before.pop(0)], [after.pop(0)]
            while math.prod(d[0] for d in old) != math.prod(new):
                if math.prod(d[0] for d in old) < math.prod(new):
                    old.append(before.pop(0))
                else:
                    new.append(after.pop(0))
            if any(a[1] != b[0] * b[1] for a, b in pairwise(old)):
                return None
            strides += [old[-1][1] * math.prod(new[k + 1 :]) for k in range(len(new))]
        spread = [strides.pop(0) if size != 1 else 1 for size in shape]
        return replace(self, shape=tuple(shape), strides=tuple(spread))

    def after(self, graph: Graph, node: Node) -> View | None:
        """Return the view of what a node of `MOVES` makes of this tensor."""
        if node.op == "Transpose":
            return self.transposed(_order(node, len(self.shape)))
        return self.reshaped(graph.shape(node.output))

    def before(self, graph: Graph, node: Node) -> View | None:
        """Return the view of the tensor of which a node of `MOVES` makes this one."""
        if node.op == "Transpose":
            order = _order(node, len(self.shape))
            return self.transposed([int(k) for k in np.argsort(order)])
        return self.reshaped(graph.shape(node.inputs[0]))

    def spread(self, shape: Sequence[int]) -> View:
        """Return the view with leading dimensions broadcast to a shape."""
        missing = len(shape) - len(self.shape)
        old = (*[1] * missing, *self.shape)
        strides = [
            0 if before == 1 and size != 1 else stride
            for before, size, stride in zip(
                old, shape, (*[0] * missing, *self.strides), strict=True
            )
        ]
        return replace(self, shape=tuple(shape), strides=tuple(strides))


def _order(node: Node, rank: int) -> list[int]:
    return [int(k) for k in node.get("perm", [*range(rank)][::-1])]


def joined(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Join neighbouring dimensions that several tensors step through alike.

    Args:
        sizes: Of the dimensions.
        strides: Of each tensor in these dimensions.

    Returns:
        For each dimension that is left, its size and the stride of each tensor.
    """
    found: list[tuple[int, ...]] = []
    for size, *steps in zip(sizes, *strides, strict=True):
        if size == 1:
            continue
        if found and all(a == size * b for a, b in zip(found[-1][1:], steps, strict=True)):
            found[-1] = (found[-1][0] * size, *steps)
        else:
            found.append((size, *steps))
    return found
