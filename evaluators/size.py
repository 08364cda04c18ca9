"""Size of a model: what its parameters take at the widths that were chosen for them.

The size is the sum over the parameters of a graph, packed without gaps:

- an integer weight: its number of values times its bits, rounded up to whole bytes. The bits are
  those noted at the layer that reads it (`paredown.weight_bits`), else those of its ONNX type;
- the scales of weights and activations: 4 bytes each; zero points of activations: 1 byte each;
- integer and float biases and all other float parameters: 4 bytes each.

Not counted are numbers that follow from others or are always the same (the scales of biases, the
zero points of weights) and constants that belong to the structure (shapes, axes, bounds). It is
not the size of the ONNX file, which has names and nodes too and keeps 5-bit weights in bytes.

Stored or sent, integer weights can take less: their values are not equally frequent, least of all
where many are zero. The coded size counts for each integer weight what an entropy coder needs (its
number of values times their Shannon entropy, and a table of 2 bytes for each value of its width),
or the packed size where that is less; all else is counted as above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
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
_TABLE_ENTRY_BYTES = 2  # how frequent a value is
_FLOAT_TYPES = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


def model_size_bytes(model: ModelProto) -> int:
    """Return the size of a model's parameters; the module's text defines it."""
    return sum(part.packed_bytes for part in _parts(model.graph))


def coded_size_bytes(model: ModelProto) -> int:
    """Return the size of a model's parameters after entropy coding of the integer weights.

    References:
        Han, Mao, Dally. Deep compression: compressing deep neural networks with pruning, trained
        quantization and Huffman coding. ICLR 2016, section 4. An arithmetic coder, unlike
        Huffman's, takes less than a bit for a frequent value.
    """
    return sum(part.coded_bytes for part in _parts(model.graph))


@dataclass(frozen=True)
class _Part:
    """A counted tensor, with the bits of each of its values."""

    tensor: TensorProto
    bits: int
    is_weight: bool = False  # an integer one

    @property
    def packed_bytes(self) -> int:
        n_values: int = math.prod(self.tensor.dims)
        return math.ceil(n_values * self.bits / 8)

    @property
    def coded_bytes(self) -> int:
        if not self.is_weight:
            return self.packed_bytes
        values = onnx.numpy_helper.to_array(self.tensor).astype(np.int8).reshape(-1)
        table = _TABLE_ENTRY_BYTES << self.bits
        return min(self.packed_bytes, math.ceil(len(values) * entropy_bits(values) / 8) + table)


def entropy_bits(values: NDArray[np.int8]) -> float:
    """Return the Shannon entropy of the values of an array, in bits for each of them.

    Args:
        values: Any number of values, shape `(n,)`.
    """
    counts = np.bincount(values.view(np.uint8), minlength=256)
    shares = counts[counts > 0] / max(1, len(values))
    return abs(float(shares @ np.log2(shares)))  # a single value gives -0.0


def _parts(graph: GraphProto) -> list[_Part]:
    """Return what is counted of a graph."""
    tensors = {t.name: t for t in graph.initializer}
    tensors |= {n.output[0]: _constant(n) for n in graph.node if n.op_type == "Constant"}
    parts: dict[str, _Part] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            parts |= _quantizer_parts(node, tensors, graph)
        else:
            for name in node.input:
                tensor = tensors.get(name)
                if tensor is not None and tensor.data_type in _FLOAT_TYPES and tensor.dims:
                    parts[name] = _Part(tensor, _TYPE_BITS[tensor.data_type])
    return list(parts.values())


def _constant(node: NodeProto) -> TensorProto:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, TensorProto):
        return value
    return onnx.numpy_helper.from_array(np.asarray(value))


def _quantizer_parts(
    node: NodeProto, tensors: dict[str, TensorProto], graph: GraphProto
) -> dict[str, _Part]:
    """Return the counted constants of a quantizing node by name."""
    data, scale, *zero = node.input
    if data not in tensors:  # an activation
        counted = {scale: _Part(tensors[scale], 32)}
        if zero and zero[0]:
            kind = tensors[zero[0]].data_type
            counted[zero[0]] = _Part(tensors[zero[0]], _TYPE_BITS[kind])
        return counted
    tensor = tensors[data]
    if tensor.data_type == TensorProto.INT32:  # a bias
        return {data: _Part(tensor, 32)}
    bits = _noted_bits(node, graph) or _TYPE_BITS[tensor.data_type]
    return {data: _Part(tensor, bits, is_weight=True), scale: _Part(tensors[scale], 32)}


def _noted_bits(node: NodeProto, graph: GraphProto) -> int | None:
    for reader in graph.node:
        if node.output[0] in reader.input:
            for entry in reader.metadata_props:
                if entry.key == WEIGHT_BITS_KEY:
                    return int(entry.value)
    return None
