"""How tensors of a graph are quantized: steps and zero points of its Q and DQ nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node, evaluate


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A uint8 tensor with one step and one zero point, the only form with integer kernels."""

    scale: float
    zero_point: int


def quantizer(graph: Graph, node: Node, dtype: str = "uint8") -> Quantizer | None:
    """Return how a QuantizeLinear or DequantizeLinear node maps between float32 and `dtype`.

    None if it is another node, or maps otherwise (to another type, per channel, with a computed
    scale): then it is an operator like any other.
    """
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    steps, reals = node.output, node.inputs[0]
    if node.op == "DequantizeLinear":
        steps, reals = reals, steps
    scale, zero_point = (_operand(graph, node, i) for i in (1, 2))
    if (
        (graph.dtype(steps), graph.dtype(reals)) != (dtype, "float32")
        or scale is None
        or scale.size != 1
        or (zero_point is None and len(node.inputs) > 2 and node.inputs[2])
        or (zero_point is not None and zero_point.size != 1)
    ):
        return None
    return Quantizer(float(scale.item()), 0 if zero_point is None else int(zero_point.item()))


@dataclass(frozen=True, slots=True, eq=False)
class StoredSteps:
    """A constant that is stored in steps.

    Attributes:
        values: The integers.
        scale, zero_point: One number, or one per place along `axis`.
        axis: Where the scale has several numbers; counted from the front.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int

    @property
    def reals(self) -> NDArray[np.float32]:
        """The dequantized values, in the precision of the file."""
        steps = self.values.astype(np.float32) - self._spread(self.zero_point.astype(np.float32))
        return np.asarray(steps * self._spread(self.scale), np.float32)

    @property
    def doubles(self) -> NDArray[np.float64]:
        """The dequantized values without rounding, so that steps come back exactly."""
        steps = self.values.astype(np.float64) - self._spread(self.zero_point.astype(np.float64))
        return np.asarray(steps * self._spread(self.scale.astype(np.float64)))

    def _spread(self, numbers: NDArray[Any]) -> NDArray[Any]:
        if numbers.size == 1:
            return numbers.reshape(())
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return numbers.reshape(shape)


def stored_steps(graph: Graph, name: str) -> StoredSteps | None:
    """Return the steps behind a tensor that is a dequantized constant, else None."""
    node = graph.producer(name)
    if node is None or node.op != "DequantizeLinear" or graph.dtype(name) != "float32":
        return None
    values, scale, zero_point = (_operand(graph, node, i) for i in (0, 1, 2))
    if values is None or scale is None or scale.ndim > 1:  # two dimensions: in blocks
        return None
    if zero_point is None:
        if len(node.inputs) > 2 and node.inputs[2]:
            return None
        zero_point = np.zeros(scale.shape, np.int32)
    axis = node.get("axis", 1) % max(values.ndim, 1)
    return StoredSteps(values, scale.astype(np.float32), zero_point, axis)


def is_constant(graph: Graph, name: str) -> bool:
    """Return whether a tensor is a constant, or one stored in steps."""
    return graph.constant(name) is not None or stored_steps(graph, name) is not None


def constant_reals(graph: Graph, name: str) -> NDArray[Any] | None:
    """Return a constant, dequantized if it is stored in steps."""
    value, node = graph.constant(name), graph.producer(name)
    if value is not None or node is None or node.op != "DequantizeLinear":
        return value
    stored = stored_steps(graph, name)
    if stored is not None:
        return stored.reals
    inputs = {i: graph.constant(i) for i in node.inputs if i}
    if any(value is None for value in inputs.values()):
        return None
    return (evaluate(node, inputs, graph.model.opset_import) or {}).get(name)


def _operand(graph: Graph, node: Node, index: int) -> NDArray[Any] | None:
    has_one = len(node.inputs) > index and node.inputs[index]
    return graph.constant(node.inputs[index]) if has_one else None
