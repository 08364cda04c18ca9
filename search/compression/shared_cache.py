"""The shared network of a task: from the cache, or trained now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ...evaluators.task import Task
from ..candidate import digest_of
from ..checkpoint import digest_tensors, locked, read_checkpoint, write_checkpoint
from ..space import SearchSpace
from .sandwich import SandwichTraining, SharedSettings
from .shared import SharedNetwork

_VERSION = 4  # raised whenever the same settings would give another network


def shared_network(
    task: Task,
    space: SearchSpace,
    settings: SharedSettings | None = None,
    *,
    seed: int = 0,
    folder: Path,
    report: Callable[[str], None] | None = None,
) -> SharedNetwork:
    """Return the trained shared network of a task and a space.

    It is kept in a file that is named after all that decides its weights: the model, the training
    data, the space, the settings and the seed. A training that was cut off goes on where its last
    checkpoint stands. Of several processes that need the same network one trains it.

    Args:
        task: The model and its training data.
        space: The space that candidates are from.
        settings: How it is trained.
        seed: Fixes all that is random in the training.
        folder: Where the files are; it exists and can be written to.
        report: Told how far the training is.

    Raises:
        ValueError: If the task has no training data.
        TrainingError: If the loss becomes NaN or infinite.
    """
    if task.train is None:
        raise ValueError(f"Task '{task.name}' must have training data for a shared network.")
    settings = settings or SharedSettings()
    tell = report or (lambda _: None)
    shared = SharedNetwork(task.model, space)
    path = folder / f"{task.name}-{_digest(task, space, settings, seed)}.pt"
    partial = path.with_suffix(".partial.pt")
    with locked(path):
        state = read_checkpoint(path)
        if state is not None:
            tell(f"shared network from the cache: {path}")
            shared.load_state_dict(state)
            return shared.eval()
        teacher = copy.deepcopy(task.model).eval().requires_grad_(False)
        training = SandwichTraining(
            shared, teacher, task.train.inputs, settings, seed=seed, augment=task.augment
        )
        training.run(partial, tell)
        write_checkpoint(path, shared.state_dict())
        partial.unlink(missing_ok=True)
    return shared.eval()


def _digest(task: Task, space: SearchSpace, settings: SharedSettings, seed: int) -> str:
    assert task.train is not None  # checked before
    weights = {f"model.{name}": tensor for name, tensor in task.model.state_dict().items()}
    return digest_of(
        {
            "version": _VERSION,
            "tensors": digest_tensors({**weights, "train.inputs": task.train.inputs}),
            # Widths of activations change nothing here: they are calibrated for each candidate.
            "groups": [[group.name, group.kept_options] for group in space.groups],
            "orders": [plan.order for plan in space.channel_groups],
            "layers": [[layer.name, layer.weight_bits] for layer in space.layers],
            "settings": asdict(settings),
            "seed": seed,
            "augment": _name(task),
        }
    )


def _name(task: Task) -> str | None:
    """Return what is known of the augmentation: its name."""
    return None if task.augment is None else getattr(task.augment, "__qualname__", "")
