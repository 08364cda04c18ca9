"""Where QuantizeLinear and DequantizeLinear go in a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from ._graph import LAYER_OPS

PASSING_OPS = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "MaxPool",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Transpose",
    }
)
"""Operators with an integer form: their inputs are quantized if their result is."""

_SAME_GRID_OPS = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose"})
# A Relu or Clip on the result of one of these is an operator of its own, not the end of another.
_UNFUSED_OPS = PASSING_OPS - {"Add"}


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor that is quantized where it is made.

    Attributes:
        root: The tensor whose scale and zero point it shares; itself in most cases.
        bits: Width of its integers.
    """

    root: str
    bits: int


def place_quantizers(
    graph: GraphProto, activation_bits: Mapping[str, int]
) -> dict[str, QuantizedTensor]:
    """Choose the tensors of a float graph that are quantized.

    A tensor is quantized if an integer layer reads it, or an operator with an integer form whose
    own result is quantized. A Relu or Clip that alone reads a layer or an Add belongs to
    it, so nothing is quantized between the two; so does the Add of a bias to a MatMul.

    Args:
        graph: The graph.
        activation_bits: Names of the nodes of integer layers, and the widths of what they read.

    Returns:
        The quantized tensors in the order in which the graph makes them. Tensors that share
        a scale have the least width any of their readers asks for, 8 if none does.
    """
    constants = {i.name for i in graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    makers: dict[str, NodeProto] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            if name and name not in constants:
                readers[name].append(node)
        for name in node.output:
            makers[name] = node

    wanted: set[str] = set()
    widths: dict[str, int] = {}
    names = [i.name for i in graph.input] + [n for node in graph.node for n in node.output]
    for name in reversed(names):  # readers come after what they read
        bits = [
            activation_bits[node.name]
            for node in readers[name]
            if node.name in activation_bits and node.input[0] == name
        ]
        widths[name] = min(bits, default=8)
        if bits or any(n.op_type in PASSING_OPS and n.output[0] in wanted for n in readers[name]):
            wanted.add(name)
    wanted = {n for n in wanted if not _is_fused(n, readers, makers, constants)}

    roots = _roots(names, makers, wanted)
    shared: dict[str, int] = {}
    for name in wanted:
        shared[roots[name]] = min(shared.get(roots[name], 8), widths[name])
    return {n: QuantizedTensor(roots[n], shared[roots[n]]) for n in names if n in wanted}


def _roots(
    names: Iterable[str], makers: Mapping[str, NodeProto], wanted: Collection[str]
) -> dict[str, str]:
    """Return the tensor whose grid each quantized tensor has: views have that of their source."""
    roots: dict[str, str] = {}
    for name in names:
        if name in wanted:
            maker = makers.get(name)
            is_view = maker is not None and maker.op_type in _SAME_GRID_OPS
            roots[name] = roots.get(maker.input[0], name) if maker and is_view else name
    return roots


def _is_fused(
    name: str,
    readers: Mapping[str, list[NodeProto]],
    makers: Mapping[str, NodeProto],
    constants: set[str],
) -> bool:
    """Tell whether a tensor stays inside one operation of several nodes."""
    if len(readers[name]) != 1 or name not in makers:
        return False
    maker, reader = makers[name], readers[name][0]
    if reader.op_type in ("Relu", "Clip"):
        return maker.op_type not in _UNFUSED_OPS
    if reader.op_type == "Add" and maker.op_type == "MatMul":
        return maker.op_type in LAYER_OPS and any(i in constants for i in reader.input)
    return False
