"""Bringing the torch exporter's graphs into the few forms that Paredown works on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ...evaluators.onnx_module import supported_ops
from ._graph import attribute
from ._torch_export import ExportError

_IR_VERSION = 10
_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules of a node


def check_operators(graph: GraphProto) -> None:
    known = supported_ops()
    unknown: dict[str, str] = {}
    for node in graph.node:
        operator = (
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        )
        if operator not in known:
            unknown.setdefault(operator, _module_of(node))
    if unknown:
        names = ", ".join(f"'{op}' (module '{module}')" for op, module in unknown.items())
        raise ExportError(
            f"The model cannot be compressed: its ONNX form has operators that are not "
            f"supported: {names}. Replace them in the model, or wrap the part that needs them "
            "around the compressed model."
        )


def _module_of(node: NodeProto) -> str:
    """Return the innermost module that the exporter notes for a node."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            # A list as text: the path of modules, then the node's own name.
            scopes = [s.strip(" '\"") for s in entry.value.strip("[]").split(",")]
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def tidy(model: ModelProto) -> None:
    """Bring the exporter's graph into the few forms that the rest of Paredown reads."""
    graph = model.graph
    model.ir_version = _IR_VERSION
    shapes = _shapes(graph)
    constants = {i.name: i for i in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Constant":
            tensor = next(a.t for a in node.attribute if a.name == "value")
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            constants[tensor.name] = tensor
            graph.node.remove(node)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Reshape":
            _free_shape(node, graph, shapes, constants)
        elif node.op_type == "ReduceMean":
            nodes.extend(_as_global_pool(node, shapes, constants))
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    # Shapes change with each candidate, and the exporter's notes hold the user's paths.
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    model.doc_string = graph.doc_string = ""
    used = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def _free_shape(
    node: NodeProto,
    graph: GraphProto,
    shapes: Mapping[str, list[int]],
    constants: Mapping[str, TensorProto],
) -> None:
    """Rewrite a Reshape to fixed sizes so that it also holds with fewer channels.

    Flattening becomes a Flatten node. Else leading sizes that stay become 0 (copied), and of
    the rest that differs from the input the last becomes -1: the groups of a channel shuffle or
    the heads of an attention stay, the channels in each follow.
    """
    source, target = shapes.get(node.input[0]), constants.get(node.input[1])
    if source is None or target is None:
        return
    sizes = [int(i) for i in onnx.numpy_helper.to_array(target)]
    sizes = [math.prod(source) // -math.prod(sizes) if s == -1 else s for s in sizes]
    if len(sizes) == 2 and source[:1] == sizes[:1] == [1]:
        node.op_type = "Flatten"
        del node.input[1:], node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", 1))
        return
    lead = 0
    while lead < min(len(source), len(sizes)) and source[lead] == sizes[lead]:
        lead += 1
    tail = 0
    while tail < min(len(source), len(sizes)) - lead and source[-1 - tail] == sizes[-1 - tail]:
        tail += 1
    sizes[:lead] = [0] * lead
    if lead + tail < len(sizes):
        sizes[len(sizes) - tail - 1] = -1
    name = f"{node.output[0]}.shape"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), name))
    node.input[1] = name
    del node.attribute[:]


def _as_global_pool(
    node: NodeProto, shapes: Mapping[str, list[int]], constants: Mapping[str, TensorProto]
) -> Iterable[NodeProto]:
    """Return GlobalAveragePool for a mean over an image, which more runtimes have for integers."""
    shape = shapes.get(node.input[0], [])
    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    if axes is None or len(shape) != 4:
        return [node]
    if sorted(int(a) % 4 for a in onnx.numpy_helper.to_array(axes)) != [2, 3]:
        return [node]
    if attribute(node, "keepdims", 1):
        return [onnx.helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)]
    pooled = f"{node.output[0]}.pooled"
    return [
        onnx.helper.make_node("GlobalAveragePool", node.input[:1], [pooled], node.name),
        onnx.helper.make_node("Flatten", [pooled], node.output, f"{node.name}.flatten", axis=1),
    ]
