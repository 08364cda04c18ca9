"""Windows that slide over an image: how they are padded, and the pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.activations import clip_bounds
from ..onnx_graph.graph import Graph, Node, pads_of
from .network import Network
from .rules import Call, Value, rule, unsupported

_SAME, VALID = 0, 1  # in the schema's `Padding`


@dataclass(frozen=True, slots=True)
class Window:
    """How a window slides over an image; numbers for height first, then for width.

    LiteRT's operators know two paddings: none, and as much as it takes for one result per
    stride, with the odd pixel at the end. For any other the image is padded beforehand.

    Attributes:
        kernel, strides, dilations: Of the window.
        begin, end: Padding that the window reads.
        padding: Of LiteRT's operator, as the schema numbers them.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]
    padding: int

    @classmethod
    def of(
        cls,
        node: Node,
        source: Sequence[int],
        result: Sequence[int],
        kernel: Sequence[int],
        pads: tuple[int, int, int, int],
    ) -> Window:
        """Return the window of a node between images of these shapes, in ONNX's order."""
        strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
        end, same = [], True
        for k in range(2):
            reach = (kernel[k] - 1) * dilations[k] + 1
            # What the last window reads: less than the padding of the node where windows do not
            # fit exactly, and more with `ceil_mode`.
            total = max((result[k + 2] - 1) * strides[k] + reach - source[k + 2], 0)
            end.append(max(total - pads[k], 0))
            n_same = -(-source[k + 2] // strides[k])
            same &= result[k + 2] == n_same and pads[k] == total // 2
        is_padded = any(pads[:2]) or any(end)
        return cls(
            (kernel[0], kernel[1]),
            (strides[0], strides[1]),
            (dilations[0], dilations[1]),
            pads[:2],
            (end[0], end[1]),
            _SAME if same and is_padded else VALID,
        )

    def padded(self, network: Network, image: int, lowest: int | None = None) -> int:
        """Return the image with the padding that the operator lacks: 0, or a constant."""
        if self.padding == _SAME or not any(self.begin + self.end):
            return image
        (top, left), (bottom, right) = self.begin, self.end
        batch, height, width, channels = network.writer.shape(image)
        output = network.writer.tensor_like(
            image, (batch, height + top + bottom, width + left + right, channels)
        )
        inputs = [image, network.integers((0, 0), (top, bottom), (left, right), (0, 0))]
        if lowest is None:
            network.writer.operator("PAD", inputs, [output], "PadOptions")
        else:
            network.writer.operator("PADV2", [*inputs, lowest], [output], "PadV2Options")
        return output


@rule("MaxPool", kind="move")
def max_pool(network: Network, call: Call) -> Value:
    """Highest value in a window: `MAX_POOL_2D`."""
    window = _pool_window(network.graph, call)
    lowest, grid = None, call.grid
    if grid is not None and grid.low < grid.zero_point:
        lowest = network.constant(np.array([grid.low], np.int8), grid.quantization)
    elif grid is None and not _is_positive(network, call.node.inputs[0]):
        lowest = network.constant(np.array([np.finfo(np.float32).min]))
    source = window.padded(network, network.get(call.inputs[0], image=True), lowest)
    return _pool(network, "MAX_POOL_2D", source, window, call)


@rule("AveragePool")
def average_pool(network: Network, call: Call) -> Value:
    """Mean of a window: `AVERAGE_POOL_2D`, corrected where ONNX counts other pixels."""
    graph, node = network.graph, call.node
    window = _pool_window(graph, call)
    source = window.padded(network, network.get(call.inputs[0], image=True))
    pooled = _pool(network, "AVERAGE_POOL_2D", source, window, call)
    shape = graph.shape(node.inputs[0])
    pads = _pads(graph, call)
    includes_pads = bool(node.get("count_include_pad", 0))
    shares = np.ones((1, 1, 1, 1), np.float32)
    for k in range(2):
        size = shape[k + 2]
        wanted = (-pads[k], size + pads[k + 2]) if includes_pads else (0, size)
        given = (0, size) if window.padding == _SAME else (-window.begin[k], size + window.end[k])
        counts = [_counts(window, k, call.shape[k + 2], bounds) for bounds in (given, wanted)]
        share = (counts[0] / counts[1]).astype(np.float32)
        shares = shares * share.reshape((1, -1, 1, 1) if k == 0 else (1, 1, -1, 1))
    if (shares == 1).all():
        return pooled
    factors = network.constant(shares)
    return network.emit(
        "MUL", [pooled.index, factors], call.shape, image=True, options="MulOptions"
    )


@rule("GlobalAveragePool", kind="sum")
def global_average_pool(network: Network, call: Call) -> Value:
    """Mean over each image: `MEAN`."""
    if len(call.shape) != 4:
        raise unsupported(call.node, f"it averages over {len(call.shape) - 2} dimensions, not 2")
    return network.emit(
        "MEAN",
        [network.get(call.inputs[0], image=True), network.integers(1, 2)],
        call.shape,
        image=True,
        grid=call.grid,
        options="ReducerOptions",
        keepDims=True,
    )


def _pool_window(graph: Graph, call: Call) -> Window:
    node = call.node
    if len(call.shape) != 4:
        raise unsupported(node, f"it pools {len(call.shape) - 2} dimensions, not 2")
    if any(size != 1 for size in node.get("dilations", [1, 1])):
        raise unsupported(node, "its window is dilated")
    source = graph.shape(node.inputs[0])
    return Window.of(node, source, call.shape, node.get("kernel_shape", []), _pads(graph, call))


def _pads(graph: Graph, call: Call) -> tuple[int, int, int, int]:
    _, _, height, width = graph.shape(call.node.inputs[0])
    kernel = call.node.get("kernel_shape", [])
    return pads_of(call.node, height, width, (kernel[0], kernel[1]))


def _pool(network: Network, code: str, source: int, window: Window, call: Call) -> Value:
    return network.emit(
        code,
        [source],
        call.shape,
        image=True,
        grid=call.grid,
        options="Pool2DOptions",
        padding=window.padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )


def _counts(window: Window, k: int, n_results: int, bounds: tuple[int, int]) -> NDArray[np.int64]:
    """Return how many places of each window lie within bounds, along one dimension."""
    first = np.arange(n_results) * window.strides[k] - window.begin[k]
    last = np.minimum(first + window.kernel[k], bounds[1])
    return np.asarray(last - np.maximum(first, bounds[0]))


def _is_positive(network: Network, name: str) -> bool:
    """Whether a tensor has no value below 0, so that padding with 0 changes no maximum."""
    graph, steps = network.graph, network.steps_of(name)
    if steps is not None:
        return steps[1].low >= steps[1].zero_point
    maker = graph.producer(name)
    bounds = None if maker is None else clip_bounds(graph, graph.constant, maker)
    return bounds is not None and bounds[0] >= 0
