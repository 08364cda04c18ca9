"""Size of a model: what its parameters take at the widths that were chosen for them.

The size is the sum over the parameters of a graph, packed without gaps:

- an integer weight: its number of values times its bits, rounded up to whole bytes. The bits are
  those noted at the layer that reads it (`paredown.weight_bits`), else those of its ONNX type;
- the scales of weights and activations: 4 bytes each; zero points of activations: 1 byte each;
- integer and float biases and all other float parameters: 4 bytes each.

Not counted are numbers that follow from others or are always the same (the scales of biases, the
zero points of weights) and constants that belong to the structure (shapes, axes, bounds). It is
not the size of the ONNX file, which has names and nodes too and keeps 5-bit weights in bytes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

WEIGHT_BITS_KEY = "paredown.weight_bits"

_TYPE_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
}
_FLOAT_TYPES = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


def model_size_bytes(model: ModelProto) -> int:
    """Return the size of a model's parameters; the module's text defines it."""
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    tensors |= {n.output[0]: _constant(n) for n in graph.node if n.op_type == "Constant"}
    bits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            bits |= _quantizer_bits(node, tensors, graph)
        else:
            for name in node.input:
                tensor = tensors.get(name)
                if tensor is not None and tensor.data_type in _FLOAT_TYPES and tensor.dims:
                    bits[name] = _TYPE_BITS[tensor.data_type]
    return sum(
        math.ceil(math.prod(tensors[name].dims) * width / 8) for name, width in bits.items()
    )


def _constant(node: NodeProto) -> TensorProto:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, TensorProto):
        return value
    return onnx.numpy_helper.from_array(np.asarray(value))


def _quantizer_bits(
    node: NodeProto, tensors: dict[str, TensorProto], graph: GraphProto
) -> dict[str, int]:
    """Return the counted constants of a quantizing node and the width of each."""
    data, scale, *zero = node.input
    if data not in tensors:  # an activation
        counted = {scale: 32}
        if zero and zero[0]:
            counted[zero[0]] = _TYPE_BITS[tensors[zero[0]].data_type]
        return counted
    if tensors[data].data_type == TensorProto.INT32:  # a bias
        return {data: 32}
    return {data: _noted_bits(node, graph) or _TYPE_BITS[tensors[data].data_type], scale: 32}


def _noted_bits(node: NodeProto, graph: GraphProto) -> int | None:
    for reader in graph.node:
        if node.output[0] in reader.input:
            for entry in reader.metadata_props:
                if entry.key == WEIGHT_BITS_KEY:
                    return int(entry.value)
    return None
