"""An ONNX graph as compilers read it: constants as arrays, producers, users, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..measurement import EvaluationError
from .inference import infer_shapes
from .operators import SUPPORTED, check_node

# Weights are to be seen as they are stored, and random numbers are no constants.
_KEPT = frozenset(
    (
        *("DequantizeLinear", "QuantizeLinear", "Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    )
)
_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator with its attributes decoded; `proto` is the original."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: onnx.NodeProto

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute or its default."""
        return self.attributes.get(name, default)


class Graph:
    """Read-only view of a model, in the order of its nodes.

    Initializers and whatever follows from them and from shapes alone are constants, but
    dequantized weights stay the nodes that they are. Identity nodes are looked through.

    Args:
        model: The model; its shapes are inferred here and must be static.
        rewrite: Changes the model in place once its shapes are known, and declares new ones.

    Raises:
        EvaluationError: If the model is invalid, or a tensor's shape is not known.
    """

    def __init__(
        self, model: onnx.ModelProto, rewrite: Callable[[onnx.ModelProto], None] | None = None
    ) -> None:
        self.model = infer_shapes(model)
        if rewrite is not None:
            rewrite(self.model)
        graph = self.model.graph
        if not graph.output:
            raise EvaluationError(
                "The ONNX model must have an output, but it has none: it is empty or cut off.",
                "model",
            )
        for proto in graph.node:
            _check_operator(proto)
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._types = {
            v.name: v.type.tensor_type for v in (*graph.value_info, *graph.output, *graph.input)
        }
        self._alias: dict[str, str] = {}
        self._read = {name for proto in graph.node for name in proto.input}
        self._read |= {v.name for v in graph.output}
        self._stored: set[str] = set()  # constants that a DequantizeLinear node turns into reals
        self.nodes: list[Node] = []
        for proto in graph.node:
            for part in self._parts(proto):
                self._add(part)
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)
        self.inputs = [v.name for v in graph.input if v.name not in self._constants]
        self.outputs = [self.resolve(v.name) for v in graph.output]

    def _add(self, proto: onnx.NodeProto) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        inputs = tuple(self.resolve(name) for name in proto.input)
        own = proto.domain not in ("", "ai.onnx")
        op = f"{proto.domain}.{proto.op_type}" if own else proto.op_type
        limits = SUPPORTED.get(op)
        unread = [name for name in proto.output[1:] if name not in self._read]
        if limits is not None and limits.outputs == 1 and len(unread) == len(proto.output) - 1:
            del proto.output[1:]
        outputs = tuple(proto.output)
        node = Node(op, inputs, outputs, attributes, proto)
        values = self._folded(node)
        if values is not None:
            self._constants |= values
            return
        if op == "DequantizeLinear" and all(self.is_constant(i) for i in inputs if i):
            self._stored.add(node.output)
        check_node(self, node)
        if op in ("Identity", "Dropout"):
            self._alias[node.output] = inputs[0]
            for mask in outputs[1:]:
                self._constants[mask] = np.ones(self.shape(inputs[0]), bool)
        else:
            self.nodes.append(node)

    def _parts(self, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return a node, or one Slice for each output of a Split: each can be made alone."""
        opset = max((o.version for o in self.model.opset_import if o.domain == ""), default=1)
        is_split = proto.op_type == "Split" and proto.domain in ("", "ai.onnx")
        if not is_split or opset < 10 or not all(map(self._has_numbers, proto.output)):
            return [proto]
        axes = [helper.get_attribute_value(a) for a in proto.attribute if a.name == "axis"]
        axis = (axes or [0])[0]
        parts, begin = [], 0
        for output in proto.output:
            end = begin + self.shape(output)[axis]
            names = [f"{output}:{part}" for part in ("from", "to", "axis")]
            for name, value in zip(names, (begin, end, axis), strict=True):
                self._constants[name] = np.array([value], np.int64)
            inputs = [proto.input[0], *names]
            parts.append(helper.make_node("Slice", inputs, [output], proto.name))
            begin = end
        return parts

    def _folded(self, node: Node) -> dict[str, NDArray[Any]] | None:
        """Return the outputs of a node that depend on no input of the graph, or None."""
        if node.op == "Shape" and self._has_shape(node.inputs[0]):
            shape = np.array(self.shape(node.inputs[0]), np.int64)
            return {node.output: shape[node.get("start", 0) : node.get("end", None)]}
        known = {name: self._constants.get(name) for name in node.inputs if name}
        if (
            node.op in _KEPT
            or any(value is None for value in known.values())
            or any(a.type in _SUBGRAPHS for a in node.proto.attribute)
        ):
            return None
        return evaluate(node, known, self.model.opset_import)

    def resolve(self, name: str) -> str:
        """Return the tensor that a name stands for."""
        return self._alias.get(name, name)

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant's value, or None."""
        return self._constants.get(name)

    def producer(self, name: str) -> Node | None:
        """Return the node that makes a tensor, or None for inputs and constants."""
        return self._producers.get(name)

    def users(self, name: str) -> list[Node]:
        """Return the nodes that read a tensor."""
        return self._users.get(name, [])

    def only_user(self, name: str) -> Node | None:
        """Return the single reader of a tensor, or None if it has several or leaves the graph."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, or one that is stored in steps."""
        return name in self._constants or name in self._stored

    def is_read(self, name: str) -> bool:
        """Whether anything reads a tensor, or it leaves the graph."""
        return name in self._read

    def is_output(self, name: str) -> bool:
        """Whether a tensor leaves the graph."""
        return name in self.outputs

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            EvaluationError: If the shape is not static.
        """
        value = self.constant(name)
        if value is not None:
            return tuple(int(d) for d in value.shape)
        kind = self._types.get(name)
        if kind is None or not self._has_shape(name):
            raise EvaluationError(
                f"Every shape must be static, but that of tensor '{name}' is not known. "
                "Fix the model's input shapes.",
                "model",
            )
        return tuple(d.dim_value for d in kind.shape.dim)

    def _has_numbers(self, name: str) -> bool:
        return self._has_shape(name) and 0 not in self.shape(name)

    def _has_shape(self, name: str) -> bool:
        kind = self._types.get(name)
        if kind is None:
            return name in self._constants
        return kind.HasField("shape") and all(map(_is_fixed, kind.shape.dim))

    def dtype(self, name: str) -> str:
        """Return a tensor's element type as numpy names it.

        Raises:
            EvaluationError: If shape inference knows nothing of the tensor.
        """
        value = self.constant(name)
        if value is not None:
            return str(value.dtype)
        if name not in self._types or not self._types[name].elem_type:
            raise EvaluationError(
                f"Every type must be known, but that of tensor '{name}' is not. Check that the "
                "model has only standard operators.",
                "model",
            )
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(self._types[name].elem_type)))

    def __iter__(self) -> Iterator[Node]:
        """Iterate over the nodes in order."""
        return iter(self.nodes)


def _check_operator(proto: onnx.NodeProto) -> None:
    if proto.domain in ("", "ai.onnx") and not onnx.defs.has(proto.op_type):
        raise EvaluationError(
            f"Operator {proto.op_type} (node '{proto.name or proto.output[0]}') must be one of "
            "ONNX's, but is not. Was the model exported by a newer version?",
            "model",
        )


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        EvaluationError: If the file cannot be read or decoded.
    """
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError, OSError, onnx's own
        raise EvaluationError(f"'{path}' is not a readable ONNX file: {error}", "model") from error


def _is_fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return bool(dim.HasField("dim_value"))


def evaluate(
    node: Node, inputs: dict[str, Any], opsets: Iterable[onnx.OperatorSetIdProto]
) -> dict[str, NDArray[Any]] | None:
    """Return the outputs of a node on constant inputs, or None if onnx cannot compute them."""
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(node.inputs)
    outputs = [name for name in node.outputs if name]
    body = helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    try:
        found = ReferenceEvaluator(helper.make_model(body, opset_imports=opsets)).run(None, inputs)
    except Exception:  # whatever it lacks, TVM may have
        return None
    return {name: np.asarray(value) for name, value in zip(outputs, found, strict=True)}


def factors(graph: Graph, node: Node) -> tuple[str, str] | None:
    """Return the operands of a product of images, or None if it is another product.

    The first has the shape of the result; the second has it, too, or one pixel per image (a gate
    for each channel), or one channel (a gate for each pixel).
    """
    result = graph.shape(node.output)
    first, second = node.inputs
    if graph.shape(first) != result:
        first, second = second, first
    gates = [result]
    if len(result) == 4:
        gates += [(*result[:2], 1, 1), (result[0], 1, *result[2:])]
    fits = graph.shape(first) == result and graph.shape(second) in gates
    return (first, second) if fits and len(result) >= 2 else None


def conv_pads(graph: Graph, node: Node) -> tuple[int, int, int, int]:
    """Return the padding of a two-dimensional Conv node: top, left, bottom, right."""
    _, _, height, width = graph.shape(node.inputs[0])
    kernel = graph.shape(node.inputs[1])[2:]
    return pads_of(node, height, width, (kernel[0], kernel[1]))


def pads_of(
    node: Node, height: int, width: int, kernel: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the padding of a convolution or pooling node: top, left, bottom, right."""
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    mode = node.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("NOTSET", ""):
        top, left, bottom, right = node.get("pads", [0, 0, 0, 0])
        return top, left, bottom, right
    if mode == "VALID":
        return 0, 0, 0, 0
    sides = []
    for size, k, stride, dilation in zip((height, width), kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small = total // 2
        sides.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
