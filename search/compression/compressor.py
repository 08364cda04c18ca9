"""From a candidate to the model that is measured: prune, quantize, fine-tune, write."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from onnx import ModelProto
from torch import Tensor, nn

from ...evaluators.accuracy import predict
from ...evaluators.onnx_module import OnnxModule
from ...evaluators.size import model_size_bytes
from ...evaluators.task import Data, Task
from ..candidate import Candidate
from ..space import SearchSpace
from ..training import default_loss, distillation_loss, train
from ._graph import float_initializer, initializers, layer_nodes, set_metadata, to_tensor
from .calibration import Calibration, CalibrationMethod, calibrate
from .correction import Correction, correct_layers, correctable_layers
from .export import BaseGraph, ExportError
from .finetuning import QuantizedTraining
from .pruning import fold_batch_norm, prune, reestimate_batch_norm
from .quantization import (
    LayerValues,
    activation_names,
    output_axis,
    quantize,
)
from .quantizer import weight_scales

__all__ = ["CompressedModel", "CompressionSettings", "Compressor"]

CANDIDATE_KEY = "paredown.candidate"
Report = Callable[[str], None]

_KEPT_MODELS = 4  # pruned models that are kept for candidates that differ in widths alone
_BATCH_VALUES = 1 << 22  # input values of one calibration batch
_MAX_BATCH = 256
_CHECKED_SAMPLES = 2
_TOLERANCE = 1e-3  # of the largest output; float32 in another order differs by 1e-6 and less


@dataclass(frozen=True, slots=True)
class CompressionSettings:
    """How candidates are made.

    Attributes:
        calibration: How ranges of activations follow from what calibration sees.
        n_calibration: Samples of the task's calibration inputs that are used; None takes 256,
            fewer of large inputs (27 of 224 by 224 pixels), which show more values each.
        search_scales: Whether scales of weights minimise the squared error or cover all weights.
        correction: Whether biases and scales undo the change of mean and spread of each channel
            that rounding causes.
        finetune_epochs: Epochs of training of each candidate; 0 leaves it out.
        finetune_lr: Largest learning rate of that training.
        finetune_batch_size: Samples of one step of it.
        distill: Whether it follows the outputs of the uncompressed model, not the targets.
    """

    calibration: CalibrationMethod = "mse"
    n_calibration: int | None = None
    search_scales: bool = True
    correction: bool = True
    finetune_epochs: int = 0
    finetune_lr: float = 2e-3
    finetune_batch_size: int = 64
    distill: bool = True

    def __post_init__(self) -> None:
        if self.calibration not in get_args(CalibrationMethod):
            raise ValueError(
                f"`calibration` must be one of {get_args(CalibrationMethod)}, "
                f"but got '{self.calibration}'."
            )
        for name in ("n_calibration", "finetune_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, but got {value}.")
        if self.finetune_epochs < 0 or not self.finetune_lr > 0:
            raise ValueError(
                "`finetune_epochs` must be 0 or more and `finetune_lr` above 0, but got "
                f"{self.finetune_epochs} and {self.finetune_lr}."
            )


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A candidate made real.

    Attributes:
        candidate: What was asked for.
        model: The ONNX file: what every runtime gets.
        module: The same in torch, ready to be evaluated.
        size_bytes: Size of its parameters as `evaluators.size` defines it.
    """

    candidate: Candidate
    model: ModelProto
    module: OnnxModule
    size_bytes: int


class _FloatModel:
    """A pruned model in float, and what was learned about it once for all widths."""

    def __init__(self, model: ModelProto, inputs: Tensor) -> None:
        self.model = model
        self.inputs = inputs
        self._scales: dict[tuple[str, int, bool], Tensor] = {}

    @cached_property
    def module(self) -> OnnxModule:
        return OnnxModule(self.model)

    @cached_property
    def batch(self) -> Tensor:
        return self.inputs[: _batch_size(self.inputs[0])]

    @cached_property
    def correctable(self) -> dict[str, str]:
        return correctable_layers(self.model.graph)

    @cached_property
    def calibration(self) -> Calibration:
        names = activation_names(self.model.graph)
        outputs = self.correctable.values()
        return calibrate(self.module, self.inputs, names, outputs, len(self.batch))

    def layer_values(self, candidate: Candidate, search: bool) -> dict[str, LayerValues]:
        """Return the weight scales of the integer layers, searched once for each width."""
        nodes = layer_nodes(self.model.graph)
        floats: dict[str, Tensor] | None = None
        values: dict[str, LayerValues] = {}
        for name, choice in candidate.layers:
            if choice.is_float:
                continue
            for node in nodes[name]:
                key = node.name, choice.weight_bits, search
                if key not in self._scales:
                    if floats is None:
                        floats = {
                            k: to_tensor(v) for k, v in initializers(self.model.graph).items()
                        }
                    self._scales[key] = weight_scales(
                        floats[node.input[1]], choice.weight_bits, output_axis(node), search=search
                    )
                values[node.name] = LayerValues(scale=self._scales[key])
        return values


