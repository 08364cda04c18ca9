"""The last layer of a candidate, fitted to what the uncompressed model answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto
from torch import Tensor

from ...evaluators.accuracy import BATCH_SIZE
from ...evaluators.onnx_module import OnnxModule
from ._graph import attribute, initializers
from .quantization import LayerValues
from .quantizer import weight_scales
from .rounding import LayerInputs, round_by_outputs

Distance = Callable[[Tensor], Tensor]

_PULL = 1e-3  # towards the old weights, which tell of what the samples do not show
_ITERATIONS = 60
_HISTORY = 10  # of steps, each as large as the weights
_MAX_WEIGHTS = 1 << 21
_MAX_GAIN = 2.0  # beyond that the rounded weights are no measure of the fitted ones


def find_last_layer(model: ModelProto) -> NodeProto | None:
    """Return the linear layer with a bias whose output is a float graph's.

    None if the output comes from something else, or from a layer of very many weights.
    """
    output = model.graph.output[0].name
    node: NodeProto = next(node for node in model.graph.node if output in node.output)
    if node.op_type != "Gemm" or len(node.input) < 3 or not attribute(node, "transB", 0):
        return None
    weight = initializers(model.graph).get(node.input[1])
    return node if weight is not None and math.prod(weight.dims) <= _MAX_WEIGHTS else None


def answers(
    model: ModelProto, inputs: Tensor, layer: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run a graph on samples.

    Args:
        model: The graph.
        inputs: Samples, shape `(n, ...)`.
        layer: A node of which is wanted what it reads.

    Returns:
        The outputs, and what the layer reads.
    """
    sources = {node.input[0] for node in model.graph.node if node.name == layer}
    module = OnnxModule(model)
    read: list[Tensor] = []
    outputs = [
        module.observe(batch, sources, lambda _, values: read.append(values.clone()))
        for batch in inputs.split(BATCH_SIZE)
    ]
    return torch.cat(outputs), torch.cat(read) if read else None


def last_answers(model: ModelProto, layer: str, read: Tensor) -> Tensor:
    """Return the outputs of a graph whose last layer reads given values."""
    weights = OnnxModule(model).weights
    node = next(node for node in model.graph.node if node.name == layer)
    weight, bias = (weights[name].detach() for name in node.input[1:])
    return F.linear(read, weight, bias)


def fit_last_layer(
    inputs: Tensor, distance: Distance, weight: Tensor, bias: Tensor, bits: int | None
) -> LayerValues:
    """Return the values with which a linear layer comes nearest to wanted outputs.

    First weight and bias are fitted, then, with the weight rounded, a factor for each output and
    the bias again. Both problems are convex and small.

    Args:
        inputs: What the layer reads, shape `(n, n_inputs)`.
        distance: How far outputs are from the wanted ones: convex, as `distillation_loss` is.
        weight: Where to begin, shape `(n_outputs, n_inputs)`.
        bias: The same, shape `(n_outputs,)`.
        bits: Width that the weight is rounded to; None leaves it as it is.
    """
    start, spread = weight.detach(), inputs.std(0)

    def first(weight: Tensor, bias: Tensor) -> Tensor:
        pull = ((weight - start) * spread).square().sum()
        return distance(F.linear(inputs, weight, bias)) + _PULL * pull

    weight, bias = _minimize(first, weight, bias)
    if bits is None:
        return LayerValues(weight, bias=bias)
    scale = weight_scales(weight, bits, 0)
    centred = inputs - inputs.mean(0)  # the bias makes up for the mean
    gram = (centred.T @ centred / len(centred))[None]
    rounded = round_by_outputs(weight, scale, bits, LayerInputs.from_gram(gram), 0)
    scores = inputs @ rounded.T

    def second(gain: Tensor, bias: Tensor) -> Tensor:
        return distance(gain * scores + bias)

    gain, bias = _minimize(second, torch.ones_like(bias), bias)
    return LayerValues(rounded, scale, gain.clamp(1 / _MAX_GAIN, _MAX_GAIN), bias)


def _minimize(loss: Callable[[Tensor, Tensor], Tensor], *start: Tensor) -> tuple[Tensor, Tensor]:
    one, other = (tensor.detach().clone().requires_grad_() for tensor in start)
    optimizer = torch.optim.LBFGS(
        [one, other],
        max_iter=_ITERATIONS,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(one, other)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(step)
    return one.detach(), other.detach()
