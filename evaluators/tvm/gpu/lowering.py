"""From a QDQ ONNX graph to Relax for a GPU: own integer kernels, and TVM's own for the rest.

The rules are those of the CPU. What differs is what a layer becomes (`call_layer`), what the
emitter emits, and that only layers in integers, and what stands between them, are worth it: layers
in float are left to TVM.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from ...onnx_graph.activations import find_activation
from ...onnx_graph.graph import Node
from ...onnx_graph.quantizers import is_constant, stored_steps
from ..image import Image
from ..layers import ConvLayer
from ..lowering import Lowering
from ..rule_table import Rule
from ..sink import Sink
from ..stored import are_halves
from . import depthwise
from .conv import Problem, choose_tile, conv_kernel, pack
from .emitter import GpuEmitter
from .halves import emit_layer

_DIMENSIONS = {"Conv": 4, "Gemm": 2, "MatMul": 2}  # of the weights of a layer
_POOLS = (
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMax",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
)
_OPERATORS = (*_DIMENSIONS, *_POOLS, "Add", "Mul", "Concat", "DequantizeLinear")
_SHAPES = ("Flatten", "Reshape", "Squeeze")


class GpuLowering(Lowering):
    """Builds one network for a GPU; its arguments are those of `Lowering`."""

    emitter = GpuEmitter
    has_channel_kernels = False
    emit: GpuEmitter

    def run(self) -> Any:
        """Return the Relax module of the network, without what rules have tried in vain."""
        return relax.transform.DeadCodeElimination()(super().run())

    def border(self, name: str) -> int:
        """Return 0: kernels look where they read."""
        return 0

    def call_layer(self, layer: ConvLayer) -> Image | None:
        """Emit a layer in integers without groups, or a depthwise one; None for another."""
        g, sink, output = layer.geometry, layer.sink, layer.output
        if not layer.is_integer or layer.phases is not None:
            return None
        if sink.residual is not None and sink.residual.cp != output.cp:
            sink = replace(sink, residual=self.emit.with_pitch(sink.residual, output.cp))
        has_fraction = layer.fraction is not None
        problem = Problem(g, layer.source, layer.pads, output, sink, has_fraction)
        if layer.is_depthwise and layer.weights[0].size <= depthwise.MAX_TAPS:
            weights, channels = depthwise.pack(layer.weights, output.cp), output.cp
            kernel = depthwise.depthwise_kernel(problem)
        elif g.groups == 1:
            tile = choose_tile(problem.pixels, g.oc, problem.words)
            weights = pack(layer.weights, layer.source.cp, tile)
            channels = -(-g.oc // tile.channels) * tile.channels
            kernel = conv_kernel(problem, tile)
        else:
            return None
        lost = 128 * layer.weights.astype(np.int64).sum((1, 2, 3))
        numbers = [(layer.bias + lost).astype(np.int32), layer.factor]
        if layer.fraction is not None:
            numbers.append(layer.fraction)
        constants = [np.pad(n, (0, channels - len(n))) for n in numbers]
        residual = [] if sink.residual is None else [sink.residual.var]
        self.add_layer(kernel.symbol, layer.name)
        arguments = [layer.source.var, weights, *constants, *residual]
        return replace(output, var=self.emit.launch(kernel, arguments))

    def _fall_back(self, name: str) -> None:
        node = self.graph.producer(name)
        value = self._half_layer(node) if node is not None and node.op in _DIMENSIONS else None
        if value is None:
            super()._fall_back(name)
        else:
            self._plain[name] = value

    def _half_layer(self, node: Node) -> Any | None:
        """Emit a layer with weights in float16; None if it is another one."""
        data, *rest = node.inputs
        weights, *bias = (self.constant(name) if name else None for name in rest)
        if weights is None or not are_halves(weights) or any(b is None for b in bias):
            return None
        added = bias[0] if bias else None
        return emit_layer(self._builder, self.graph, node, self.plain(data), weights, added)

    def _rules(self, node: Node) -> list[Rule]:
        if node.op in _SHAPES:
            return [_lower_pixels] if self._keeps_pixels(node) else []
        if node.op not in _OPERATORS or (node.op in _DIMENSIONS and not self._is_layer(node)):
            return []
        if node.op == "Concat" and not self._fills_words(node):
            return []
        return super()._rules(node)

    def _is_layer(self, node: Node) -> bool:
        """Whether a layer has steps as weights and input."""
        weights = node.inputs[1]
        return (
            len(self.graph.shape(weights)) == _DIMENSIONS[node.op]
            and stored_steps(self.graph, weights) is not None
            and self._stored(node.inputs[0]) is not None
        )

    def _fills_words(self, node: Node) -> bool:
        """Whether all inputs of a concatenation but the last fill their pixels."""
        shapes = [self.graph.shape(name) for name in node.inputs]
        return all(len(shape) == 4 and shape[1] % 8 == 0 for shape in shapes[:-1])

    def _keeps_pixels(self, node: Node) -> bool:
        """Whether a change of shape turns images of one pixel into rows."""
        before, after = self.graph.shape(node.inputs[0]), self.graph.shape(node.output)
        return len(before) == 4 and after == before[:2] and before[2:] == (1, 1)

    def _has_row_kernel(self, node: Node) -> bool:
        return False

    def _has_own_kernel(self, node: Node) -> bool:
        if self.multiplies_activations(node):
            return False
        if node.op in _DIMENSIONS:
            return self._is_layer(node) and super()._has_own_kernel(node)
        match = find_activation(self.graph, self.constant, node)
        if match is not None and match.data not in self._own:
            return False
        if node.op in ("Add", "Mul") and any(is_constant(self.graph, i) for i in node.inputs):
            return match is not None or self._adds_bias(node)
        return super()._has_own_kernel(node)

    def _adds_bias(self, node: Node) -> bool:
        makers = [self.graph.producer(name) for name in node.inputs]
        return any(m is not None and m.op == "MatMul" and self._is_layer(m) for m in makers)


def _lower_pixels(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Images of one pixel as rows, which lie in the same way."""
    source = low.source(node.inputs[0])
    return low.emit.store([replace(source, n=1, h=1, w=source.n)], sink)
