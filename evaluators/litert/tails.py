"""What follows an operator and can be done with it: a bias, bounds and a quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.activations import clip_bounds, find_activation
from ..onnx_graph.graph import Graph, Node
from ..onnx_graph.quantizers import Quantizer, constant_reals, is_constant, quantizer

Bounds = tuple[float, float]
"""Lowest and highest value, infinite where there is none."""

UNBOUNDED = (-math.inf, math.inf)

FUSED = {
    UNBOUNDED: "NONE",
    (0.0, math.inf): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}
"""Bounds that LiteRT's operators can fuse, and what their options call them."""


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """What the only readers of a result do to it, in this order.

    Attributes:
        bias: Constant that is added to the last dimension, or None.
        bounds: What it is cut at.
        quantizer: Steps and zero point of the quantized result, or None if it stays float.
        result: The tensor at the end.
        nodes: The nodes that the tail stands for.
    """

    bias: NDArray[Any] | None
    bounds: Bounds
    quantizer: Quantizer | None
    result: str
    nodes: tuple[Node, ...]


def find_tail(graph: Graph, node: Node) -> Tail:
    """Follow the result of a float node through readers that can be done where it is made."""
    name, bias, bounds, found = node.output, None, UNBOUNDED, None
    nodes: list[Node] = []
    takes_bias = is_linear(graph, node)
    while found is None and (reader := graph.only_user(name)) is not None:
        further = clip_bounds(graph, graph.constant, reader)
        if further is not None and reader.inputs[0] == name:
            bounds = cut(bounds, further)
        elif reader.op == "QuantizeLinear" and reader.inputs[0] == name:
            found = stepper(graph, reader)
            if found is None:
                break
        elif takes_bias and not nodes and reader.op == "Add":
            bias = _added_vector(graph, reader, name)
            if bias is None:
                break
        else:
            break
        nodes.append(reader)
        name = reader.output
    return Tail(bias, bounds, found, name, tuple(nodes))


def stepper(graph: Graph, node: Node) -> Quantizer | None:
    """Return how a node maps between float32 and uint8, or int8 as the same steps from 0 on."""
    found = quantizer(graph, node)
    if found is not None:
        return found
    found = quantizer(graph, node, "int8")
    return found and replace(found, zero_point=found.zero_point + 128)


def cut(bounds: Bounds, further: Bounds) -> Bounds:
    """Return the bounds of a value that is cut at `bounds` first and then at `further`."""
    low, high = (min(max(bound, further[0]), further[1]) for bound in bounds)
    return low, high


def is_linear(graph: Graph, node: Node) -> bool:
    """Whether a node is a product with a constant matrix, which can add a bias."""
    return (
        node.op == "MatMul"
        and is_constant(graph, node.inputs[1])
        and len(graph.shape(node.inputs[1])) == 2
    )


def live_nodes(graph: Graph) -> list[Node]:
    """Return the nodes that the outputs need, in order.

    Activations that are written out, such as GELU with Erf, stand in it as one node, and a
    Split node as one for each part.
    """
    needed, live = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        parts = _parts(graph, node) if node.op == "Split" else [_activation(graph, node)]
        for part in parts:
            if part.output in needed:
                live.append(part)
                needed.update(part.inputs)
    return live[::-1]


def _activation(graph: Graph, node: Node) -> Node:
    """Return the one node that stands for a written-out activation, or the node itself."""
    found = find_activation(graph, graph.constant, node) if node.op == "Mul" else None
    if found is None:
        return node
    activation = found.activation
    is_standard = math.isclose(activation.a, 1 / 6, rel_tol=1e-6) and activation.b == 0.5
    if activation.name == "gelu":
        return replace(node, op="Gelu", inputs=(found.data,), attributes={})
    if activation.name == "hard_swish" and is_standard:
        return replace(node, op="HardSwish", inputs=(found.data,), attributes={})
    return node


def _parts(graph: Graph, node: Node) -> list[Node]:
    """Return Slice nodes, with their bounds as attributes, that stand for a Split node."""
    shape = graph.shape(node.inputs[0])
    axis, start, parts = node.get("axis", 0) % len(shape), 0, []
    for output in node.outputs:
        size = graph.shape(output)[axis]
        begin = [start if k == axis else 0 for k in range(len(shape))]
        attributes = {"begin": begin}
        parts.append(
            replace(
                node, op="Part", inputs=node.inputs[:1], outputs=(output,), attributes=attributes
            )
        )
        start += size
    return parts


def _added_vector(graph: Graph, add: Node, name: str) -> NDArray[Any] | None:
    """Return the constant vector that an Add node adds to the last dimension, or None."""
    other = add.inputs[1] if add.inputs[0] == name else add.inputs[0]
    value, shape = constant_reals(graph, other), graph.shape(name)
    if value is None or value.size != shape[-1] or value.shape[-1:] != shape[-1:]:
        return None
    return np.asarray(value).reshape(-1) if value.ndim <= len(shape) else None
