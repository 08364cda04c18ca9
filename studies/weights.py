"""From a study's settings to its space, and to where its candidates take their weights from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from ..evaluators.task import Task
from ..hw_profiles.profile import HardwareProfile
from ..search.checkpoint import check_writable
from ..search.compression.calibration import CalibrationMethod
from ..search.compression.compressor import CompressionSettings
from ..search.compression.sandwich import SharedSettings
from ..search.compression.shared import SharedNetwork
from ..search.compression.shared_cache import shared_network
from ..search.compression.sparsity import Sparsity
from ..search.space import SearchSpace, SpaceSettings
from .errors import StudyError
from .records import StudySettings
from .tasks.cache import CACHE_VARIABLE, cache_dir


def accuracy_mode(settings: StudySettings, task: Task) -> str:
    """Return where the weights of a study's candidates come from: one of `ACCURACY_MODES`.

    Raises:
        StudyError: If that needs training data and the task has none.
    """
    mode = settings.accuracy
    if mode == "default":
        if settings.finetune_epochs is not None:
            mode = "finetune" if settings.finetune_epochs else "ptq"
        elif settings.shared_epochs is not None or task.train is not None:
            mode = "shared"
        else:
            mode = "ptq"
    if mode != "ptq" and task.train is None:
        raise StudyError(
            f"`accuracy` '{mode}' needs data to train on, but task '{task.name}' has none. Set "
            "`Task.train`, or use '--accuracy ptq'."
        )
    return mode


def make_space(settings: StudySettings, task: Task, profile: HardwareProfile) -> SearchSpace:
    """Return the search space of a study.

    Raises:
        StudyError: If the criterion of pruning is unknown.
        ParedownError: If the space cannot be made.
    """
    chosen = SpaceSettings(
        max_pruning_ratio=settings.max_pruning_ratio,
        weight_bits=settings.weight_bits,
        activation_bits=settings.activation_bits or profile.activation_bits,
        include_float=settings.include_float,
        rules=settings.rules,
        exclude=settings.exclude,
        tie=settings.tie,
        criterion=settings.criterion,
    )
    try:
        return SearchSpace.from_model(task.model, task.example_input, profile, chosen, task.train)
    except ValueError as error:
        raise StudyError(str(error)) from error


def compression_settings(
    settings: StudySettings, task: Task, **changes: Any
) -> CompressionSettings:
    """Return how a study makes its candidates.

    Args:
        settings: The study's.
        task: Its task.
        **changes: Fields that are to be different.
    """
    sparsity = None if settings.sparsity is None else Sparsity.parse(settings.sparsity)
    chosen = CompressionSettings(accumulation_run=settings.accumulation_run, sparsity=sparsity)
    if accuracy_mode(settings, task) == "finetune":
        epochs = settings.finetune_epochs or task.finetune_epochs or 1
        chosen = replace(chosen, finetune_epochs=epochs)
    if settings.calibration != "default":
        # `check_settings` has seen the name.
        chosen = replace(chosen, calibration=cast(CalibrationMethod, settings.calibration))
    return replace(chosen, **changes)


def shared_weights(
    settings: StudySettings,
    task: Task,
    space: SearchSpace,
    report: Callable[[str], None],
) -> SharedNetwork | None:
    """Return the shared network of a study, trained if the cache lacks it; None without one.

    Raises:
        CheckpointError: If the cache folder cannot be written.
        TrainingError: If its training diverges.
    """
    if accuracy_mode(settings, task) != "shared":
        return None
    folder = cache_dir() / "shared"
    check_writable(folder, CACHE_VARIABLE)
    chosen = SharedSettings(epochs=settings.shared_epochs)
    # The study's seed leaves the network as it is, so that all studies of a task share it.
    return shared_network(task, space, chosen, folder=folder, report=report)
