"""Small helpers for ONNX graphs as protocol buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    StringStringEntryProto,
    TensorProto,
)
from torch import Tensor

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def layer_nodes(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes of each layer by the name of the module whose weight they read.

    A module that is called twice has two nodes.
    """
    constants = {i.name for i in graph.initializer}
    layers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type in LAYER_OPS and len(node.input) > 1:
            module, _, leaf = node.input[1].rpartition(".")
            if leaf == "weight" and node.input[1] in constants:
                layers.setdefault(module, []).append(node)
    return layers


def float_initializer(name: str, array: np.ndarray[Any, Any] | np.float32) -> TensorProto:
    """Return a float32 initializer."""
    return TensorProto(
        name=name,
        data_type=TensorProto.FLOAT,
        dims=array.shape,
        raw_data=np.ascontiguousarray(array, dtype="<f4").tobytes(),
    )


def half_initializer(name: str, values: Tensor) -> TensorProto:
    """Return a float16 initializer of the nearest numbers, half to even."""
    array = values.detach().half().numpy()
    raw = np.ascontiguousarray(array, dtype="<f2").tobytes()
    return TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=array.shape, raw_data=raw)


def replace_floats(model: ModelProto, values: Mapping[str, Tensor]) -> ModelProto:
    """Return a copy of a model with other values of the named initializers."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(float_initializer(tensor.name, values[tensor.name].numpy()))
    return result


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((a.i for a in node.attribute if a.name == name), default)


def set_integer(node: NodeProto, name: str, value: int) -> None:
    """Set an integer attribute of a node."""
    for item in node.attribute:
        if item.name == name:
            item.i = value
            return
    node.attribute.append(AttributeProto(name=name, type=AttributeProto.INT, i=value))


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Let nodes read tensors under new names."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the initializers of a graph by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def to_tensor(proto: TensorProto) -> Tensor:
    """Return the values of a float initializer."""
    return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())


def integer_initializer(name: str, values: Tensor, data_type: int) -> TensorProto:
    """Return an initializer of INT4, INT8, UINT8 or INT32."""
    array = values.contiguous().numpy()  # numpy's own way makes a scalar one-dimensional
    if data_type == TensorProto.INT4:
        raw = _pack_nibbles(array)
    else:
        raw = array.tobytes()
    return TensorProto(name=name, data_type=data_type, dims=array.shape, raw_data=raw)


def _pack_nibbles(array: np.ndarray[Any, Any]) -> bytes:
    flat = array.reshape(-1).astype(np.uint8) & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    packed: bytes = (flat[::2] | flat[1::2] << 4).tobytes()
    return packed


def set_metadata(item: NodeProto | ModelProto, values: Mapping[str, str]) -> None:
    """Set entries of the metadata of a node or a model."""
    kept = [p for p in item.metadata_props if p.key not in values]
    del item.metadata_props[:]
    item.metadata_props.extend(kept)
    item.metadata_props.extend(
        StringStringEntryProto(key=key, value=value) for key, value in values.items()
    )
