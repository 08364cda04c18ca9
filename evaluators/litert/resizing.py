"""Resize: by LiteRT's operators where they mean the same, else by indices."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.resampling import resampled_axes
from ..onnx_resize import Taps
from .network import TO_IMAGE, Network
from .rules import Call, Value, rule, unsupported

_ALIGNMENTS = tuple(product((False, True), repeat=2))[:3]  # corners, centres; not both


@rule("Resize", "Upsample", kind="move")
def resize(network: Network, call: Call) -> Value | None:
    """`RESIZE_NEAREST_NEIGHBOR`, `RESIZE_BILINEAR`, or `GATHER` along each axis.

    LiteRT's operators know three ways to lay the output over the input. Where none is the
    file's, nearest pixels are gathered; other weighted sums have no form.
    """
    node, graph = call.node, network.graph
    axes = resampled_axes(graph, node)
    if axes is None or not axes.keys() <= {2, 3} or len(call.shape) != 4:
        raise unsupported(node, "it resizes more than height and width, or by computed scales")
    is_nearest = node.get("mode", b"nearest") == b"nearest"
    if call.grid is not None and not is_nearest:
        return None  # sums are not rounded as the file rounds them
    image = network.get(call.inputs[0], image=True)
    before = graph.shape(node.inputs[0])
    for corners, centres in _ALIGNMENTS:
        wanted = all(
            np.allclose(
                _matrix(taps, before[axis]),
                _litert_matrix(is_nearest, corners, centres, before[axis], call.shape[axis]),
                atol=1e-6,
            )
            for axis, taps in axes.items()
        )
        if wanted:
            code = "RESIZE_NEAREST_NEIGHBOR" if is_nearest else "RESIZE_BILINEAR"
            return network.emit(
                code,
                [image, network.integers(*call.shape[2:])],
                call.shape,
                image=True,
                grid=call.grid,
                options="ResizeNearestNeighborOptions" if is_nearest else "ResizeBilinearOptions",
                alignCorners=corners,
                halfPixelCenters=centres,
            )
    if not is_nearest:
        raise unsupported(node, "LiteRT lays the output over the input in another way")
    return _gathered(network, call, image, axes)


def _gathered(network: Network, call: Call, image: int, axes: dict[int, Taps]) -> Value:
    """Gather the nearest pixels, along one axis after the other."""
    shape = list(network.graph.shape(call.node.inputs[0]))
    value = Value(image, True)
    for axis, taps in axes.items():
        shape[axis] = call.shape[axis]
        value = network.emit(
            "GATHER",
            [value.index, network.constant(taps.places[:, 0].astype(np.int32))],
            shape,
            image=True,
            grid=call.grid,
            options="GatherOptions",
            axis=TO_IMAGE.index(axis),
        )
    return value


def _matrix(taps: Taps, size: int) -> NDArray[np.float64]:
    """Return the weight of each input (columns) in each output (rows)."""
    found = np.zeros((len(taps.places), size))
    for tap in range(taps.places.shape[1]):
        np.add.at(found, (np.arange(len(found)), taps.places[:, tap]), taps.weights[:, tap])
    return found


def _litert_matrix(
    is_nearest: bool, corners: bool, centres: bool, size: int, out: int
) -> NDArray[np.float64]:
    """Return the same of LiteRT's operator.

    References:
        https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/kernels/internal
        (reference/resize_bilinear.h, reference/resize_nearest_neighbor.h)
    """
    scale = (size - 1) / (out - 1) if corners and out > 1 else size / out
    at, rows = np.arange(out) * scale, np.arange(out)
    if is_nearest:
        at = (rows + 0.5) * scale if centres else at
        places = np.floor(at + 0.5) if corners else np.floor(at)
        found = np.zeros((out, size))
        found[rows, np.clip(places, 0, size - 1).astype(np.int64)] = 1
        return found
    at = (rows + 0.5) * scale - 0.5 if centres else at
    lower = np.maximum(np.floor(at), 0).astype(np.int64)
    upper = np.minimum(np.ceil(at), size - 1).astype(np.int64)
    found = np.zeros((out, size))
    np.add.at(found, (rows, lower), 1 - (at - lower))
    np.add.at(found, (rows, upper), at - lower)
    return found
