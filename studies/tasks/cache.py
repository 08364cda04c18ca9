"""Trained base models in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from ...hw_profiles.errors import ParedownError

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
        ParedownError: If the cache folder cannot be written.
    """
    digest = hashlib.sha256(
        json.dumps([CACHE_VERSION, recipe, str(model)], sort_keys=True).encode()
    ).hexdigest()[:16]
    path = cache_dir() / "models" / f"{name}-{digest}.pt"
    if path.exists() and _load(path, model):
        report(f"base model from the cache: {path}")
        return model.eval()
    if path.exists():
        report(f"the cached base model {path} is broken and is trained again")
    _check_writable(path)
    train(model)
    _save(path, model)
    return model.eval()


def _load(path: Path, model: nn.Module) -> bool:
    """Load weights from a cache file and say whether it was whole."""
    checksum, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        return False
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        return False
    return True


def _save(path: Path, model: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    content = buffer.getvalue()
    checksum = hashlib.sha256(content).hexdigest().encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(checksum + b"\n" + content)
    os.replace(file.name, path)


def _check_writable(path: Path) -> None:
    # Before the training, not after it.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ParedownError(
            f"The cache folder '{path.parent}' must be writable, but: {error.strerror}. Name "
            f"another one in {CACHE_VARIABLE}."
        ) from error
