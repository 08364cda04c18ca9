"""ResNet-8 of MLPerf Tiny on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...evaluators.task import Data, Task, TaskError
from .base_model import Recipe, trained_model
from .idx import read_idx
from .models import ResidualNet

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
WIDTHS = (16, 32, 64)
N_CALIBRATION = 512
N_CLASSES = 10


def make_fashion_mnist(
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    is_trained: bool = True,
    report: Callable[[str], None],
) -> Task:
    """Make the task: 60,000 training and 10,000 validation images of 28x28 pixels.

    Args:
        data_dir: Folder of the four IDX files; None for that of Debian's package.
        seed: Seed of the base model's training.
        is_trained: Whether the network is trained, or left as it was made.
        report: Told about the training, which takes some minutes.

    Returns:
        The task, its model trained or from the cache.

    Raises:
        TaskError: If the files are missing, truncated or mislabelled.
    """
    folder = Path(data_dir) if data_dir is not None else DEFAULT_FOLDER
    validation = _read(folder, "t10k")
    train = _read(folder, "train")
    # Light augmentation: a network of 77,000 parameters fits little more than the data.
    recipe = Recipe(epochs=18, lr=0.2, batch_size=128, shift_pixels=1, is_flipped=True)
    model = trained_model(
        "fashion-mnist",
        lambda: ResidualNet(WIDTHS, n_classes=N_CLASSES),
        train,
        recipe,
        seed=seed,
        is_trained=is_trained,
        report=report,
    )
    return Task(
        name="fashion-mnist",
        model=model,
        example_input=validation.inputs[:1].clone(),
        calibration=train.inputs[:N_CALIBRATION].clone(),
        validation=validation,
        train=train,
        augment=recipe.augment,
        finetune_epochs=1,
    )


def _read(folder: Path, part: str) -> Data:
    images_file = folder / f"{part}-images-idx3-ubyte.gz"
    labels_file = folder / f"{part}-labels-idx1-ubyte.gz"
    for path in (images_file, labels_file):
        if not path.is_file():
            raise TaskError(
                f"Fashion-MNIST must be in '{folder}', but '{path.name}' is missing. Install it "
                "with `apt-get install dataset-fashion-mnist`, or name its folder with --data."
            )
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise TaskError(
            f"'{images_file}' and '{labels_file}' must belong together, but hold {len(images)} "
            f"images and {len(labels)} labels."
        )
    if images.shape[1:] != (28, 28):
        raise TaskError(
            f"'{images_file}' must hold images of 28x28 pixels, but they are "
            f"{images.shape[1]}x{images.shape[2]}."
        )
    if len(labels) and labels.max() >= N_CLASSES:
        raise TaskError(
            f"'{labels_file}' must hold classes 0..{N_CLASSES - 1}, but holds {labels.max()}. "
            "The file is mislabelled."
        )
    inputs = torch.from_numpy(images).unsqueeze(1).float().div_(255.0)
    return Data(inputs, torch.from_numpy(labels).long())
