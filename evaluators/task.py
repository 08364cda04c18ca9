"""The user's task: a trained model, its data and the metric that counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..hw_profiles.errors import ParedownError
from .accuracy import Metric, evaluation_mode, predict, top1_accuracy

Augment = Callable[[Tensor, torch.Generator], Tensor]

_CHECKED_SAMPLES = 8  # samples that the model is run on to learn the form of its outputs


class TaskError(ParedownError):
    """A task cannot be used: wrong types, empty or mislabelled data, broken weights."""


@dataclass(frozen=True, eq=False)
class Data:
    """Decoded samples in memory.

    Attributes:
        inputs: What the model reads, shape `(n, ...)`.
        targets: What the metric compares outputs with, shape `(n, ...)`.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise TaskError(
                    f"`Data.{name}` must be a tensor, but got {type(value).__name__}. "
                    "Use `Data.from_dataset` for a torch dataset, `torch.as_tensor` for an array."
                )
            if value.ndim == 0 or not len(value):
                raise TaskError(
                    f"`Data.{name}` must hold at least one sample, but its shape is "
                    f"{tuple(value.shape)}."
                )
        if len(self.inputs) != len(self.targets):
            raise TaskError(
                f"`Data` must have one target for each input, but has {len(self.inputs)} inputs "
                f"and {len(self.targets)} targets."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def from_dataset(cls, dataset: Dataset[Any] | Iterable[Any], limit: int | None = None) -> Data:
        """Take the samples of a torch dataset into memory.

        Args:
            dataset: Yields pairs (input, target) of tensors, arrays or numbers.
            limit: Largest number of samples to take; None takes all.

        Returns:
            The stacked samples.

        Raises:
            TaskError: If a sample is no such pair, or the samples' shapes differ.
        """
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for sample in itertools.islice(_samples(dataset), limit):
            try:
                x, y = sample
                inputs.append(torch.as_tensor(x))
                targets.append(torch.as_tensor(y))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TaskError(
                    "A dataset's samples must be pairs (input, target) of tensors, arrays or "
                    f"numbers, but sample {len(inputs)} is {_describe(sample)}. "
                    "Decode it in the dataset's transform."
                ) from error
        if not inputs:
            raise TaskError("A dataset must hold at least one sample, but it is empty.")
        try:
            return cls(torch.stack(inputs), torch.stack(targets))
        except RuntimeError as error:
            raise TaskError(
                f"All samples of a dataset must have one shape: {error}. "
                "Resize or pad them in the dataset's transform."
            ) from error

    @classmethod
    def from_model(cls, model: nn.Module, inputs: Tensor) -> Data:
        """Take a model's own outputs for targets: for samples without labels.

        The metric then tells how true a candidate is to the model: `accuracy.top1_agreement` or
        `accuracy.sqnr_db`.

        Args:
            model: The uncompressed model.
            inputs: Shape `(n, ...)`.
        """
        return cls(inputs, predict(model, inputs).clone())


@dataclass(frozen=True, eq=False)
class Task:
    """What a study compresses and how it judges the result.

    Attributes:
        name: Names the task in studies and reports.
        model: Trained model; maps a batch of inputs to one tensor of outputs.
        example_input: One input with a batch dimension of 1, float32.
        calibration: Inputs that fix the ranges of quantized activations; a few hundred do.
        validation: Data that every candidate is judged on.
        train: Data to train on; without it candidates are quantized without any training.
        metric: Function of all outputs and all targets.
        metric_name: What tables and plots call the metric.
        higher_is_better: Whether a larger metric is a better one.
        finetune_epochs: Epochs for each candidate where a study fine-tunes them one by one, unless
            it says otherwise.
        augment: Changes a batch of training inputs, drawing from the generator that it is given.
    """

    name: str
    model: nn.Module
    example_input: Tensor
    calibration: Tensor
    validation: Data
    train: Data | None = None
    metric: Metric = top1_accuracy
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    finetune_epochs: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_shapes(self)


def check_task(task: Task) -> None:
    """Run the checks of a task that read all of its weights and data.

    Args:
        task: The task; its model is left as it was.

    Raises:
        TaskError: If a weight or an input is NaN or infinite, the model fails on the data or
            returns anything but one finite tensor, or a label is outside the model's outputs.
    """
    if not isinstance(task, Task):
        raise TaskError(f"A task must be a `Task`, but got {type(task).__name__}.")
    _check_weights(task.model)
    for name, inputs in _named_inputs(task):
        bad = _first_non_finite(inputs)
        if bad is not None:
            raise TaskError(
                f"`{name}` must be finite, but sample {bad} holds NaN or infinity. "
                "Clean the data before it becomes a task."
            )
    outputs = _run_model(task)
    _check_targets("validation", task.validation, outputs, task)
    if task.train is not None:
        _check_targets("train", task.train, outputs, task)


def _samples(dataset: Dataset[Any] | Iterable[Any]) -> Iterator[Any]:
    if isinstance(dataset, Iterable):
        yield from dataset
    else:
        # A map-style dataset need not raise IndexError at its end, so its length is asked for.
        n_samples = len(dataset)  # type: ignore[arg-type]  # torch's class does not declare it
        for index in range(n_samples):
            yield dataset[index]


def _check_types(task: Task) -> None:
    expected: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "model": (nn.Module,),
        "example_input": (Tensor,),
        "calibration": (Tensor,),
        "validation": (Data,),
        "train": (Data, type(None)),
        "metric_name": (str,),
        "higher_is_better": (bool,),
        "finetune_epochs": (int,),
    }
    for field in fields(task):
        value = getattr(task, field.name)
        types = expected.get(field.name)
        if types is not None and not isinstance(value, types):
            names = " or ".join(t.__name__ for t in types if t is not type(None))
            raise TaskError(
                f"`Task.{field.name}` must be a {names}, but got {type(value).__name__}."
            )
    if not callable(task.metric):
        raise TaskError(
            "`Task.metric` must be a function of outputs and targets, but got "
            f"{type(task.metric).__name__}."
        )
    if not task.name:
        raise TaskError("`Task.name` must not be empty.")
    if task.finetune_epochs < 0:
        raise TaskError(f"`Task.finetune_epochs` must be 0 or more, not {task.finetune_epochs}.")
    if task.finetune_epochs and task.train is None:
        raise TaskError("`Task.finetune_epochs` needs data to train on: set `Task.train`.")


