"""Accuracy: what a model predicts on data, and what a metric says about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..hw_profiles.errors import ParedownError
from .strata import Strata

if TYPE_CHECKING:
    from .task import Data

Metric = Callable[[Tensor, Tensor], float]

# ResNet-8 on 10,000 images of 28x28, one thread: 1.8 s by 64, 2.4 s by 256, 4.4 s by 1000;
# the tensors between two layers should stay in the cache.
BATCH_SIZE = 64

_LEAST_PARTS = 4  # that an interval is estimated from


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


def top1_agreement(outputs: Tensor, reference: Tensor) -> float:
    """Share of samples whose largest output is at the same index as in the reference's outputs.

    A fidelity for tasks without labels: the reference is the uncompressed model.

    Args:
        outputs: Scores, shape `(n, n_classes, ...)`.
        reference: Scores of the same shape.

    Returns:
        A number in [0, 1].
    """
    return top1_accuracy(outputs, reference.argmax(dim=1))


# Metrics that are the share of right samples, and what the labels are in their targets.
_SHARES: dict[Metric, Callable[[Tensor], Tensor]] = {
    top1_accuracy: lambda targets: targets,
    top1_agreement: lambda reference: reference.argmax(dim=1),
}


def sqnr_db(outputs: Tensor, reference: Tensor) -> float:
    """Ratio of the reference's power to that of the difference from it, in decibel.

    Args:
        outputs: Shape `(n, ...)`.
        reference: The uncompressed model's outputs, of the same shape.

    Returns:
        Larger is nearer; at most 200 for outputs that are equal.
    """
    signal = reference.double().square().sum()
    noise = (outputs.double() - reference.double()).square().sum()
    return 10 * math.log10(max(1e-20, float(signal / noise.clamp_min(signal * 1e-20 + 1e-300))))


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
    return _judge(predict(module, data.inputs, batch_size), data.targets, metric)


@dataclass(frozen=True, slots=True)
class PartialAccuracy:
    """A metric after some of the samples.

    Attributes:
        n_images: Samples that were run so far.
        accuracy: The metric over them.
        error: Standard deviation of that from the metric over all samples; 0 once all of them
            were run, infinite while nothing can be said.
        half_width: Half the confidence interval within which the metric over all samples lies.
    """

    n_images: int
    accuracy: float
    error: float
    half_width: float


def make_strata(outputs: Tensor, data: Data, metric: Metric, seed: int = 0) -> Strata:
    """Plan in which order samples are run, from what the uncompressed model answers.

    Args:
        outputs: Its outputs for `data.inputs`.
        data: Inputs and targets.
        metric: One that is the share of right samples makes use of the outputs; for others, and
            for outputs that are not scores of classes, the order is random.
        seed: Fixes the order.
    """
    if metric in _SHARES and outputs.ndim == 2 and outputs.shape[1] > 1:
        return Strata.by_margin(outputs, _SHARES[metric](data.targets), seed)
    return Strata.single(len(data), seed)


def evaluate_in_batches(
    module: nn.Module,
    data: Data,
    metric: Metric = top1_accuracy,
    *,
    step: int = 256,
    strata: Strata | None = None,
    confidence: float = 0.95,
    batch_size: int = BATCH_SIZE,
) -> Iterator[PartialAccuracy]:
    """Measure a module with a metric, and tell how it stands after every few samples.

    The last value is that of `evaluate`. A caller that has seen enough stops.

    Args:
        module: Maps a batch of `data.inputs` to outputs.
        data: Inputs and targets.
        metric: Function of some outputs and their targets. The interval is right for means over
            samples, such as an accuracy.
        step: Samples between two values.
        strata: The order of the samples, from `make_strata`; None takes a random one, the same
            each time.
        confidence: Share of cases in which the interval holds the metric over all samples.
        batch_size: Samples of one call of the module.

    Yields:
        The metric after `step` samples, after twice as many, and so on to all of them.

    Raises:
        AccuracyError: If an output or the metric's value is NaN or infinite.
    """
    strata = strata or Strata.single(len(data), 0)
    score = NormalDist().inv_cdf(0.5 + confidence / 2)
    outputs: list[Tensor] = []
    parts: list[float] = []
    n_done = 0
    for rows in strata.order.split(step):
        outputs.append(predict(module, data.inputs[rows], batch_size))
        n_done += len(rows)
        if n_done == len(data):
            back = strata.order.argsort()
            value = _judge(torch.cat(outputs)[back], data.targets, metric)
            yield PartialAccuracy(n_done, value, 0.0, 0.0)
            return
        parts.append(_judge(outputs[-1], data.targets[rows], metric))
        if metric in _SHARES:
            labels = _SHARES[metric](data.targets[strata.order[:n_done]])
            is_right = (torch.cat(outputs).argmax(dim=1) == labels).double()
            value, error = strata.estimate(is_right.reshape(n_done, -1).mean(dim=1))
            yield PartialAccuracy(n_done, value, error, score * error)
        else:
            value = _judge(torch.cat(outputs), data.targets[strata.order[:n_done]], metric)
            # Of a finite number of samples, those that are left can change only so much.
            left = math.sqrt(1 - n_done / len(data))
            n = len(parts)
            error = left * _mean_error(parts)
            # Student's t, in its expansion by 1 / (n - 1).
            t = score * (1 + (score**2 + 1) / (4 * max(1, n - 1)))
            yield PartialAccuracy(n_done, value, error, t * error)


def _mean_error(parts: list[float]) -> float:
    """Return the standard error of a mean of equal parts, from their spread."""
    n = len(parts)
    if n < _LEAST_PARTS:
        return math.inf
    mean = sum(parts) / n
    return math.sqrt(sum((part - mean) ** 2 for part in parts) / (n - 1) / n)


def _judge(outputs: Tensor, targets: Tensor, metric: Metric) -> float:
    """Apply a metric, and raise where outputs or its value are not finite."""
    if not torch.isfinite(outputs).all():
        count = int((~torch.isfinite(outputs)).flatten(1).any(dim=1).sum())
        raise AccuracyError(
            f"Outputs must be finite, but {count} of {len(outputs)} samples give NaN or infinity. "
            "The model's weights or the scales of its quantized layers overflowed."
        )
    value = float(metric(outputs, targets))
    if not math.isfinite(value):
        raise AccuracyError(
            f"The metric must return a finite number, but '{_name(metric)}' returned {value}. "
            "Make it defined for every set of outputs."
        )
    return value


def _name(function: Metric) -> str:
    return getattr(function, "__name__", type(function).__name__)
