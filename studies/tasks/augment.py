"""Light augmentation of image batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `pixels` in both directions; zeros come in from outside."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4)
    starts = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=generator)
    rows = starts[0] + torch.arange(height)
    columns = starts[1] + torch.arange(width)
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # indexing around a slice puts the channels last


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image from left to right with probability one half."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(3), images)
