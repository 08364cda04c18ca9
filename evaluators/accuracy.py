"""Accuracy: what a model predicts on data, and what a metric says about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..hw_profiles.errors import ParedownError

if TYPE_CHECKING:
    from .task import Data

Metric = Callable[[Tensor, Tensor], float]

# ResNet-8 on 10,000 images of 28x28, one thread: 1.8 s by 64, 2.4 s by 256, 4.4 s by 1000;
# the tensors between two layers should stay in the cache.
BATCH_SIZE = 64


class AccuracyError(ParedownError):
    """A model's accuracy has no value: its outputs or its metric are not finite numbers."""


def top1_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest output is at the target's index.

    Args:
        outputs: Scores, shape `(n, n_classes, ...)`.
        targets: Class indices, shape `(n, ...)`.

    Returns:
        A number in [0, 1].
    """
    return (outputs.argmax(dim=1) == targets).double().mean().item()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and give each submodule its own mode back after."""
    training = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


def predict(module: nn.Module, inputs: Tensor, batch_size: int = BATCH_SIZE) -> Tensor:
    """Run a module over inputs in batches, in evaluation mode and without gradients.

    Args:
        module: Maps a batch to one tensor whose first dimension is the batch.
        inputs: Samples, shape `(n, ...)` with `n` at least 1.
        batch_size: Samples of one call.

    Returns:
        The outputs of all samples, shape `(n, ...)`.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
    if not len(inputs):
        raise ValueError("`inputs` must hold at least one sample, but it is empty.")
    with evaluation_mode(module), torch.inference_mode():
        return torch.cat([module(batch) for batch in inputs.split(batch_size)])


def evaluate(
    module: nn.Module, data: Data, metric: Metric = top1_accuracy, batch_size: int = BATCH_SIZE
) -> float:
    """Measure a module with a metric over all of the data.

    Args:
        module: Maps a batch of `data.inputs` to outputs.
        data: Inputs and targets.
        metric: Function of all outputs and all targets.
        batch_size: Samples of one call of the module.

    Returns:
        The metric's value.

    Raises:
        AccuracyError: If an output or the metric's value is NaN or infinite; an accuracy made
            from such outputs would look like a number and mean nothing.
    """
    outputs = predict(module, data.inputs, batch_size)
    if not torch.isfinite(outputs).all():
        count = int((~torch.isfinite(outputs)).flatten(1).any(dim=1).sum())
        raise AccuracyError(
            f"Outputs must be finite, but {count} of {len(outputs)} samples give NaN or infinity. "
            "The model's weights or the scales of its quantized layers overflowed."
        )
    value = float(metric(outputs, data.targets))
    if not math.isfinite(value):
        raise AccuracyError(
            f"The metric must return a finite number, but '{_name(metric)}' returned {value}. "
            "Make it defined for every set of outputs."
        )
    return value


def _name(function: Metric) -> str:
    return getattr(function, "__name__", type(function).__name__)