class Compressor:
    """Makes the models of candidates; equal candidates become equal models."""

    def __init__(
        self,
        task: Task,
        space: SearchSpace,
        settings: CompressionSettings | None = None,
        seed: int = 0,
    ) -> None:
        """Export the task's model, which takes some seconds.

        Args:
            task: The model and its data.
            space: The space that candidates are from.
            settings: How candidates are made.
            seed: Fixes what is random in fine-tuning.

        Raises:
            ExportError: If the model cannot be exported.
            ValueError: If fine-tuning is asked for and the task has no data to train on.
        """
        self.task = task
        self.space = space
        self.settings = settings or CompressionSettings()
        self.seed = seed
        if self.settings.finetune_epochs and task.train is None:
            raise ValueError(
                f"`finetune_epochs` must be 0 for task '{task.name}', which has no training "
                f"data, but is {self.settings.finetune_epochs}."
            )
        n_calibration = self.settings.n_calibration or _batch_size(task.example_input)
        self._inputs = task.calibration[:n_calibration]
        self._original = copy.deepcopy(task.model).eval().requires_grad_(False)
        self._pruned: OrderedDict[tuple[tuple[str, float], ...], _FloatModel] = OrderedDict()
        folded = fold_batch_norm(self._original, task.example_input)
        self._base = BaseGraph.export(folded, task.example_input)
        self._unpruned = self._fill(folded)
        layers = layer_nodes(self._unpruned.model.graph)
        missing = [layer.name for layer in space.layers if layer.name not in layers]
        if missing:
            raise ExportError(
                f"Every layer of the space must be a node of the exported graph, but {missing} "
                "are not. Their weights are computed in `forward`; make them plain parameters."
            )

    def compress(self, candidate: Candidate, report: Report | None = None) -> CompressedModel:
        """Make the model of a candidate.

        Args:
            candidate: A candidate of the space.
            report: Called with a word on what is being done.

        Raises:
            SpaceError: If the candidate does not belong to the space.
        """
        say = report or (lambda _: None)
        self.space.check(candidate)
        base = self._float_model(candidate, say)
        if candidate == self.space.baseline():
            model = copy.deepcopy(base.model)
        else:
            model = self._quantize(base, candidate, say)
        set_metadata(model, {CANDIDATE_KEY: json.dumps(candidate.to_json())})
        return CompressedModel(candidate, model, OnnxModule(model), model_size_bytes(model))

    def _float_model(self, candidate: Candidate, say: Report) -> _FloatModel:
        key = candidate.pruning
        if key == self.space.baseline().pruning:
            return self._unpruned
        if key not in self._pruned:
            say("pruning")
            pruned = prune(self._original, candidate, self.space)
            reestimate_batch_norm(pruned, self._inputs)
            self._pruned[key] = self._fill(fold_batch_norm(pruned, self.task.example_input))
            if len(self._pruned) > _KEPT_MODELS:
                self._pruned.popitem(last=False)
        self._pruned.move_to_end(key)
        return self._pruned[key]

    def _fill(self, folded: nn.Module) -> _FloatModel:
        """Put a model's weights into the base graph, or export it anew where that is not enough.

        A graph can hold numbers that were computed from weights or numbers of channels; then the
        base graph computes something else than the model, and the model has to be traced again.
        """
        inputs = self._inputs[:_CHECKED_SAMPLES]
        expected = predict(folded, inputs)
        try:
            filled = _FloatModel(self._base.instantiate(folded.state_dict()), self._inputs)
            if _is_close(predict(filled.module, inputs), expected):
                return filled
        except RuntimeError:  # torch, of sizes that do not fit
            pass
        anew = BaseGraph.export(folded, self.task.example_input, is_reusable=False)
        filled = _FloatModel(anew.instantiate(folded.state_dict()), self._inputs)
        if not _is_close(predict(filled.module, inputs), expected):
            raise ExportError(
                f"The exported graph must compute what the model of task '{self.task.name}' does, "
                "but its outputs differ. Does the model depend on the size of the batch, or draw "
                "random numbers in evaluation mode?"
            )
        return filled

    def _quantize(self, base: _FloatModel, candidate: Candidate, say: Report) -> ModelProto:
        settings = self.settings
        choices = candidate.layer_choices
        values = base.layer_values(candidate, settings.search_scales)
        histograms = base.calibration.histograms if values else {}

        def write(values: Mapping[str, LayerValues], graph: ModelProto) -> ModelProto:
            return quantize(graph, choices, histograms, settings.calibration, values=values)

        say("quantizing")
        model = write(values, base.model)
        outputs = {n: t for n, t in base.correctable.items() if n in values}
        if settings.correction and outputs:
            module = OnnxModule(model)
            found = correct_layers(module, base.batch, outputs, base.calibration.moments)
            values |= {n: _corrected(values[n], c) for n, c in found.items()}
            model = write(values, base.model)
        if settings.finetune_epochs:
            say("fine-tuning")
            training = QuantizedTraining(base.model, model, choices, values)
            self._train(training, say)
            trained = _replace_floats(base.model, training.float_values())
            model = write(training.layer_values(), trained)
        return model

    def _train(self, module: nn.Module, say: Report) -> None:
        settings = self.settings
        train(
            module,
            self._training_data,
            epochs=settings.finetune_epochs,
            lr=settings.finetune_lr,
            batch_size=settings.finetune_batch_size,
            seed=self.seed,
            weight_decay=0.0,
            optimizer="adamw",
            loss=distillation_loss if settings.distill else default_loss,
            report=lambda line: say(f"fine-tuning: {line}"),
        )

    @cached_property
    def _training_data(self) -> Data:
        assert self.task.train is not None  # checked when the compressor was made
        if not self.settings.distill:
            return self.task.train
        inputs = self.task.train.inputs
        return Data(inputs, predict(self._original, inputs))


def _batch_size(sample: Tensor) -> int:
    return min(_MAX_BATCH, max(1, _BATCH_VALUES // sample.numel()))


def _is_close(outputs: Tensor, expected: Tensor) -> bool:
    if outputs.shape != expected.shape:
        return False
    return bool((outputs - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-6)


def _corrected(values: LayerValues, correction: Correction) -> LayerValues:
    return replace(values, gain=correction.gain, bias=correction.bias)


def _replace_floats(model: ModelProto, values: Mapping[str, Tensor]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            array = values[tensor.name].numpy()
            tensor.CopyFrom(float_initializer(tensor.name, array))
    return result
