"""Rules for operators that move numbers, and for resampling: tables instead of arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..onnx_graph.graph import Graph, Node
from ..onnx_graph.resampling import resampled_axes
from ..onnx_resize import Taps
from .image import Image
from .kernels.pointwise import move_kernel, resample_kernel
from .layers import parameter_arrays
from .lowering import Lowering
from .moves import MOVES, Move, find_move
from .rule_table import rule
from .sink import Sink

_WIDEST_WEAVE = 4


@dataclass(frozen=True, slots=True)
class _Channels:
    """How the channels of a moved pixel lie in its source, as `move_kernel` has it."""

    kind: str
    count: int
    ahead: int = 0
    apart: int = 0


def is_worth_moving(low: Lowering, node: Node) -> bool:
    """Whether a move reads an image, and what it makes is wanted as one."""
    unmoved = _pixels(low.graph, node)
    if unmoved is not None and low.is_own(unmoved[0]):
        return True
    move = _move(low, node)
    if move is None or _channels(move) is None:
        return _taps(low.graph, node) is not None
    if node.op in ("Resize", "Upsample"):
        return True  # some of TVM's own forms are wrong
    if not low.is_image(move.source):
        return False
    if len(low.graph.shape(node.output)) != 4:
        return _feeds_layer(low.graph, node.output)
    # Where channels become rows or columns, pixels are best moved in the plain form.
    return move.shape[1] == 1 or bool(move.parts[1][:, 1].any())


def _feeds_layer(graph: Graph, name: str) -> bool:
    """Whether a linear layer or its normalization reads a tensor, quantized or not."""
    for user in graph.users(name):
        is_first = user.inputs[0] == name
        if user.op in ("Gemm", "MatMul", "LayerNormalization") and is_first:
            return True
        passes = user.op in ("QuantizeLinear", "DequantizeLinear")
        if passes and _feeds_layer(graph, user.output):
            return True
    return False


@rule(*MOVES, worth=is_worth_moving)
def lower_move(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Whatever only moves numbers, from one image to another; and resampling."""
    image = _unmoved(low, node, sink)
    if image is not None:
        return image
    move = _move(low, node)
    channels = None if move is None else _channels(move)
    if move is None or channels is None:
        taps = _taps(low.graph, node)
        return None if taps is None else _resampled(low, node, taps, sink)
    return _moved(low, move, channels, sink)


def _moved(low: Lowering, move: Move, channels: _Channels, sink: Sink) -> Image:
    """Copy numbers in the form in which there are fewer: before or after the sink's work."""
    source = low.steps(move.source)
    can_wait = bool(move.has_fill and sink.activation.name)
    if source is None:
        is_alone = low.graph.only_user(move.source) is move.reader
        is_free = is_alone and not can_wait
        inner = replace(sink, border=0)
        source = low.produce(move.source, inner) if is_free else low.source(move.source)
    if np.prod(move.shape) >= source.n * source.c * source.h * source.w and not can_wait:
        source = _stored(low, source, sink)
    is_stored = replace(sink, border=source.border).leaves(source)
    fill = _fill(move.fill, sink if is_stored else Sink(0))
    if not is_stored and source.dtype == "uint8":
        if move.has_fill and move.fill != 0:
            source = low.emit.store([source], Sink(0))
        else:
            fill = source.zero_point
    made = _call(low, source, move, channels, fill, sink.border)
    return low.emit.store([made], sink)


def _stored(low: Lowering, source: Image, sink: Sink) -> Image:
    if replace(sink, border=source.border).leaves(source):
        return source
    return low.emit.store([source], replace(sink, border=0))


def _fill(value: float, sink: Sink) -> float:
    """Return what is stored for a real number."""
    value = float(np.clip(np.float32(value), sink.low, sink.high))
    if sink.dtype == "float32":
        return value
    low, high = sink.steps
    return (
        float(np.clip(np.rint(np.float32(value) / np.float32(sink.scale)), low, high))
        + sink.zero_point
    )


def _call(
    low: Lowering, source: Image, move: Move, channels: _Channels, fill: float, border: int
) -> Image:
    n, c, h, w = move.shape
    made = Sink(border).image(n, h, w, c)
    output = replace(
        source,
        var=None,
        n=n,
        h=h,
        w=w,
        c=c,
        cp=made.cp,
        border=border,
    )
    if source.dtype == "uint8":
        output = replace(output, data_max=max(source.data_max, int(fill)))
    base, (batches, in_pixel, rows, columns) = move.tables(source)
    table = [batches, rows, columns]
    count = channels.count
    if channels.kind == "table":
        table.append(in_pixel)
    else:
        base += int(in_pixel[channels.ahead])
    if channels.kind == "run" and count == source.c and output.cp <= source.cp:
        count = output.cp  # whole pixels, whose unused numbers are finite
    lanes = 8
    if channels.kind == "run":
        most = 32 if source.dtype == "uint8" else 16
        lanes = next((k for k in (32, 16, 8) if k <= most and count % k == 0), 8)
    kernel = move_kernel(source.dtype, channels.kind, lanes, low.threads)
    values = {**output.as_output(), "base": base, "count": count, "fill": fill}
    values |= {"ahead": channels.ahead, "apart": channels.apart}
    arguments = [source.var, np.concatenate(table), *parameter_arrays(kernel, values)]
    return low.emit.image(kernel, arguments, output)


