"""From a candidate to the model that is measured: prune, quantize, fine-tune, write."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ...evaluators.accuracy import predict
from ...evaluators.onnx_module import OnnxModule
from ...evaluators.size import coded_size_bytes, model_size_bytes
from ...evaluators.task import Data, Task
from ..candidate import Candidate
from ..space import SearchSpace
from ..training import Log, default_loss, distillation_loss, train
from ._float_model import FloatModel, batch_size
from ._graph import layer_nodes, replace_floats, set_metadata
from .correction import Correction, changes_spread, correct_layers
from .equalization import equalize
from .examples import Examples, choose_examples
from .export import BaseGraph, ExportError
from .finetuning import QuantizedTraining
from .last_layer import answers, find_last_layer, fit_last_layer, last_answers
from .pruning import fold_batch_norm, prune, reestimate_batch_norm, removed_channels
from .quantization import LayerValues, quantize
from .reconstruction import layer_outputs, reconstruct
from .settings import CompressionSettings
from .shared import SharedNetwork

__all__ = ["CompressedModel", "CompressionSettings", "Compressor"]

CANDIDATE_KEY = "paredown.candidate"
Report = Callable[[str], None]
_Show = Callable[[ModelProto, float], None]  # told the distance, too

_Weights = tuple[FloatModel, dict[str, LayerValues]]  # in float, and what replaces them

_KEPT_MODELS = 4  # pruned models that are kept for candidates that differ in widths alone
_STATISTICS_BATCHES = 4  # that batch normalisation of a slice is estimated on
_POOL_BATCHES = 40  # that samples to compare on are chosen from
_FITTING_BATCHES, _COMPARED_BATCHES = 8, 2  # chosen to fit last layers on, and to compare on
_RATIOS = (0.25, 0.5, 0.75, 1.0)  # of pruning alike, to compare the ways on
_NO_DISTANCE = 1e-9
_CHECKED_SAMPLES = 2
_TOLERANCE = 1e-3  # of the largest output; float32 in another order differs by 1e-6 and less


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A candidate made real.

    Attributes:
        candidate: What was asked for.
        model: The ONNX file: what every runtime gets.
        module: The same in torch, ready to be evaluated.
        size_bytes: Size of its parameters as `evaluators.size` defines it.
        coded_size_bytes: The same with the integer weights entropy-coded.
    """

    candidate: Candidate
    model: ModelProto
    module: OnnxModule
    size_bytes: int
    coded_size_bytes: int


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of a candidate long before its model is done.

    Attributes:
        size_bytes: Size of its parameters, which is that of the model.
        distance: Of its answers to training samples from those of the uncompressed model, as
            `distance_to` has it; mostly larger than the model's.
    """

    size_bytes: int
    distance: float


class Compressor:
    """Makes the models of candidates; equal candidates become equal models."""

    def __init__(
        self,
        task: Task,
        space: SearchSpace,
        settings: CompressionSettings | None = None,
        seed: int = 0,
        shared: SharedNetwork | None = None,
        log: Log | None = None,
    ) -> None:
        """Export the task's model, which takes some seconds.

        Args:
            task: The model and its data.
            space: The space that candidates are from.
            settings: How candidates are made.
            seed: Fixes what is random in fine-tuning.
            shared: Where candidates take their weights from; None takes the task's model.
            log: Told the figures of each epoch of fine-tuning.

        Raises:
            ExportError: If the model cannot be exported.
            ValueError: If fine-tuning is asked for and the task has no data to train on.
        """
        self.task = task
        self.space = space
        self.settings = settings or CompressionSettings()
        self.seed = seed
        self.shared = shared
        self._log = log
        if self.settings.finetune_epochs and task.train is None:
            raise ValueError(
                f"`finetune_epochs` must be 0 for task '{task.name}', which has no training "
                f"data, but is {self.settings.finetune_epochs}."
            )
        n_calibration = self.settings.n_calibration or batch_size(task.example_input)
        self._inputs = task.calibration[:n_calibration]
        self._original = copy.deepcopy(task.model).eval().requires_grad_(False)
        self._pruned: OrderedDict[tuple[tuple[str, float], ...], FloatModel] = OrderedDict()
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

    def compress(
        self,
        candidate: Candidate,
        report: Report | None = None,
        look: Callable[[Draft], None] | None = None,
    ) -> CompressedModel:
        """Make the model of a candidate.

        Args:
            candidate: A candidate of the space.
            report: Called with a word on what is being done.
            look: Called with a draft of the model, where there is one long before it is done.
                What it raises ends the work.

        Raises:
            SpaceError: If the candidate does not belong to the space.
        """
        say = report or _say_nothing

        def show(draft: ModelProto, distance: float) -> None:
            if look is not None:
                look(Draft(model_size_bytes(draft), distance))

        self.space.check(candidate)
        if candidate == self.space.baseline():
            model = copy.deepcopy(self._unpruned.model)
        elif self.shared is None:
            model = self._quantize(*self._rounded(candidate, say), candidate, say, show)
        elif self.settings.finetune_epochs:
            model = self._quantize(*self._cut(self.shared, candidate, say), candidate, say, show)
        else:
            model = self._nearest(self.shared, candidate, say, show)
        return _finished(candidate, model)

    def _float_model(self, candidate: Candidate, say: Report) -> FloatModel:
        key = candidate.pruning
        if key == self.space.baseline().pruning:
            return self._whole
        if key not in self._pruned:
            say("pruning")
            pruned = prune(self._original, candidate, self.space)
            reestimate_batch_norm(pruned, self._inputs)
            base = self._fill(fold_batch_norm(pruned, self.task.example_input))
            if self.settings.reconstruct:
                base = self._reconstructed(base, candidate)
            self._pruned[key] = self._equalized(base)
            if len(self._pruned) > _KEPT_MODELS:
                self._pruned.popitem(last=False)
        self._pruned.move_to_end(key)
        return self._pruned[key]

    @cached_property
    def _whole(self) -> FloatModel:
        return self._equalized(self._unpruned)

    def _equalized(self, base: FloatModel) -> FloatModel:
        if not self.settings.equalize:
            return base
        batches = base.inputs.split(len(base.batch))
        found = equalize(base.model, base.module, batches)
        return self._wrap(replace_floats(base.model, found)) if found else base

    def _reconstructed(self, base: FloatModel, candidate: Candidate) -> FloatModel:
        """Let the layers of a pruned model compute what those of the whole model do."""
        removal = removed_channels(candidate, self.space)
        wanted = {}
        for name, outputs in self._wanted_outputs.items():
            removed = removal.get((name.partition("#")[0], "out"), frozenset())
            kept = [idx for idx in range(outputs.shape[1]) if idx not in removed]
            wanted[name] = outputs[:, kept]
        found = reconstruct(base.model, base.module, base.batch, wanted)
        return self._wrap(replace_floats(base.model, found))

    @cached_property
    def _wanted_outputs(self) -> dict[str, Tensor]:
        whole = self._unpruned
        return layer_outputs(whole.model, whole.module, whole.batch)

    def _fill(self, folded: nn.Module) -> FloatModel:
        """Put a model's weights into the base graph, or export it anew where that is not enough.

        A graph can hold numbers that were computed from weights or numbers of channels; then the
        base graph computes something else than the model, and the model has to be traced again.
        """
        inputs = self._inputs[:_CHECKED_SAMPLES]
        expected = predict(folded, inputs)
        try:
            filled = self._wrap(self._base.instantiate(folded.state_dict()))
            if _is_close(predict(filled.module, inputs), expected):
                return filled
        except RuntimeError:  # torch, of sizes that do not fit
            pass
        anew = BaseGraph.export(folded, self.task.example_input, is_reusable=False)
        filled = self._wrap(anew.instantiate(folded.state_dict()))
        if not _is_close(predict(filled.module, inputs), expected):
            raise ExportError(
                f"The exported graph must compute what the model of task '{self.task.name}' does, "
                "but its outputs differ. Does the model depend on the size of the batch, or draw "
                "random numbers in evaluation mode?"
            )
        return filled

    def _wrap(self, model: ModelProto) -> FloatModel:
        return FloatModel(model, self._inputs, self.settings.sparsity)

    def _cut(self, shared: SharedNetwork, candidate: Candidate, say: Report) -> _Weights:
        """Return the weights of a candidate, and its scales, in the shared network."""
        say("cutting from the shared network")
        part = shared.cut(candidate)
        reestimate_batch_norm(part.module, self._statistics)
        folded = fold_batch_norm(part.module, self.task.example_input)
        base = self._fill(folded)
        nodes = layer_nodes(base.model.graph)
        values = {
            node.name: LayerValues(scale=scale)
            for name, scale in part.folded_scales(folded).items()
            for node in nodes[name]
        }
        return base, values

    def _rounded(self, candidate: Candidate, say: Report) -> _Weights:
        """Return the weights of a candidate in the task's model, rounded and corrected."""
        settings = self.settings
        base = self._float_model(candidate, say)
        values = base.layer_values(
            candidate,
            search=settings.search_scales,
            # A training begins better with the weights as they are.
            by_outputs=settings.round_by_outputs and not settings.finetune_epochs,
        )
        values |= self._corrections(base, values, candidate)
        return base, values

    def _nearest(
        self, shared: SharedNetwork, candidate: Candidate, say: Report, show: _Show
    ) -> ModelProto:
        """Make a candidate in the ways that may be best; return the nearest to the whole model.

        What was learned or rounded in the last layer had no regard to what this candidate's other
        layers compute; to fit it to that takes no training.
        """
        ways = [self._cut(shared, candidate, say)]
        degree = shared.pruning_degree(candidate)
        if not self.settings.shared_only and (not degree or degree <= self._reach_of_rounding):
            ways.append(self._rounded(candidate, say))
        say("quantizing")
        models = [self._write(*way, candidate) for way in ways]
        layer = find_last_layer(ways[0][0].model)
        name = None if layer is None else layer.name
        fitting, compared = self._examples
        found = [answers(model, compared.inputs, name) for model in models]
        distance = compared.distance()
        distances = [distance(outputs).item() for outputs, _ in found]
        nearest = min(range(len(ways)), key=distances.__getitem__)
        model, (base, values), (_, held_out) = models[nearest], ways[nearest], found[nearest]
        show(model, distances[nearest])
        if layer is None or held_out is None:
            return model
        say("fitting the last layer")
        _, read = answers(model, fitting.inputs, layer.name)
        assert read is not None
        weight, bias = (base.module.weights[name] for name in layer.input[1:])
        choice = candidate.layer_choices.get(layer.name)
        bits = None if choice is None or choice.is_float else choice.weight_bits
        fitted = fit_last_layer(read, fitting.distance(), weight, bias, bits)
        if bits is None:
            named = dict(zip(layer.input[1:], (fitted.weight, fitted.bias), strict=True))
            nearer = self._write(base, values, candidate, replace_floats(base.model, named))
        else:
            nearer = self._write(base, {**values, layer.name: fitted}, candidate)
        fitted_distance = distance(last_answers(nearer, layer.name, held_out)).item()
        return nearer if fitted_distance < distances[nearest] else model

    @cached_property
    def _reach_of_rounding(self) -> float:
        """Degree of pruning beyond which no candidate is nearer without training.

        It is where both ways are equally near in float, with all groups pruned alike. Narrow
        weights speak for those that were trained (ResNet-8 on Fashion-MNIST, 49 candidates).
        """
        assert self.shared is not None
        degree, gain = 0.0, 0.0
        for ratio in _RATIOS:
            candidate = self.space.uniform(32, 32, ratio)
            ways = (self._cut(self.shared, candidate, _say_nothing),
                    self._rounded(candidate, _say_nothing))  # fmt: skip
            cut, rounded = (self._distance(self._write(*way, candidate)) for way in ways)
            last = degree, gain
            degree = self.shared.pruning_degree(candidate)
            gain = math.log((rounded + _NO_DISTANCE) / (cut + _NO_DISTANCE))
            if gain > 0.0:
                return float(np.interp(0.0, (last[1], gain), (last[0], degree)))
        return 1.0

    def _distance(self, model: ModelProto) -> float:
        """Return how far a model's answers are from those of the uncompressed one."""
        _, compared = self._examples
        return compared.distance()(answers(model, compared.inputs)[0]).item()

    def _corrections(
        self, base: FloatModel, values: Mapping[str, LayerValues], candidate: Candidate
    ) -> dict[str, LayerValues]:
        outputs = {n: t for n, t in base.correctable.items() if n in values}
        if not self.settings.correction or not outputs:
            return {}
        module = OnnxModule(self._write(base, values, candidate))
        nodes = layer_nodes(base.model.graph)
        rescaled = {
            node.name
            for name, choice in candidate.layers
            for node in nodes[name]
            if changes_spread(choice, self.settings.sparsity)
        }
        found = correct_layers(module, base.batch, outputs, base.calibration.moments, rescaled)
        return {n: _corrected(values[n], c) for n, c in found.items()}

    def _write(
        self,
        base: FloatModel,
        values: Mapping[str, LayerValues],
        candidate: Candidate,
        graph: ModelProto | None = None,
    ) -> ModelProto:
        histograms = base.calibration.histograms if values else {}
        return quantize(
            graph or base.model,
            candidate.layer_choices,
            histograms,
            self.settings.calibration,
            values=values,
            accumulation_run=self.settings.accumulation_run,
            sparsity=self.settings.sparsity,
        )

    def _quantize(
        self,
        base: FloatModel,
        values: Mapping[str, LayerValues],
        candidate: Candidate,
        say: Report,
        show: _Show,
    ) -> ModelProto:
        say("quantizing")
        model = self._write(base, values, candidate)
        if not self.settings.finetune_epochs:
            return model
        show(model, self._distance(model))
        say("fine-tuning")
        training = QuantizedTraining(
            base.model, model, candidate.layer_choices, values, self.settings.sparsity
        )
        self._train(training, say)
        trained = replace_floats(base.model, training.float_values())
        return self._write(base, training.layer_values(), candidate, trained)

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
            precision=settings.precision,
            log=self._log,
            loss=distillation_loss if settings.distill else default_loss,
            report=lambda line: say(f"fine-tuning: {line}"),
        )

    @cached_property
    def _statistics(self) -> Tensor:
        """Samples as in training, that batch normalisation of a slice is estimated on."""
        return self._samples(_STATISTICS_BATCHES, seed=0)

    @cached_property
    def _examples(self) -> tuple[Examples, Examples]:
        """Training samples to fit last layers on, and others to compare models on."""
        inputs = self._samples(_POOL_BATCHES, seed=1)
        outputs = predict(self._original, inputs)
        size = batch_size(inputs[0])
        # Interleaved, as data sets may be sorted by class.
        is_compared = torch.arange(len(inputs)) % (_POOL_BATCHES // 8) == 0
        parts = ((~is_compared, _FITTING_BATCHES), (is_compared, _COMPARED_BATCHES))
        fitting, compared = (
            choose_examples(inputs[rows], outputs[rows], n * size) for rows, n in parts
        )
        return fitting, compared

    def _samples(self, n_batches: int, seed: int) -> Tensor:
        """Return samples as in training; another seed gives others where there are enough."""
        assert self.task.train is not None  # else there is no shared network
        inputs = self.task.train.inputs
        n_samples = min(len(inputs), n_batches * batch_size(inputs[0]))
        stride = len(inputs) // n_samples
        inputs = inputs[seed % stride :: stride][:n_samples].clone()
        if self.task.augment is not None:
            inputs = self.task.augment(inputs, torch.Generator().manual_seed(seed))
        return inputs

    @cached_property
    def _training_data(self) -> Data:
        assert self.task.train is not None  # checked when the compressor was made
        inputs = self.task.train.inputs[: self.settings.n_finetuning]
        if self.settings.distill:
            return Data(inputs, predict(self._original, inputs))
        return Data(inputs, self.task.train.targets[: self.settings.n_finetuning])


def _say_nothing(_: str) -> None:
    pass


def _finished(candidate: Candidate, model: ModelProto) -> CompressedModel:
    """Write into a file what it is, and make it ready to be evaluated."""
    set_metadata(model, {CANDIDATE_KEY: json.dumps(candidate.to_json())})
    sizes = model_size_bytes(model), coded_size_bytes(model)
    return CompressedModel(candidate, model, OnnxModule(model), *sizes)


def _is_close(outputs: Tensor, expected: Tensor) -> bool:
    if outputs.shape != expected.shape:
        return False
    return bool((outputs - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-6)


def _corrected(values: LayerValues, correction: Correction) -> LayerValues:
    return replace(values, gain=correction.gain, bias=correction.bias)
