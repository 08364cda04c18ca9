"""Shapes of all tensors of a model, where ONNX's own inference needs help."""

from __future__ import annotations

import onnx
from onnx import helper
from onnx.inliner import inline_local_functions

from ..measurement import EvaluationError
from .operators import SUPPORTED, not_supported

# Functions that keep the shape of their input, which ONNX does not infer.
_SAME_SHAPE = ("GroupNormalization",)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the shapes of its tensors, and without functions.

    Raises:
        EvaluationError: If the model is invalid; an operator that is not supported is named.
    """
    try:
        if model.functions:
            model = inline_local_functions(model)
        stand_in = onnx.ModelProto()
        stand_in.CopyFrom(model)
        kept = [i for i, n in enumerate(model.graph.node) if n.op_type in _SAME_SHAPE]
        for i in kept:
            node = stand_in.graph.node[i]
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1]))
        for node in stand_in.graph.node:
            _drop_last_windows(stand_in, node)
        found = onnx.shape_inference.infer_shapes(stand_in, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises exceptions without a common base
        for proto in model.graph.node:
            if proto.domain in ("", "ai.onnx") and proto.op_type not in SUPPORTED:
                raise not_supported(proto.op_type, proto) from error
        raise EvaluationError(f"The ONNX model is invalid: {error}", "model") from error
    for i in kept:
        found.graph.node[i].CopyFrom(model.graph.node[i])
    return found


def _drop_last_windows(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Write a pooling node with `ceil_mode` whose last windows begin outside without it.

    No runtime computes such windows, nor does ONNX's specification ask for them, but ONNX infers a
    shape with them (https://github.com/onnx/onnx/issues/5711). The padding behind the other axes
    grows instead, which counts in averages only where padding does.
    """
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type not in ("MaxPool", "AveragePool") or not values.get("ceil_mode", 0):
        return
    kernel = values["kernel_shape"]
    size = _spatial_shape(model, node.input[0], len(kernel))
    if size is None or values.get("auto_pad", b"NOTSET") != b"NOTSET":
        return
    strides = values.get("strides", [1] * len(kernel))
    dilations = values.get("dilations", [1] * len(kernel))
    pads = list(values.get("pads", [0] * 2 * len(kernel)))
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    is_dropped, grown = False, []
    for n, k, stride, dilation, begin, end in zip(
        size, kernel, strides, dilations, begins, ends, strict=True
    ):
        over = n + begin + end - dilation * (k - 1) - 1
        last = -(-over // stride) * stride  # where the last window of `ceil_mode` begins
        is_outside = last >= n + begin
        is_dropped |= is_outside
        grown.append(end if is_outside else end + last - over)
    if not is_dropped or (grown != ends and values.get("count_include_pad", 0)):
        return
    kept = [a for a in node.attribute if a.name not in ("ceil_mode", "pads")]
    kept.append(helper.make_attribute("pads", [*begins, *grown]))
    del node.attribute[:]
    node.attribute.extend(kept)
    del model.graph.value_info[:]  # shapes behind the node may have come from the same inference
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _spatial_shape(model: onnx.ModelProto, name: str, n_axes: int) -> list[int] | None:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*inferred.value_info, *inferred.input):
        if value.name == name:
            dims = value.type.tensor_type.shape.dim
            return [d.dim_value for d in dims][-n_axes:] if len(dims) == n_axes + 2 else None
    return None
