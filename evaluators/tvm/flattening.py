"""Linear layers over the channels of channels-last images, as layers over rows of pixels.

Networks such as ConvNeXt and Swin transpose images to have their channels last and apply linear
layers, layer normalization and activations there, in four dimensions. The rules for encoders take
three, so height and width are joined where such a part begins, and parted where it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_POINTWISE = frozenset(
    (
        *("Relu", "Clip", "Gelu", "Erf", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Mish"),
        *("LeakyRelu", "Elu", "QuantizeLinear", "DequantizeLinear", "Identity"),
    )
)
_BINARY = frozenset(("Add", "Sub", "Mul", "Div"))


def flatten_pixels(model: onnx.ModelProto) -> None:
    """Rewrite such parts of a model, whose shapes have been inferred, in place."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset >= 13 and any(node.op_type == "MatMul" for node in model.graph.node):
        part = _Part(model.graph)
        if part.nodes:
            part.rewrite()


class _Part:
    """The nodes that can be rewritten, and the tensors between them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {v.name: v.type.tensor_type for v in values}
        self.arrays = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.nodes = self._found()
        self.made: list[NodeProto] = []
        self.flat: set[str] = set()  # tensors whose flat form is there

    def _found(self) -> dict[str, list[int]]:
        """Return for the output of each node the positions of the images that it reads."""
        found: dict[str, list[int]] = {}
        waiting = [node for node in self.graph.node if node.op_type == "MatMul"]
        while waiting:
            node = waiting.pop()
            if not node.output or node.output[0] in found:
                continue
            positions = self._images(node)
            if not positions:
                continue
            found[node.output[0]] = positions
            waiting += self.readers.get(node.output[0], [])
            makers = (self.makers.get(node.input[i]) for i in positions)
            waiting += [maker for maker in makers if maker is not None]
        return found

    def _images(self, node: NodeProto) -> list[int]:
        """Return which inputs are channels-last images for a node; none if it is another node."""
        values = _attributes(node)
        if node.domain not in ("", "ai.onnx") or len(self.shape(node.output[0])) != 4:
            return []
        if node.op_type in _BINARY:
            shape = self.shape(node.output[0])
            images = [i for i, name in enumerate(node.input) if self.shape(name) == shape]
            others = [name for i, name in enumerate(node.input) if i not in images]
            return images if all(self._is_last(name) for name in others) else []
        if len(self.shape(node.input[0])) != 4:
            return []
        match node.op_type:
            case "MatMul":
                weights = self.shape(node.input[1])
                return [0] if len(weights) == 2 and self._is_constant(node.input[1]) else []
            case "LayerNormalization":
                is_last = values.get("axis", -1) in (-1, 3) and len(node.output) == 1
                return [0] if is_last else []
            case "QuantizeLinear" | "DequantizeLinear":
                return [0] if not self.shape(node.input[1]) else []
        return [0] if node.op_type in _POINTWISE else []

    def _is_last(self, name: str) -> bool:
        """Whether a constant has numbers along the last dimension alone."""
        shape = self.shape(name)
        is_known = self._is_constant(name) and (len(shape) < 4 or name in self.arrays)
        return is_known and all(size == 1 for size in shape[:-1])

    def _is_constant(self, name: str) -> bool:
        if name in self.arrays:
            return True
        maker = self.makers.get(name)
        if maker is None or maker.op_type not in ("Constant", "DequantizeLinear"):
            return False
        return all(self._is_constant(i) for i in maker.input if i)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; that of a scalar where it is not known, which fits nothing."""
        if name in self.arrays:
            return tuple(self.arrays[name].dims)
        kind = self.types.get(name)
        return () if kind is None else tuple(d.dim_value for d in kind.shape.dim)

    # ---- the new nodes

    def rewrite(self) -> None:
        """Replace the nodes of the graph."""
        outputs = {v.name for v in self.graph.output}
        for node in list(self.graph.node):
            name = node.output[0]
            if name in self.nodes:
                self._flatten(node)
                users = self.readers.get(name, [])
                outside = [u for u in users if u.output[0] not in self.nodes]
                if name in outputs or not all(self._is_turned(u) for u in outside):
                    self._add("Reshape", _flat(name), name, self.shape(name))
            elif self._is_turned(node) and node.input[0] in self.nodes:
                n, c, h, w = self.shape(name)
                self._turn(_flat(node.input[0]), f"{name}:columns", (n, c, h * w), node)
                self._add("Reshape", f"{name}:columns", name, (n, c, h, w))
            else:
                self.made.append(node)
        kept = _needed(self.made, outputs)
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _is_turned(self, node: NodeProto) -> bool:
        """Whether a node puts the channels of an image first."""
        return node.op_type == "Transpose" and _attributes(node).get("perm") == TO_FIRST

    def _flatten(self, node: NodeProto) -> None:
        """Add a node that reads and makes rows of pixels."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if i in self.nodes[node.output[0]]:
                self._need(name)
                copy.input[i] = _flat(name)
            elif name in self.arrays and len(self.shape(name)) == 4:
                values = numpy_helper.to_array(self.arrays[name]).reshape(self.shape(name)[1:])
                copy.input[i] = self._constant(_flat(name), values)
        copy.output[0] = _flat(node.output[0])
        for attribute in copy.attribute:
            if attribute.name == "axis" and node.op_type == "LayerNormalization":
                attribute.i = -1
        self.flat.add(node.output[0])
        n, h, w, c = self.shape(node.output[0])
        self._declare(copy.output[0], (n, h * w, c), node.output[0])
        self.made.append(copy)

    def _need(self, name: str) -> None:
        """Add what flattens a tensor that comes from outside."""
        if name in self.nodes or name in self.flat:
            return
        self.flat.add(name)
        n, h, w, c = self.shape(name)
        maker = self.makers.get(name)
        if maker is not None and _attributes(maker).get("perm") == TO_LAST:
            self._add("Reshape", maker.input[0], f"{name}:columns", (n, c, h * w))
            self._turn(f"{name}:columns", _flat(name), (n, h * w, c), maker)
        else:
            self._add("Reshape", name, _flat(name), (n, h * w, c))

    def _turn(self, source: str, name: str, shape: tuple[int, ...], like: NodeProto) -> None:
        """Add a Transpose of rows and columns."""
        self._declare(name, shape, like.output[0])
        self.made.append(helper.make_node("Transpose", [source], [name], perm=[0, 2, 1]))

    def _add(self, op: str, source: str, name: str, shape: tuple[int, ...]) -> None:
        """Add a change of shape."""
        target = self._constant(f"{name}:shape", np.array(shape, np.int64))
        if name not in self.types:
            self._declare(name, shape, source.removesuffix(":pixels"))
        self.made.append(helper.make_node(op, [source, target], [name]))

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        if name not in self.arrays:
            self.arrays[name] = numpy_helper.from_array(value, name)
            self.graph.initializer.append(self.arrays[name])
        return name

    def _declare(self, name: str, shape: tuple[int, ...], like: str) -> None:
        kind = self.types[like].elem_type
        value = helper.make_tensor_value_info(name, kind, shape)
        self.types[name] = value.type.tensor_type
        self.graph.value_info.append(value)


def _flat(name: str) -> str:
    return f"{name}:pixels"


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _needed(nodes: Iterable[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Return the nodes that something reads, in their order."""
    read, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1]
