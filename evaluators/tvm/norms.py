"""Normalization over pixels in an ONNX graph: by channel or by group of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.graph import Graph, Node

Constant = Callable[[str], NDArray[Any] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A normalization of images, each group of channels over all its pixels.

    Attributes:
        data: The tensor that is normalized, of four dimensions.
        groups: Groups of channels; as many as there are channels for instance normalization.
        epsilon: Added to the variance.
        scale, shift: Of each channel, applied to what is normalized; shape `(channels,)`.
    """

    data: str
    groups: int
    epsilon: float
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def find_norm(graph: Graph, constant: Constant, node: Node) -> Norm | None:
    """Return the normalization that a node is, or is the end of; None if it is none.

    Exporters write a group normalization as an InstanceNormalization between two Reshapes.

    Args:
        graph: The graph.
        constant: Returns the value of a tensor that is constant.
        node: The node.
    """
    shape = graph.shape(node.output)
    if len(shape) != 4 or graph.dtype(node.output) != "float32":
        return None
    if node.op == "Reshape":
        inner = graph.producer(node.inputs[0])
        if inner is None or inner.op != "InstanceNormalization":
            return None
        outer = graph.producer(inner.inputs[0])
        if outer is None or outer.op != "Reshape" or graph.shape(outer.inputs[0]) != shape:
            return None
        groups = graph.shape(inner.output)
        if len(groups) != 3 or groups[0] != shape[0] or shape[1] % groups[1]:
            return None
        return _norm(constant, inner, outer.inputs[0], shape[1], groups[1])
    if node.op == "InstanceNormalization":
        return _norm(constant, node, node.inputs[0], shape[1], shape[1])
    if node.op == "GroupNormalization":
        return _norm(constant, node, node.inputs[0], shape[1], node.get("num_groups", 1))
    return None


def _norm(constant: Constant, node: Node, data: str, channels: int, groups: int) -> Norm | None:
    numbers = []
    for name in node.inputs[1:3]:
        value = constant(name)
        if value is None or channels % value.size:
            return None
        numbers.append(np.repeat(value.reshape(-1).astype(np.float64), channels // value.size))
    return Norm(data, groups, node.get("epsilon", 1e-5), *numbers)
