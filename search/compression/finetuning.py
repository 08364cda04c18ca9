"""Fine-tuning of a quantized graph: training that sees the rounding it will be judged with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ...evaluators.onnx_module import OnnxModule
from ..candidate import LayerChoice
from ._graph import initializers, layer_nodes, to_tensor
from .quantization import LayerValues, output_axis
from .quantizer import along, largest_integer, nearest_steps
from .sparsity import Sparsity, sparsify


class _RoundWeight(torch.autograd.Function):
    """Rounds a weight to a grid whose scale is learned with it.

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha. Learned step size quantization. ICLR 2020.
    """

    @staticmethod
    def forward(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return nearest_steps(weight / scale, bits).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)
        ctx.top = largest_integer(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, scale, output = ctx.saved_tensors
        (grad,) = grads
        steps = weight / scale
        inside = steps.abs() <= ctx.top + 0.5
        slope = torch.where(inside, output / scale - steps, output / scale)
        axes = [axis for axis, size in enumerate(scale.shape) if size == 1]
        return grad * inside, (grad * slope).sum(dim=axes, keepdim=True), None


def round_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round a weight to the grid of a width.

    Args:
        weight: The weight.
        scale: Broadcasts with it.
        bits: The width.

    Returns:
        The rounded weight; gradients pass straight to the weight where it is not clipped, and to
        the scale as in LSQ.
    """
    result: Tensor = _RoundWeight.apply(weight, scale, bits)  # type: ignore[no-untyped-call]  # torch's
    return result


@dataclass(frozen=True)
class _IntegerLayer:
    node: str
    axis: int
    bits: int
    scale: Tensor  # before training
    has_bias: bool
    kept: Tensor | None  # marks the weights that may be other than zero


class QuantizedTraining(nn.Module):
    """A quantized graph over float weights that can be trained.

    Weights of integer layers are kept in float and rounded in every pass, with one learned scale
    per output channel; activations keep the grids of the graph. What it computes is what
    `quantize` writes with the results of `layer_values`, but for the rounding of biases.
    """

    def __init__(
        self,
        model: ModelProto,
        quantized: ModelProto,
        choices: Mapping[str, LayerChoice],
        values: Mapping[str, LayerValues],
        sparsity: Sparsity | None = None,
    ) -> None:
        """Prepare a graph for training.

        Args:
            model: The float graph.
            quantized: What `quantize` made of it.
            choices: What it was made with.
            values: What it was made with; scales at least.
            sparsity: How many weights are zero, and stay it.
        """
        super().__init__()
        self._graph = OnnxModule(quantized).requires_grad_(False)
        floats, weights = initializers(model.graph), self._graph.weights
        self._layers: list[_IntegerLayer] = []
        latent: dict[str, Tensor] = {}
        for name, nodes in layer_nodes(model.graph).items():
            if name not in choices or choices[name].is_float:
                continue
            for node in nodes:
                axis, given = output_axis(node), values[node.name]
                assert given.scale is not None  # asked for above
                scale, weight = given.scale, given.weight
                if weight is None:
                    weight = to_tensor(floats[node.input[1]])
                if given.gain is not None:  # the same integers at the scale of the file
                    weight = weight * along(given.gain, axis, weight.ndim)
                    scale = scale * given.gain
                latent[f"{node.name}.weight"] = weight
                bits = choices[name].weight_bits
                has_bias, kept = f"{node.name}.bias" in weights, None
                if sparsity is not None and bits > 1:
                    kept = sparsify(weight, sparsity, axis) != 0
                self._layers.append(_IntegerLayer(node.name, axis, bits, scale, has_bias, kept))
        # Float layers, norms and all biases are trained as they are.
        self._plain = tuple(name for name in weights if name not in latent)
        latent |= {name: weights[name].detach().clone() for name in self._plain}
        self._latent = nn.ParameterDict({_key(n): nn.Parameter(t) for n, t in latent.items()})
        # Scales as factors: a step of the optimizer is then relative to their size.
        self._growth = nn.ParameterDict(
            {_key(x.node): nn.Parameter(torch.zeros_like(x.scale)) for x in self._layers}
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a batch of inputs to the graph's output."""
        weights: dict[str, Tensor] = {name: self._latent[_key(name)] for name in self._plain}
        for layer in self._layers:
            weight = self._weight(layer)
            scale = along(self._scale(layer), layer.axis, weight.ndim)
            weights[f"{layer.node}.weight"] = round_weight(weight, scale, layer.bits)
        return self._graph.run(inputs, weights)

    def _weight(self, layer: _IntegerLayer) -> Tensor:
        weight: Tensor = self._latent[_key(f"{layer.node}.weight")]
        return weight if layer.kept is None else weight * layer.kept

    def _scale(self, layer: _IntegerLayer) -> Tensor:
        growth: Tensor = self._growth[_key(layer.node)]
        return layer.scale * growth.exp()

    def layer_values(self) -> dict[str, LayerValues]:
        """Return weights, scales and biases of the integer layers, by their nodes' names."""
        return {
            layer.node: LayerValues(
                weight=self._weight(layer).detach(),
                scale=self._scale(layer).detach(),
                bias=self._latent[_key(f"{layer.node}.bias")].detach() if layer.has_bias else None,
            )
            for layer in self._layers
        }

    def float_values(self) -> dict[str, Tensor]:
        """Return the weights that stay in float, by the names of initializers."""
        biases = {f"{layer.node}.bias" for layer in self._layers if layer.has_bias}
        return {n: self._latent[_key(n)].detach() for n in self._plain if n not in biases}


def _key(name: str) -> str:
    return name.replace(".", "__")  # a parameter's name may hold no dot
