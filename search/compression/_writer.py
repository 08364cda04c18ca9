"""From models in torch to float graphs with the names of the base graph, and to files."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto
from torch import Tensor, nn

from ...evaluators.accuracy import predict
from ...evaluators.task import Task
from ..candidate import Candidate
from ._float_model import FloatModel, batch_size
from .export import BaseGraph, ExportError
from .quantization import LayerValues, quantize
from .settings import CompressionSettings

_CHECKED_SAMPLES = 2
_TOLERANCE = 1e-3  # of the largest output; float32 in another order differs by 1e-6 and less


class ModelWriter:
    """Writes models of a task.

    Args:
        task: Gives the inputs for calibration.
        folded: The task's model, with batch normalisation folded into its layers.
        settings: How models are calibrated and quantized.

    Raises:
        ExportError: If the model cannot be exported.
    """

    def __init__(self, task: Task, folded: nn.Module, settings: CompressionSettings) -> None:
        self._task = task
        self._settings = settings
        n_calibration = settings.n_calibration or batch_size(task.example_input)
        self.inputs = task.calibration[:n_calibration]
        self._base = BaseGraph.export(folded, task.example_input)
        self.unpruned = self.fill(folded)

    def fill(self, folded: nn.Module) -> FloatModel:
        """Put a model's weights into the base graph, or export it anew where that is not enough.

        A graph can hold numbers that were computed from weights or numbers of channels; then the
        base graph computes something else than the model, and the model has to be traced again.

        Raises:
            ExportError: If neither graph computes what the model does.
        """
        inputs = self.inputs[:_CHECKED_SAMPLES]
        expected = predict(folded, inputs)
        try:
            filled = self.wrap(self._base.instantiate(folded.state_dict()))
            if _is_close(predict(filled.module, inputs), expected):
                return filled
        except RuntimeError:  # torch, of sizes that do not fit
            pass
        anew = BaseGraph.export(folded, self._task.example_input, is_reusable=False)
        filled = self.wrap(anew.instantiate(folded.state_dict()))
        if not _is_close(predict(filled.module, inputs), expected):
            raise ExportError(
                "The exported graph must compute what the model of task "
                f"'{self._task.name}' does, but its outputs differ. Does the model depend "
                "on the size of the batch, or draw random numbers in evaluation mode?"
            )
        return filled

    def wrap(self, model: ModelProto) -> FloatModel:
        """Return what is learned of a float graph."""
        return FloatModel(model, self.inputs, self._settings.sparsity)

    def write(
        self,
        base: FloatModel,
        values: Mapping[str, LayerValues],
        candidate: Candidate,
        graph: ModelProto | None = None,
    ) -> ModelProto:
        """Return the file of a candidate.

        Args:
            base: Its pruned model.
            values: What replaces the weights of its layers.
            candidate: Gives the widths.
            graph: A float graph with other weights; None takes that of `base`.
        """
        histograms = base.calibration.histograms if values else {}
        return quantize(
            graph or base.model,
            candidate.layer_choices,
            histograms,
            self._settings.calibration,
            values=values,
            accumulation_run=self._settings.accumulation_run,
            sparsity=self._settings.sparsity,
        )


def _is_close(outputs: Tensor, expected: Tensor) -> bool:
    if outputs.shape != expected.shape:
        return False
    return bool((outputs - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-6)
