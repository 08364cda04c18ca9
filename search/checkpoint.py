"""Files of training: whole or not there, with a checksum, and names that say what they hold."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hw_profiles.errors import ParedownError


class CheckpointError(ParedownError):
    """A checkpoint cannot be written."""


def read_checkpoint(path: Path) -> Any:
    """Return what `write_checkpoint` wrote, None if the file is missing or not whole."""
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        return None
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        return None


def write_checkpoint(path: Path, value: Any) -> None:
    """Write tensors, numbers, texts and containers of them; the file appears whole."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    checksum = hashlib.sha256(content).hexdigest().encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(checksum + b"\n" + content)
    os.replace(file.name, path)


def check_writable(folder: Path, variable: str) -> None:
    """Make a folder, and raise where it cannot be written to: before the training, not after.

    Args:
        folder: The folder.
        variable: Name of the environment variable that names another one.

    Raises:
        CheckpointError: If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CheckpointError(
            f"The cache folder '{folder}' must be writable, but: {error.strerror}. Name another "
            f"one in {variable}."
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock beside a file; others wait, and the end of a process releases its locks."""
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that change with any name, type, shape or value."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()[:16]
