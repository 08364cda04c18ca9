"""The trained base model of a built-in task: from the cache, or trained now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...evaluators.task import Data
from ...search.training import train
from .augment import random_flip, random_shift
from .cache import cached_model


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a base model is trained; part of its cache file's name."""

    epochs: int
    lr: float
    batch_size: int
    shift_pixels: int  # images are moved by up to so many pixels in each direction
    is_flipped: bool  # half of the images are mirrored
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch of images at random."""
        if self.is_flipped:
            images = random_flip(images, generator)
        return random_shift(images, self.shift_pixels, generator)


def trained_model(
    name: str,
    build: Callable[[], nn.Module],
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    is_trained: bool = True,
    report: Callable[[str], None],
) -> nn.Module:
    """Return a task's trained network.

    Args:
        name: Names the cache file.
        build: Makes the network with random weights.
        data: What it is trained on.
        recipe: How.
        seed: Fixes the weights before training and the training itself.
        is_trained: False returns the network as it was made.
        report: Told about each epoch, with the time left.

    Returns:
        The network in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    if not is_trained:
        return model.eval()

    def fit(model: nn.Module) -> None:
        # Convolutions of few channels train faster with the channels last.
        train(
            model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # in torch
            data,
            epochs=recipe.epochs,
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            seed=seed,
            weight_decay=recipe.weight_decay,
            loss=partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing),
            augment=recipe.augment,
            report=_with_time_left(recipe.epochs, report),
        )
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # in torch

    return cached_model(name, {**asdict(recipe), "seed": seed}, model, fit, report)


def _with_time_left(n_epochs: int, report: Callable[[str], None]) -> Callable[[str], None]:
    """Return a report that adds how long the epochs to come will take."""
    start = time.monotonic()
    n_done = 0
    report(f"training the base model: {n_epochs} epochs")

    def tell(text: str) -> None:
        nonlocal n_done
        n_done += 1
        left = (time.monotonic() - start) / n_done * (n_epochs - n_done)
        minutes, seconds = divmod(round(left), 60)
        report(f"training the base model: {text}, {minutes}:{seconds:02d} min left")

    return tell
