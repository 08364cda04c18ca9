"""Rounding weights so that a layer's outputs change least, not its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from ...evaluators.onnx_module import OnnxModule
from ._columns import find_columns
from ._graph import layer_nodes
from .quantizer import nearest_steps

_DAMPING = 0.01  # of the mean of the Gram matrix's diagonal
_BLOCK = 128  # inputs whose errors are made up for one by one; those before them, at once


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


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What a layer's weights meet, in the form that rounding needs, whatever the width.

    Attributes:
        norms: Root mean square of each input, shape `(groups, d)`.
        order: In which the inputs are rounded, shape `(groups, d)`.
        feedback: How much of the error of each input (columns) the ones after it (rows) make up
            for, in that order; lower triangular, shape `(groups, d, d)`.
    """

    norms: Tensor
    order: Tensor
    feedback: Tensor

    @classmethod
    def from_gram(cls, gram: Tensor) -> LayerInputs:
        """Factor a Gram matrix of `input_grams`, which is what takes time with many inputs.

        References:
            Chee, Cai, Kuleshov, De Sa. QuIP: 2-bit quantization of large language models with
            guarantees. NeurIPS 2023, section 3 (GPTQ without an inverse).
        """
        diagonal = gram.diagonal(dim1=1, dim2=2)
        # Inputs of large size first: the others can make up for their errors.
        order = torch.sort(diagonal, descending=True, stable=True).indices
        groups, backwards = torch.arange(len(gram))[:, None, None], order.flip(1)
        matrix = gram[groups, backwards[:, :, None], backwards[:, None, :]].double()
        damping = (_DAMPING * matrix.diagonal(dim1=1, dim2=2).mean(1, True)).clamp_min(1e-12)
        matrix.diagonal(dim1=1, dim2=2).add_(damping)
        # Read forwards, the factor is the upper triangular R of `R R^T`.
        lower = torch.linalg.cholesky(matrix).to(gram.dtype)
        lower /= lower.diagonal(dim1=1, dim2=2)[:, None].clone()
        feedback = lower.transpose(1, 2).flip(1, 2).contiguous()
        return cls(diagonal.clamp_min(0).sqrt(), order, feedback)


def round_by_outputs(
    weight: Tensor,
    scale: Tensor,
    bits: int,
    inputs: LayerInputs,
    axis: int,
    kept: Tensor | None = None,
) -> Tensor:
    """Round a weight to its grid one input after the other, each making up for those before.

    Minimises the squared change of the layer's outputs greedily: what rounding an input's weights
    does to the outputs is made up for by the weights that are still free.

    Args:
        weight: The weight, as in the graph.
        scale: One for each output channel.
        bits: Width of the integers.
        inputs: What the weight is multiplied with.
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
    steps = scale.reshape(inputs.order.shape[0], -1, 1)
    rows = moved.flatten(1).reshape(*steps.shape[:2], -1)
    order = inputs.order[:, None].expand(rows.shape)
    places = inputs.order.argsort(1)[:, None].expand(rows.shape)
    # Inputs come first: what one step touches then lies together.
    wanted = (rows / steps).gather(2, order).transpose(1, 2).contiguous()
    masks = None
    if kept is not None:
        mask = kept.movedim(axis, 0).reshape(rows.shape)
        masks = mask.gather(2, order).transpose(1, 2)
    found = _round_in_order(wanted, inputs.feedback, masks, bits)
    rounded = found.transpose(1, 2).gather(2, places) * steps
    return rounded.reshape(moved.shape).movedim(0, axis).contiguous()


def _round_in_order(wanted: Tensor, feedback: Tensor, masks: Tensor | None, bits: int) -> Tensor:
    """Return integers for weights in steps of their grid, shape `(groups, d, channels)`."""
    found, errors = torch.empty_like(wanted), torch.empty_like(wanted)
    for start in range(0, wanted.shape[1], _BLOCK):
        end = min(start + _BLOCK, wanted.shape[1])
        block = torch.baddbmm(
            wanted[:, start:end], feedback[:, start:end, :start], errors[:, :start]
        )
        for place in range(start, end):
            here = slice(place, place + 1)
            made_up = feedback[:, here, start:place] @ errors[:, start:place]
            rounded = nearest_steps(made_up.add_(block[:, place - start, None]), bits)
            if masks is not None:
                rounded *= masks[:, here]
            found[:, here] = rounded
            torch.sub(wanted[:, here], rounded, out=errors[:, here])
    return found
