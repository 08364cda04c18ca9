"""Operators that only move numbers, as tables: which number of the source each place shows.

A chain of such operators (a channel shuffle is three) is carried out on the indices of its source,
and what comes out is taken apart again: where the index of every place is a sum of one part for
its image, one for its row, one for its column and one for its channel, one kernel with four small
tables does what the whole chain does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Graph, Node, evaluate
from ..onnx_graph.resampling import resampled_axes
from .image import Image

Index = NDArray[np.int64]
OUTSIDE = -(2**28)  # entry of a table for what is filled in: three of them fit into 32 bits
_PLAIN = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"),
    *("DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Pad"),
)
MOVES = (*_PLAIN, "Resize", "Upsample")
_LARGEST = 1 << 22  # numbers of a tensor whose indices are looked at


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Where every number of an image comes from.

    Attributes:
        source: The tensor that is read.
        reader: The first operator of the chain.
        shape: Batch, channels, height and width of what is made.
        start: Batch, channel, row and column of one number of the source.
        parts: For each axis of `shape` how far from `start` its numbers come from, shape
            `(size, 4)`.
        inside: For each axis which of its places show numbers of the source.
        fill: What the others hold.
    """

    source: str
    reader: Node
    shape: tuple[int, int, int, int]
    start: NDArray[np.int64]
    parts: tuple[NDArray[np.int64], ...]
    inside: tuple[NDArray[np.bool_], ...]
    fill: float

    @property
    def has_fill(self) -> bool:
        """Whether any number is filled in."""
        return not all(part.all() for part in self.inside)

    def tables(self, image: Image) -> tuple[int, list[NDArray[np.int32]]]:
        """Return the place of `start` in an image of the source, and the four tables for it."""
        pitches = np.array([image.plane, 1, image.row, image.cp])
        tables = [
            np.where(inside, part @ pitches, OUTSIDE).astype(np.int32)
            for part, inside in zip(self.parts, self.inside, strict=True)
        ]
        return image.origin + int(self.start @ pitches), tables


def find_move(graph: Graph, node: Node) -> Move | None:
    """Return what a node and the moves in front of it do together, if that is a move of images.

    The source has four dimensions, and so has the result, or its last one becomes the channels of
    a row of pixels.
    """
    chain = [node]
    while (maker := graph.producer(chain[-1].inputs[0])) is not None and _is_move(graph, maker):
        chain.append(maker)
    if not _is_move(graph, node):
        return None
    for length in range(len(chain), 0, -1):  # the longest that has an image in front
        found = _move_of(graph, chain[:length][::-1])
        if found is not None:
            return found
    return None


def _is_move(graph: Graph, node: Node) -> bool:
    if node.op not in MOVES or graph.dtype(node.output) != "float32":
        return False
    others = [name for name in node.inputs[1:] if name]
    if any(graph.constant(name) is None for name in others) or not node.inputs[0]:
        return False
    if node.op == "Gather" and graph.constant(node.inputs[0]) is not None:
        return False  # rows of a constant table
    return max(math.prod(graph.shape(t)) for t in (node.inputs[0], node.output)) <= _LARGEST


def _move_of(graph: Graph, chain: list[Node]) -> Move | None:
    source = chain[0].inputs[0]
    shape = graph.shape(source)
    if len(shape) != 4 or 0 in shape:
        return None
    index: Index = np.arange(math.prod(shape)).reshape(shape)
    fill = 0.0
    for node in chain:
        if node.op == "Pad":
            value = _filled(graph, node)
            if value != fill and bool(np.any(index < 0)):
                return None
            fill = value
        moved = _moved(graph, node, index)
        if moved is None or moved.size == 0:
            return None
        index = moved
    return _taken_apart(index, shape, source, chain[0], fill)


def _filled(graph: Graph, node: Node) -> float:
    value = _constant(graph, node, 2)
    return float(node.get("value", 0.0) if value is None else value.item())


def _constant(graph: Graph, node: Node, position: int) -> NDArray[Any] | None:
    has_one = len(node.inputs) > position and node.inputs[position]
    return graph.constant(node.inputs[position]) if has_one else None


def _moved(graph: Graph, node: Node, index: Index) -> Index | None:
    """Carry a move out on the indices of its operand."""
    if node.op in ("Resize", "Upsample"):
        axes = resampled_axes(graph, node)
        if axes is None or any(taps.places.shape[1] > 1 for taps in axes.values()):
            return None
        for axis, taps in axes.items():
            index = np.take(index, taps.places[:, 0], axis)
        return index
    if node.op == "Pad" and node.get("mode", b"constant") == b"constant":
        return _padded(graph, node, index)
    inputs = {name: graph.constant(name) for name in node.inputs[1:] if name}
    found = evaluate(node, {node.inputs[0]: index, **inputs}, graph.model.opset_import)
    return None if found is None else found[node.output]


def _padded(graph: Graph, node: Node, index: Index) -> Index | None:
    """Surround indices with -1, or cut them, as a Pad node says."""
    amounts = node.get("pads", None)
    if amounts is None:
        given = _constant(graph, node, 1)
        if given is None:
            return None
        amounts = given.reshape(-1).tolist()
    chosen = _constant(graph, node, 3)
    axes = range(index.ndim) if chosen is None else (chosen.reshape(-1) % index.ndim).tolist()
    sides = [(0, 0)] * index.ndim
    for k, axis in enumerate(axes):
        sides[axis] = (amounts[k], amounts[k + len(axes)])
    kept = tuple(
        slice(max(-low, 0), n - max(-high, 0))
        for (low, high), n in zip(sides, index.shape, strict=True)
    )
    grown = [(max(low, 0), max(high, 0)) for low, high in sides]
    return np.pad(index[kept], grown, constant_values=-1)


def _taken_apart(
    index: Index, shape: tuple[int, ...], source: str, reader: Node, fill: float
) -> Move | None:
    """Return the move whose numbers have the given indices in the source, if it is one."""
    if index.ndim == 4:
        image = index
    else:
        image = index.reshape(1, -1, 1, index.shape[-1] if index.ndim else 1).transpose(0, 3, 2, 1)
    inside = image >= 0
    if not inside.any():
        return None
    first = np.unravel_index(int(np.argmax(inside)), image.shape)
    lines = [
        image[tuple(slice(None) if k == axis else first[k] for k in range(4))] for axis in range(4)
    ]
    masks = [line >= 0 for line in lines]
    start = np.array(np.unravel_index(int(image[first]), shape))
    parts = [np.stack(np.unravel_index(np.maximum(line, 0), shape), 1) - start for line in lines]
    # With pitches this far apart, equal sums mean equal batches, channels, rows and columns.
    pitches = np.cumprod([1, *(4 * n for n in shape[:0:-1])])[::-1]
    wide = np.zeros(image.shape, np.int64)
    whole = np.ones(image.shape, bool)
    for axis in range(4):
        along = tuple(-1 if k == axis else 1 for k in range(4))
        wide += (parts[axis] @ pitches).reshape(along)
        whole &= masks[axis].reshape(along)
    there = np.stack(np.unravel_index(np.maximum(image, 0), shape), -1) - start
    if (whole != inside).any() or ((there @ pitches) != wide)[inside].any():
        return None
    n, c, h, w = image.shape
    return Move(source, reader, (n, c, h, w), start, tuple(parts), tuple(masks), fill)
