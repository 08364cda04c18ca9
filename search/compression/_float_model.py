"""A pruned model in float, and what is learned about it once for all widths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from onnx import ModelProto, NodeProto
from torch import Tensor

from ...evaluators.onnx_module import OnnxModule
from ..candidate import Candidate
from ._graph import initializers, layer_nodes, to_tensor
from .calibration import Calibration, calibrate
from .correction import correctable_layers
from .quantization import LayerValues, activation_names, output_axis
from .quantizer import weight_scales
from .rounding import input_grams, round_by_outputs

_BATCH_VALUES = 1 << 22  # input values of one calibration batch
_MAX_BATCH = 256


class FloatModel:
    """A float graph with its calibration.

    Args:
        model: The graph.
        inputs: What it is calibrated on.
    """

    def __init__(self, model: ModelProto, inputs: Tensor) -> None:
        self.model = model
        self.inputs = inputs
        self._values: dict[tuple[str, int, bool, bool], LayerValues] = {}

    @cached_property
    def module(self) -> OnnxModule:
        """The graph in torch."""
        return OnnxModule(self.model)

    @cached_property
    def batch(self) -> Tensor:
        """The first of the samples, as many as run at once."""
        return self.inputs[: batch_size(self.inputs[0])]

    @cached_property
    def correctable(self) -> dict[str, str]:
        """The output tensor of each node whose bias can be corrected."""
        return correctable_layers(self.model.graph)

    @cached_property
    def calibration(self) -> Calibration:
        """Ranges of activations and moments of layers."""
        names = activation_names(self.model.graph)
        outputs = self.correctable.values()
        return calibrate(self.module, self.inputs, names, outputs, len(self.batch))

    @cached_property
    def grams(self) -> dict[str, Tensor]:
        """Gram matrices of layers' inputs, by the names of their nodes."""
        return input_grams(self.model.graph, self.module, self.batch)

    def layer_values(
        self,
        candidate: Candidate,
        *,
        search: bool,
        by_outputs: bool,
        scales: Mapping[str, Tensor] | None = None,
    ) -> dict[str, LayerValues]:
        """Return scales and rounded weights of the integer layers, found once for each width.

        Args:
            candidate: Says which width each layer has.
            search: Whether scales minimise the squared error or cover all weights.
            by_outputs: Whether weights are rounded so that the outputs change least; else they
                are left to be rounded to the nearest step.
            scales: By the names of layers, instead of those that would be found.
        """
        nodes = layer_nodes(self.model.graph)
        floats: dict[str, Tensor] | None = None
        values: dict[str, LayerValues] = {}
        for name, choice in candidate.layers:
            if choice.is_float:
                continue
            for node in nodes[name]:
                key = node.name, choice.weight_bits, search, by_outputs
                if key not in self._values:
                    if floats is None:
                        floats = {
                            k: to_tensor(v) for k, v in initializers(self.model.graph).items()
                        }
                    weight = floats[node.input[1]]
                    scale = (scales or {}).get(name)
                    if scale is None:
                        axis = output_axis(node)
                        scale = weight_scales(weight, choice.weight_bits, axis, search=search)
                    self._values[key] = LayerValues(scale=scale)
                    if by_outputs:
                        rounded = self._rounded(node, weight, scale, choice.weight_bits)
                        self._values[key] = LayerValues(rounded, scale)
                values[node.name] = self._values[key]
        return values

    def _rounded(self, node: NodeProto, weight: Tensor, scale: Tensor, bits: int) -> Tensor | None:
        gram = self.grams.get(node.name)
        if gram is None:
            return None
        return round_by_outputs(weight, scale, bits, gram, output_axis(node))


def batch_size(sample: Tensor) -> int:
    """Return how many samples of a size are run at once."""
    return min(_MAX_BATCH, max(1, _BATCH_VALUES // sample.numel()))
