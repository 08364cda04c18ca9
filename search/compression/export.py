"""The base graph: a model exported to ONNX once and filled with each candidate's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto
from torch import Tensor, nn

from ._graph import attribute, float_initializer, layer_nodes, rename, set_integer
from ._tidy import check_operators, tidy
from ._torch_export import INPUT_NAME, OUTPUT_NAME, ExportError, export_torch

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "BaseGraph", "ExportError"]


@dataclass(frozen=True)
class _Source:
    """Which parameter an initializer holds, and in what form.

    Attributes:
        parameter: Name in the state dict.
        is_transposed: Whether the two axes are swapped.
        added_axes: Where the initializer has axes of size 1 that the parameter lacks.
    """

    parameter: str
    is_transposed: bool = False
    added_axes: tuple[int, ...] = ()

    def values(self, parameter: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what the initializer holds for a value of the parameter."""
        if self.is_transposed:
            return parameter.T
        return np.expand_dims(parameter, self.added_axes)


@dataclass(frozen=True, eq=False)
class BaseGraph:
    """A model's graph, apart from the values of its weights.

    Attributes:
        skeleton: The graph without the initializers that hold weights.
        sources: For each such initializer the parameter that it holds.
        depthwise: Nodes with one group for each input channel, and outputs for each group.
    """

    skeleton: ModelProto
    sources: Mapping[str, _Source]
    depthwise: Mapping[str, int]

    @classmethod
    def export(
        cls, model: nn.Module, example_input: Tensor, *, is_reusable: bool = True
    ) -> BaseGraph:
        """Export a model.

        What is exported is a copy with random weights. No two are equal there, none is zero or
        one, so the exporter merges and drops none, and each is found again by its values even
        where it was transposed.

        Args:
            model: Evaluated as it will be compressed, so with batch norms folded already.
            example_input: One input with a batch dimension of 1.
            is_reusable: Whether other weights than the model's will be put in. If not, the
                weights stay as they are, and values computed from them are right as well.

        Raises:
            ExportError: If the model has an operator that has no ONNX form or that Paredown
                cannot run, or depends on the values of its inputs.
        """
        source = copy.deepcopy(model).eval()
        if is_reusable:
            _mark(source)
        proto = export_torch(source, example_input)
        check_operators(proto.graph)
        tidy(proto)
        state = {k: v.numpy() for k, v in source.state_dict().items() if v.is_floating_point()}
        sources = _match(proto.graph, state)
        _name_layers(proto.graph)
        constants = [i for i in proto.graph.initializer if i.name not in sources]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(constants)
        depthwise = _depthwise(proto.graph, sources, state)
        return cls(proto, sources, depthwise)

    def instantiate(self, state: Mapping[str, Tensor]) -> ModelProto:
        """Return the graph with weights, which may have fewer channels than the exported ones.

        Args:
            state: The state dict of the exported model, or of a pruned copy.

        Raises:
            ExportError: If a parameter is missing from the state.
        """
        missing = sorted({s.parameter for s in self.sources.values()} - set(state))
        if missing:
            raise ExportError(
                f"The state must hold every parameter of the exported model, but lacks {missing}."
            )
        model = ModelProto()
        model.CopyFrom(self.skeleton)
        for name, source in self.sources.items():
            array = source.values(state[source.parameter].detach().numpy())
            model.graph.initializer.append(float_initializer(name, array))
        for node in model.graph.node:
            per_group = self.depthwise.get(node.name)
            if per_group is not None:
                weight = state[self.sources[node.input[1]].parameter]
                set_integer(node, "group", len(weight) // per_group)
        return model


def _mark(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)


def _depthwise(
    graph: GraphProto,
    sources: Mapping[str, _Source],
    state: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, int]:
    result = {}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in sources:
            n_out, n_in = state[sources[node.input[1]].parameter].shape[:2]
            group = attribute(node, "group", 1)
            if group > 1 and n_in == 1:
                result[node.name] = n_out // group
    return result


def _name_layers(graph: GraphProto) -> None:
    """Give every node a name of its own; a layer's node has the layer's."""
    layers = {n.output[0]: name for name, nodes in layer_nodes(graph).items() for n in nodes}
    taken: set[str] = set()
    for node in graph.node:
        base = layers.get(node.output[0]) or node.name or node.output[0]
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        node.name = name


def _match(graph: GraphProto, state: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, _Source]:
    """Find the initializers that hold parameters; a transposed one takes the parameter's name."""
    by_value = {(a.shape, a.tobytes()): name for name, a in state.items()}
    transposed = {(a.T.shape, a.T.tobytes()): name for name, a in state.items() if a.ndim == 2}
    by_bytes = {a.tobytes(): name for name, a in state.items()}
    sources: dict[str, _Source] = {}
    renamed: dict[str, str] = {}
    taken = {i.name for i in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in state:
            if tensor.name in state:
                sources[tensor.name] = _Source(tensor.name)
            continue
        array = onnx.numpy_helper.to_array(tensor)
        key = (array.shape, array.tobytes())
        if key in by_value:
            source = _Source(by_value[key])
        elif key in transposed:
            source = _Source(transposed[key], is_transposed=True)
        else:
            parameter = by_bytes.get(array.tobytes())
            axes = None if parameter is None else _added_axes(state[parameter].shape, array.shape)
            if parameter is None or axes is None:
                continue
            source = _Source(parameter, added_axes=axes)
        name = source.parameter if source.parameter not in taken else tensor.name
        taken.add(name)
        renamed[tensor.name] = tensor.name = name
        sources[name] = source
    rename(graph, renamed)
    return sources


def _added_axes(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return where `outer` has axes of size 1 that `inner` lacks; None if it has others too."""
    added: list[int] = []
    for axis, size in enumerate(outer):
        position = axis - len(added)
        if position < len(inner) and inner[position] == size:
            continue
        if size != 1:
            return None
        added.append(axis)
    return tuple(added) if len(outer) - len(added) == len(inner) else None
