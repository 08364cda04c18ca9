"""Trained base models in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from ...search.checkpoint import check_writable, read_checkpoint, write_checkpoint

CACHE_VARIABLE = "PAREDOWN_CACHE"

# Raised whenever the same recipe would give another model.
CACHE_VERSION = 1


def cache_dir() -> Path:
    """Return the user's cache folder: `PAREDOWN_CACHE`, or `paredown` in the platform's place."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "paredown"


def cached_model(
    name: str,
    recipe: Mapping[str, object],
    model: nn.Module,
    train: Callable[[nn.Module], None],
    report: Callable[[str], None],
) -> nn.Module:
    """Return the model with trained weights, from the cache where they are there and whole.

    Args:
        name: Names the file.
        recipe: All that decides the weights (seed included); a JSON object.
        model: Freshly built network; its weights are replaced.
        train: Trains it in place; called when the cache has no sound weights.
        report: Told what happens.

    Raises:
        CheckpointError: If the cache folder cannot be written.
    """
    digest = hashlib.sha256(
        json.dumps([CACHE_VERSION, recipe, str(model)], sort_keys=True).encode()
    ).hexdigest()[:16]
    path = cache_dir() / "models" / f"{name}-{digest}.pt"
    if _load(path, model):
        report(f"base model from the cache: {path}")
        return model.eval()
    if path.exists():
        report(f"the cached base model {path} is broken and is trained again")
    check_writable(path.parent, CACHE_VARIABLE)
    train(model)
    write_checkpoint(path, model.state_dict())
    return model.eval()


def _load(path: Path, model: nn.Module) -> bool:
    """Load weights from a cache file and say whether it was whole."""
    state = read_checkpoint(path)
    if state is None:
        return False
    try:
        model.load_state_dict(state)
    except RuntimeError:
        return False
    return True
