"""The embedded default task: scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ...evaluators.task import Data, Task
from .base_model import Recipe, trained_model
from .models import ResidualNet

WIDTHS = (32, 64, 96)
N_VALIDATION = 450
N_CALIBRATION = 256
_SPLIT_SEED = 0  # one split for all seeds, so that accuracies compare


def make_digits(
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    is_trained: bool = True,
    report: Callable[[str], None],
) -> Task:
    """Make the task: 1797 images of 8x8 pixels, a residual network of three blocks.

    Args:
        data_dir: Ignored; the data come with scikit-learn.
        seed: Seed of the base model's training.
        is_trained: Whether the network is trained, or left as it was made.
        report: Told about the training.

    Returns:
        The task, its model trained or from the cache.
    """
    del data_dir
    train, validation = load_digits_data()
    recipe = Recipe(
        epochs=20, lr=0.1, batch_size=64, shift_pixels=1, is_flipped=False, label_smoothing=0.05
    )
    model = trained_model(
        "digits",
        lambda: ResidualNet(WIDTHS, n_classes=10),
        train,
        recipe,
        seed=seed,
        is_trained=is_trained,
        report=report,
    )
    return Task(
        name="digits",
        model=model,
        example_input=validation.inputs[:1].clone(),
        calibration=train.inputs[:N_CALIBRATION].clone(),
        validation=validation,
        train=train,
        augment=recipe.augment,
        finetune_epochs=2,
    )


def load_digits_data() -> tuple[Data, Data]:
    """Return the training and validation images, scaled to [0, 1], with equal class shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, validation = train_test_split(
        np.arange(len(labels)),
        test_size=N_VALIDATION,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    inputs = torch.as_tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    return (
        Data(inputs[train], targets[train]),
        Data(inputs[validation], targets[validation]),
    )
