"""Samples of the training data that candidates are made and compared on."""

from __future__ import annotations

from functools import cached_property

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ...evaluators.accuracy import predict
from ...evaluators.task import Task
from ._float_model import batch_size
from .examples import Examples, choose_examples
from .last_layer import answers

_STATISTICS_BATCHES = 4  # that batch normalisation of a slice is estimated on
_POOL_BATCHES = 40  # that samples to compare on are chosen from
_FITTING_BATCHES, _COMPARED_BATCHES = 8, 2  # chosen to fit last layers on, and to compare on


class TrainingSamples:
    """Some training samples of a task, chosen when they are first needed.

    Args:
        task: A task with training data.
        original: Its model.
    """

    def __init__(self, task: Task, original: nn.Module) -> None:
        self._task, self._original = task, original

    @cached_property
    def statistics(self) -> Tensor:
        """Samples as in training, that batch normalisation of a slice is estimated on."""
        return self._samples(_STATISTICS_BATCHES, seed=0)

    @cached_property
    def examples(self) -> tuple[Examples, Examples]:
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

    def distance(self, model: ModelProto) -> float:
        """Return how far a model's answers are from those of the uncompressed one."""
        _, compared = self.examples
        return compared.distance()(answers(model, compared.inputs)[0]).item()

    def _samples(self, n_batches: int, seed: int) -> Tensor:
        """Return samples as in training; another seed gives others where there are enough."""
        assert self._task.train is not None  # who asks needs them
        inputs = self._task.train.inputs
        n_samples = min(len(inputs), n_batches * batch_size(inputs[0]))
        stride = len(inputs) // n_samples
        inputs = inputs[seed % stride :: stride][:n_samples].clone()
        if self._task.augment is not None:
            inputs = self._task.augment(inputs, torch.Generator().manual_seed(seed))
        return inputs
