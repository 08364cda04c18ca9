"""Weights of a pruned model that make its layers compute what those of the whole model do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from ...evaluators.onnx_module import OnnxModule
from ...evaluators.onnx_ops import OPERATORS, OpNode
from ._columns import Columns, find_columns
from ._graph import attribute, layer_nodes

_DAMPING = 0.01  # of the mean of the Gram matrix's diagonal


def layer_outputs(model: ModelProto, module: OnnxModule, inputs: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the layers of a graph, by the names of their nodes.

    Args:
        model: A float graph.
        module: The same in torch.
        inputs: Samples, one batch.
    """
    names = {node.output[0]: node.name for node in _layers(model)}
    outputs: dict[str, Tensor] = {}

    def collect(name: str, values: Tensor) -> None:
        outputs[names[name]] = values.clone()

    module.observe(inputs, names, collect)
    return outputs


def reconstruct(
    model: ModelProto, module: OnnxModule, inputs: Tensor, wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Find the weights with which a pruned model's layers come nearest to wanted outputs.

    Least squares for each layer, in the order in which they run: each sees what the layers before
    it compute with their new weights. Directions of which the samples say little keep the old
    weights.

    Args:
        model: The float graph of the pruned model.
        module: The same in torch.
        inputs: Samples, one batch.
        wanted: Outputs of the layers in the whole model, of the channels that are left.

    Returns:
        New weights and biases by the names of initializers.

    References:
        He, Zhang, Sun. Channel pruning for accelerating very deep neural networks. ICCV 2017.
    """
    weights = {name: weight.detach() for name, weight in module.weights.items()}
    nodes = {node.output[0]: node for node in _layers(model) if node.name in wanted}
    read = {node.input[0] for node in nodes.values()}
    seen: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}

    def solve(name: str, values: Tensor) -> Tensor | None:
        node = nodes.get(name)
        result = None
        if node is not None:
            weight, bias = (weights[i] for i in node.input[1:3])
            source = seen[node.input[0]]
            columns = find_columns(node, source, weight.shape)
            if columns is not None:
                weight, bias = _solve(weight, columns, values, wanted[node.name], bias)
                found.update(zip(node.input[1:3], (weight, bias), strict=True))
                result = OPERATORS[node.op_type].build(OpNode(node)).apply(source, weight, bias)
        if name in read:
            seen[name] = values if result is None else result
        return result

    module.observe(inputs, {*read, *nodes}, solve)
    return found


def _layers(model: ModelProto) -> list[NodeProto]:
    """Return the layers that have a bias and their output channels first."""
    return [
        node
        for nodes in layer_nodes(model.graph).values()
        for node in nodes
        if len(node.input) > 2
        and (node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)))
    ]


def _solve(
    weight: Tensor, columns: Columns, outputs: Tensor, wanted: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias whose outputs are nearest to the wanted ones."""
    inputs = columns.inputs
    missing = columns.outputs(wanted) - columns.outputs(outputs)
    mean = inputs.mean(2, keepdim=True)
    error = missing.mean(2, keepdim=True)
    centred = inputs - mean
    gram = (centred @ centred.transpose(1, 2)).double()
    damping = (_DAMPING * gram.diagonal(dim1=1, dim2=2).mean()).clamp_min(1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(damping)
    product = (centred @ (missing - error).transpose(1, 2)).double()
    change = torch.cholesky_solve(product, torch.linalg.cholesky(gram)).to(weight.dtype)
    change = change.transpose(1, 2)  # (groups, channels of a group, d)
    shift = (error - change @ mean).flatten()
    return weight + change.reshape(weight.shape), bias + shift
