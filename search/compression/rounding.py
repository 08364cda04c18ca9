"""Rounding weights so that a layer's outputs change least, not its weights."""

from __future__ import annotations

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from ...evaluators.onnx_module import OnnxModule
from ._columns import find_columns
from ._graph import layer_nodes
from .quantizer import nearest_steps

_DAMPING = 0.01  # of the mean of the Gram matrix's diagonal
_BLOCK = 128


def input_grams(graph: GraphProto, module: OnnxModule, inputs: Tensor) -> dict[str, Tensor]:
    """Return the Gram matrix of what each layer's weights are multiplied with.

    Args:
        graph: The float graph.
        module: The same in torch.
        inputs: Samples, one batch.

    Returns:
        By the names of layers' nodes, shape `(groups, d, d)` where an output channel has `d`
        weights. Transposed convolutions, those over other than two dimensions and layers of many
        inputs have none.
    """
    readers: dict[str, list[NodeProto]] = {}
    for nodes in layer_nodes(graph).values():
        for node in nodes:
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                readers.setdefault(node.input[0], []).append(node)
    weights = {name: weight.shape for name, weight in module.weights.items()}
    grams: dict[str, Tensor] = {}

    def collect(name: str, values: Tensor) -> None:
        for node in readers[name]:
            found = find_columns(node, values, weights[node.input[1]])
            if found is not None:
                columns = found.inputs
                grams[node.name] = columns @ columns.transpose(1, 2) / columns.shape[2]

    module.observe(inputs, readers, collect)
    return grams


def round_by_outputs(
    weight: Tensor,
    scale: Tensor,
    bits: int,
    gram: Tensor,
    axis: int,
    kept: Tensor | None = None,
) -> Tensor:
    """Round a weight to its grid one input after the other, each making up for those before.

    Minimises the squared change of the layer's outputs greedily: what rounding an input's weights
    does to the outputs is spread over the weights that are still free.

    Args:
        weight: The weight, as in the graph.
        scale: One for each output channel.
        bits: Width of the integers.
        gram: Gram matrix of the layer's inputs, from `input_grams`.
        axis: Where the output channels are.
        kept: Marks the weights that may be other than zero; None: all may.

    Returns:
        The rounded weight, in the form of the one that was given.

    References:
        Frantar, Ashkboos, Hoefler, Alistarh. GPTQ: accurate post-training quantization for
        generative pre-trained transformers. ICLR 2023. The problem is that of Nagel et al.
        Up or down? Adaptive rounding for post-training quantization. ICML 2020. Zeros as in
        Frantar, Alistarh. SparseGPT: massive language models can be accurately pruned in one-shot.
        ICML 2023.
    """
    moved = weight.detach().movedim(axis, 0)
    groups = gram.shape[0]
    rows = moved.flatten(1).reshape(groups, -1, gram.shape[1])
    steps = scale.reshape(groups, -1, 1)
    masks = torch.ones_like(rows) if kept is None else kept.movedim(axis, 0).reshape(rows.shape)
    rounded = torch.stack(
        [_round_group(*parts, bits) for parts in zip(rows, steps, gram, masks, strict=True)]
    )
    return rounded.reshape(moved.shape).movedim(0, axis).contiguous()


def _round_group(rows: Tensor, scale: Tensor, gram: Tensor, kept: Tensor, bits: int) -> Tensor:
    rows = rows.clone()
    gram = gram.double()
    diagonal = gram.diagonal()
    damping = (_DAMPING * diagonal.mean()).clamp_min(1e-12)
    # Inputs of large size first: the others can make up for their errors.
    order = torch.sort(diagonal, descending=True, stable=True).indices
    gram = gram[order][:, order] + damping * torch.eye(len(gram), dtype=gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    spread = torch.linalg.cholesky(inverse, upper=True).to(rows.dtype)
    rows, kept = rows[:, order], kept[:, order]
    for start in range(0, rows.shape[1], _BLOCK):
        end = min(start + _BLOCK, rows.shape[1])
        errors = torch.zeros(len(rows), end - start, dtype=rows.dtype)
        for place in range(start, end):
            column = rows[:, place : place + 1]
            rounded = nearest_steps(column / scale, bits).mul_(scale)
            rounded *= kept[:, place : place + 1]
            error = (column - rounded) / spread[place, place]
            rows[:, place:end] -= error * spread[place, place:end]
            rows[:, place : place + 1] = rounded
            errors[:, place - start : place - start + 1] = error
        rows[:, end:] -= errors @ spread[start:end, end:]
    return rows[:, order.argsort()]
