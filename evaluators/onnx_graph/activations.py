"""Activations in an ONNX graph: single operators, and the patterns that exporters write."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .graph import Graph, Node

Constant = Callable[[str], NDArray[Any] | None]


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of single numbers that kernels apply before they store.

    Attributes:
        name: As `kernels.activation` has it; empty for none.
        a, b: Its parameters.
    """

    name: str = ""
    a: float = 0.0
    b: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """An activation in a graph.

    Attributes:
        activation: Which one.
        data: The tensor that it is applied to.
        readers: The nodes of the pattern that read this tensor.
    """

    activation: Activation
    data: str
    readers: tuple[Node, ...]

    def is_only_reader(self, graph: Graph) -> bool:
        """Whether nothing else reads the tensor, so that it need not exist."""
        return self.data not in graph.outputs and len(graph.users(self.data)) == len(self.readers)


def find_activation(graph: Graph, constant: Constant, node: Node) -> Found | None:
    """Return the activation that a float node is, or is the end of; None if it is none.

    Args:
        graph: The graph.
        constant: Returns the value of a tensor that is constant.
        node: The node.
    """
    if graph.dtype(node.output) != "float32" or not node.inputs:
        return None
    if node.op == "Mul":
        return _gated(graph, node) or _gelu_of_erf(graph, constant, node)
    activation = _single(graph, constant, node)
    return None if activation is None else Found(activation, node.inputs[0], (node,))


def clip_bounds(graph: Graph, constant: Constant, node: Node) -> tuple[float, float] | None:
    """Return the bounds of a float Relu or Clip node; None for any other."""
    if node.op not in ("Relu", "Clip") or graph.dtype(node.output) != "float32":
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    # Up to opset 10 the bounds are attributes.
    bounds = [float(node.get("min", -math.inf)), float(node.get("max", math.inf))]
    for i, name in enumerate(node.inputs[1:3]):
        if name:
            value = constant(name)
            if value is None:
                return None
            bounds[i] = float(value.item())
    return min(bounds), bounds[1]


def _single(graph: Graph, constant: Constant, node: Node) -> Activation | None:
    match node.op:
        case "Sigmoid" | "Tanh" | "Erf" | "Mish":
            return Activation(node.op.lower())
        case "HardSigmoid":
            return Activation("hard_sigmoid", node.get("alpha", 0.2), node.get("beta", 0.5))
        case "HardSwish":
            return Activation("hard_swish", 1 / 6, 0.5)
        case "LeakyRelu":
            return Activation("leaky_relu", node.get("alpha", 0.01))
        case "Gelu":
            is_tanh = node.get("approximate", b"none") == b"tanh"
            return Activation("gelu_tanh" if is_tanh else "gelu")
        case "Swish" if node.get("alpha", 1.0) == 1.0:
            return Activation("silu")
        case "PRelu":
            slope = constant(node.inputs[1])
            if slope is not None and slope.size == 1 and slope.ndim <= _rank(graph, node):
                return Activation("leaky_relu", float(slope.item()))
    return None


def _rank(graph: Graph, node: Node) -> int:
    return len(graph.shape(node.inputs[0]))


def _gated(graph: Graph, node: Node) -> Found | None:
    """`x * Sigmoid(x)`, `x * HardSigmoid(x)` and `x * Tanh(Softplus(x))`."""
    for data, gate in (node.inputs, node.inputs[::-1]):
        maker = graph.producer(gate)
        plus = graph.producer(maker.inputs[0]) if maker and maker.op == "Tanh" else None
        if plus is not None and plus.op == "Softplus" and plus.inputs == (data,):
            if graph.only_user(gate) is node and graph.only_user(plus.output) is maker:
                return Found(Activation("mish"), data, (node, plus))
        if maker is None or maker.inputs[:1] != (data,) or graph.only_user(gate) is not node:
            continue
        if maker.op == "Sigmoid":
            return Found(Activation("silu"), data, (node, maker))
        if maker.op == "HardSigmoid":
            slope, height = maker.get("alpha", 0.2), maker.get("beta", 0.5)
            return Found(Activation("hard_swish", slope, height), data, (node, maker))
    return None


def _gelu_of_erf(graph: Graph, constant: Constant, node: Node) -> Found | None:
    """`x * (1 + Erf(x / sqrt(2))) * 0.5`, in the orders in which exporters write the product."""
    factors, members = _product(graph, node, node)
    values = [constant(name) for name in factors]
    scale = math.prod(float(v.item()) for v in values if v is not None and v.size == 1)
    rest = [name for name, v in zip(factors, values, strict=True) if v is None or v.size != 1]
    if len(rest) != 2 or len(factors) != 3 or abs(scale - 0.5) > 1e-6:
        return None
    for data, gate in (rest, rest[::-1]):
        add = graph.producer(gate)
        if add is None or add.op != "Add" or graph.only_user(gate) not in members:
            continue
        inner = _argument_of_erf(graph, constant, add, data)
        if inner is not None:
            direct = next(m for m in members if data in m.inputs)
            return Found(Activation("gelu"), data, (direct, inner))
    return None


def _product(graph: Graph, node: Node, user: Node) -> tuple[list[str], list[Node]]:
    """Return the factors of up to two Mul nodes in a row, and the nodes."""
    for k, name in enumerate(node.inputs):
        maker = graph.producer(name)
        if maker is not None and maker.op == "Mul" and graph.only_user(name) is node:
            return [*maker.inputs, node.inputs[1 - k]], [node, maker]
    return list(node.inputs), [user]


def _argument_of_erf(graph: Graph, constant: Constant, add: Node, data: str) -> Node | None:
    """Return the node that scales `data` for an Erf to which `add` adds 1."""
    for name, other in (add.inputs, add.inputs[::-1]):
        erf, one = graph.producer(name), constant(other)
        if erf is None or erf.op != "Erf" or one is None or one.size != 1 or one.item() != 1:
            continue
        scaled = graph.producer(erf.inputs[0])
        if (
            graph.only_user(name) is not add
            or scaled is None
            or graph.only_user(erf.inputs[0]) is not erf
            or scaled.op not in ("Div", "Mul")
            or data not in scaled.inputs
        ):
            continue
        number = constant(scaled.inputs[1] if scaled.inputs[0] == data else scaled.inputs[0])
        if number is None or number.size != 1 or (scaled.op == "Div" and scaled.inputs[0] != data):
            continue
        wanted = math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5)
        if abs(float(number.item()) - wanted) < 1e-5:
            return scaled
    return None