def _channels(move: Move) -> _Channels | None:
    """Return how channels lie in the source, or None if some in between are filled in."""
    inside, part = move.inside[1], move.parts[1]
    places = np.flatnonzero(inside)
    ahead, count = int(places[0]), len(places)
    if places[-1] - ahead + 1 != count:
        return None
    is_in_pixel = not part[inside][:, [0, 2, 3]].any()
    steps = part[inside][:, 1] - part[ahead, 1]
    if is_in_pixel and (steps == np.arange(count)).all():
        return _Channels("run", count, ahead)
    if count != len(inside):
        return None
    for ways in range(2, _WIDEST_WEAVE + 1):
        turn, number = np.divmod(np.arange(count), ways)[::-1]
        if is_in_pixel and count % ways == 0 and (steps == turn * steps[1] + number).all():
            return _Channels(f"weave{ways}", count // ways, apart=int(steps[1]))
    return _Channels("table", count)


def _move(low: Lowering, node: Node) -> Move | None:
    if node.output not in low.moves:
        low.moves[node.output] = find_move(low.graph, node)
    return low.moves[node.output]


def _pixels(graph: Graph, node: Node) -> tuple[str, int, int, int] | None:
    """Return the tensor, batch, height and width of what lies as before.

    That is `(n, c, 1, 1)` as `(n, c)`, and an image as rows of pixels: a Transpose of all its
    pixels, `(n, c, h * w)`, to `(n, h * w, c)`. And both the other way round.
    """
    data = node.inputs[0]
    before, after = graph.shape(data), graph.shape(node.output)
    if len(before) == 4 and before[2:] == (1, 1) and after == before[:2]:
        return data, 1, 1, before[0]
    if len(after) == 4 and after[2:] == (1, 1) and before == after[:2]:
        return data, after[0], 1, 1
    maker = graph.producer(data)
    turned = next((m for m in (node, maker) if m is not None and m.op == "Transpose"), None)
    if maker is None or turned is None or turned.get("perm", None) != [0, 2, 1]:
        return None
    data = maker.inputs[0]
    before = graph.shape(data)
    if maker.op == "Transpose" and node.op == "Reshape" and len(after) == 4:
        n, c, h, w = after
        return (data, n, h, w) if before == (n, h * w, c) else None
    if maker.op == "Reshape" and node.op == "Transpose" and len(before) == 4:
        n, c, h, w = before
        return (data, 1, 1, n * h * w) if after == (n, h * w, c) else None
    return None


def _unmoved(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """A change of shape that moves nothing."""
    pixels = _pixels(low.graph, node)
    if pixels is None:
        return None
    data, n, h, w = pixels
    if not low.is_own(data):
        return None
    source = low.source(data)
    if source.border or source.cp % 8:
        return None
    return low.emit.store([replace(source, n=n, h=h, w=w)], sink)


def _taps(graph: Graph, node: Node) -> Mapping[int, Taps] | None:
    """Return the taps of a Resize that keeps batches and channels apart, else None."""
    if node.op not in ("Resize", "Upsample"):
        return None
    if len(graph.shape(node.output)) != 4 or graph.dtype(node.output) != "float32":
        return None
    axes = resampled_axes(graph, node)
    return axes if axes is not None and axes.keys() <= {2, 3} else None


def _resampled(low: Lowering, node: Node, axes: Mapping[int, Taps], sink: Sink) -> Image:
    n, c, h, w = low.graph.shape(node.output)
    stage = Sink(sink.border) if sink.activation.name else sink
    output = stage.image(n, h, w, c)
    source = low.emit.with_pitch(low.source(node.inputs[0]), output.cp)
    rows, columns = (axes.get(axis, _same(size)) for axis, size in ((2, h), (3, w)))
    taps = rows.places.shape[1], columns.places.shape[1]
    fixed = tuple(k if k <= 2 else 0 for k in taps)
    kernel = resample_kernel(source.dtype, stage.dtype, (fixed[0], fixed[1]), low.threads)
    values = {**output.as_output(), **stage.parameters()}
    values |= {"ans": source.plane, "base": source.origin, "kh": taps[0], "kw": taps[1]}
    values |= {"z0": source.zero_point, "f0": source.scale}
    tables = [
        (rows.places * source.row).astype(np.int32).reshape(-1),
        (columns.places * source.cp).astype(np.int32).reshape(-1),
        *(part.weights.reshape(-1) for part in (rows, columns)),
    ]
    arguments = [source.var, *tables, *parameter_arrays(kernel, values)]
    return low.emit.store([low.emit.image(kernel, arguments, output)], sink)


def _same(size: int) -> Taps:
    return Taps(np.arange(size)[:, None], np.ones((size, 1), np.float32))
