"""A pruned model in float, and what is learned about it once for all widths."""

from __future__ import annotations

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
from .rounding import LayerInputs, input_grams, round_by_outputs
from .sparsity import Sparsity, input_importance, sparsify

_BATCH_VALUES = 1 << 22  # input values of one calibration batch
_MAX_BATCH = 256


class FloatModel:
    """A float graph with its calibration.

    Args:
        model: The graph.
        inputs: What it is calibrated on.
        sparsity: How many of its weights integer layers lose.
    """

    def __init__(
        self, model: ModelProto, inputs: Tensor, sparsity: Sparsity | None = None
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.sparsity = sparsity
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
    def layer_inputs(self) -> dict[str, LayerInputs]:
        """What rounding needs of layers' inputs, by the names of their nodes."""
        grams = input_grams(self.model.graph, self.module, self.batch)
        return {name: LayerInputs.from_gram(gram) for name, gram in grams.items()}

    def layer_values(
        self, candidate: Candidate, *, search: bool, by_outputs: bool
    ) -> dict[str, LayerValues]:
        """Return scales and rounded weights of the integer layers, found once for each width.

        Args:
            candidate: Says which width each layer has.
            search: Whether scales minimise the squared error or cover all weights.
            by_outputs: Whether weights are rounded so that the outputs change least; else they
                are left to be rounded to the nearest step.
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
                    axis = output_axis(node)
                    sparse = self._sparse(node, weight, choice.weight_bits)
                    scale = weight_scales(sparse, choice.weight_bits, axis, search=search)
                    given = None if sparse is weight else sparse
                    inputs = self.layer_inputs.get(node.name) if by_outputs else None
                    if inputs is not None:
                        kept = None if given is None else given != 0
                        given = round_by_outputs(
                            weight, scale, choice.weight_bits, inputs, axis, kept
                        )
                    self._values[key] = LayerValues(given, scale)
                values[node.name] = self._values[key]
        return values

    def _sparse(self, node: NodeProto, weight: Tensor, bits: int) -> Tensor:
        if self.sparsity is None or bits == 1:
            return weight
        axis, inputs = output_axis(node), self.layer_inputs.get(node.name)
        scores = None if inputs is None else input_importance(weight, inputs.norms, axis)
        return sparsify(weight, self.sparsity, axis, scores)


def batch_size(sample: Tensor) -> int:
    """Return how many samples of a size are run at once."""
    return min(_MAX_BATCH, max(1, _BATCH_VALUES // sample.numel()))
