"""From a candidate to the model that is measured: prune, quantize, fine-tune, write."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto
from torch import nn

from ...evaluators.accuracy import predict
from ...evaluators.onnx_module import OnnxModule
from ...evaluators.size import coded_size_bytes, model_size_bytes
from ...evaluators.task import Data, Task
from ..candidate import Candidate
from ..space import SearchSpace
from ..training import Log, default_loss, distillation_loss, train
from ._graph import layer_nodes, replace_floats, set_metadata
from ._samples import TrainingSamples
from ._writer import ModelWriter
from .export import ExportError
from .finetuning import QuantizedTraining
from .post_training import PostTraining, Report, Weights, say_nothing
from .pruning import fold_batch_norm
from .settings import CompressionSettings
from .shared import SharedNetwork
from .slices import Show, Slices

__all__ = ["CompressedModel", "CompressionSettings", "Compressor"]

CANDIDATE_KEY = "paredown.candidate"


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
        self._log = log
        if self.settings.finetune_epochs and task.train is None:
            raise ValueError(
                f"`finetune_epochs` must be 0 for task '{task.name}', which has no training "
                f"data, but is {self.settings.finetune_epochs}."
            )
        self._original = copy.deepcopy(task.model).eval().requires_grad_(False)
        folded = fold_batch_norm(self._original, task.example_input)
        self._writer = ModelWriter(task, folded, self.settings)
        self._samples = TrainingSamples(task, self._original)
        self._rounding = PostTraining(task, self._original, space, self.settings, self._writer)
        layers = layer_nodes(self._writer.unpruned.model.graph)
        missing = [layer.name for layer in space.layers if layer.name not in layers]
        if missing:
            raise ExportError(
                f"Every layer of the space must be a node of the exported graph, but {missing} "
                "are not. Their weights are computed in `forward`; make them plain parameters."
            )
        self._slices: Slices | None = None
        self.shared = shared

    @property
    def shared(self) -> SharedNetwork | None:
        """Where candidates take their weights from, None for the task's model."""
        return None if self._slices is None else self._slices.shared

    @shared.setter
    def shared(self, network: SharedNetwork | None) -> None:
        rounding = None if self.settings.shared_only else self._rounding
        self._slices = None if network is None else Slices(
            network, self.task, self.space, self._samples, self._writer, rounding)  # fmt: skip

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
        say = report or say_nothing

        def show(draft: ModelProto, distance: float) -> None:
            if look is not None:
                look(Draft(model_size_bytes(draft), distance))

        self.space.check(candidate)
        if candidate == self.space.baseline():
            model = copy.deepcopy(self._writer.unpruned.model)
        elif self._slices is None:
            model = self._quantize(self._rounding.rounded(candidate, say), candidate, say, show)
        elif self.settings.finetune_epochs:
            model = self._quantize(self._slices.cut(candidate, say), candidate, say, show)
        else:
            model = self._slices.nearest(candidate, say, show)
        return _finished(candidate, model)

    def _quantize(
        self,
        weights: Weights,
        candidate: Candidate,
        say: Report,
        show: Show,
    ) -> ModelProto:
        say("quantizing")
        base, values = weights
        model = self._writer.write(base, values, candidate)
        if not self.settings.finetune_epochs:
            return model
        show(model, self._samples.distance(model))
        say("fine-tuning")
        training = QuantizedTraining(
            base.model, model, candidate.layer_choices, values, self.settings.sparsity
        )
        self._train(training, say)
        trained = replace_floats(base.model, training.float_values())
        return self._writer.write(base, training.layer_values(), candidate, trained)

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
    def _training_data(self) -> Data:
        assert self.task.train is not None  # checked when the compressor was made
        inputs = self.task.train.inputs[: self.settings.n_finetuning]
        if self.settings.distill:
            return Data(inputs, predict(self._original, inputs))
        return Data(inputs, self.task.train.targets[: self.settings.n_finetuning])


def _finished(candidate: Candidate, model: ModelProto) -> CompressedModel:
    """Write into a file what it is, and make it ready to be evaluated."""
    set_metadata(model, {CANDIDATE_KEY: json.dumps(candidate.to_json())})
    sizes = model_size_bytes(model), coded_size_bytes(model)
    return CompressedModel(candidate, model, OnnxModule(model), *sizes)