def _check_shapes(task: Task) -> None:
    example = task.example_input
    if example.ndim < 2 or len(example) != 1:
        raise TaskError(
            "`Task.example_input` must be one input with a batch dimension of 1, but its shape "
            f"is {tuple(example.shape)}. Use `inputs[:1]`."
        )
    for name, inputs in (("example_input", example), *_named_inputs(task)):
        if inputs.dtype != torch.float32:
            raise TaskError(
                f"`Task.{name}` must be float32, but is {inputs.dtype}. "
                "Convert it with `.float()` and scale it as the model expects."
            )
        if inputs.shape[1:] != example.shape[1:]:
            raise TaskError(
                f"`Task.{name}` must hold samples of the example input's shape "
                f"{tuple(example.shape[1:])}, but they are {tuple(inputs.shape[1:])}."
            )
    if not len(task.calibration):
        raise TaskError("`Task.calibration` must hold at least one sample, but it is empty.")


def _named_inputs(task: Task) -> list[tuple[str, Tensor]]:
    named = [("calibration", task.calibration), ("validation.inputs", task.validation.inputs)]
    if task.train is not None:
        named.append(("train.inputs", task.train.inputs))
    return named


def _check_weights(model: nn.Module) -> None:
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                count = int((~torch.isfinite(tensor)).sum())
                raise TaskError(
                    f"The model's weights must be finite, but {kind} '{name}' holds {count} NaN "
                    f"or infinite values of {tensor.numel()}. Load a sound checkpoint."
                )


def _first_non_finite(inputs: Tensor) -> int | None:
    # In pieces: the mask of a whole training set would double the memory it takes.
    for start, piece in zip(range(0, len(inputs), 1024), inputs.split(1024), strict=True):
        finite = torch.isfinite(piece).flatten(1).all(dim=1)
        if not finite.all():
            return start + int((~finite).nonzero()[0])
    return None


def _run_model(task: Task) -> Tensor:
    inputs = task.validation.inputs[:_CHECKED_SAMPLES]
    try:
        with evaluation_mode(task.model), torch.inference_mode():
            outputs = task.model(inputs)
    except Exception as error:  # the user's code may raise anything
        raise TaskError(
            f"The model must run on a batch of shape {tuple(inputs.shape)}, but it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise TaskError(
            f"The model must return one tensor, but returned {_describe(outputs)}. "
            "Wrap it in a module that returns the tensor the metric needs."
        )
    if outputs.ndim < 1 or len(outputs) != len(inputs):
        raise TaskError(
            f"The model's outputs must have one row for each of {len(inputs)} inputs, but their "
            f"shape is {tuple(outputs.shape)}."
        )
    if not torch.isfinite(outputs).all():
        raise TaskError(
            "The model's outputs must be finite, but they hold NaN or infinity on the validation "
            "data. Check its weights and how the inputs are scaled."
        )
    return outputs


def _check_targets(name: str, data: Data, outputs: Tensor, task: Task) -> None:
    targets = data.targets
    if targets.is_floating_point():
        if task.metric is top1_accuracy:
            raise TaskError(
                f"`{name}.targets` must be class indices (integers) for `top1_accuracy`, but "
                f"they are {targets.dtype}. Convert them, or give the task its own metric."
            )
        if not torch.isfinite(targets).all():
            raise TaskError(f"`{name}.targets` must be finite, but they hold NaN or infinity.")
        return
    # Whole numbers beside scores of one more dimension are class indices.
    if outputs.ndim != targets.ndim + 1:
        if task.metric is top1_accuracy:
            raise TaskError(
                f"`{name}.targets` must have shape (n,) beside outputs of shape (n, n_classes), "
                f"but they are {tuple(targets.shape)} beside {tuple(outputs.shape)}."
            )
        return
    n_classes = outputs.shape[1]
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= n_classes:
        wrong = int(((targets < 0) | (targets >= n_classes)).sum())
        raise TaskError(
            f"`{name}.targets` must be classes 0..{n_classes - 1} of the model's {n_classes} "
            f"outputs, but {wrong} of {targets.numel()} are not (they span {low}..{high}). "
            "The data are mislabelled or belong to another model."
        )


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        inner = ", ".join(type(item).__name__ for item in value[:4])
        return f"a {type(value).__name__} of ({inner}{', ...' if len(value) > 4 else ''})"
    return f"of type {type(value).__name__}"
