"""What the folder of compiled kernels holds, and what of it nobody has used for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .cache import KNOBS_FILE, default_cache_folder
from .files import SharedFolder


@dataclass(frozen=True, slots=True)
class CachedTarget:
    """The kernels of one target.

    Attributes:
        path: The folder.
        n_kernels: Compiled kernels.
        n_workloads: Workloads with settings found by timing.
        size_bytes: Size of all files.
        last_used: When a kernel was last made or used, in seconds since the epoch.
    """

    path: Path
    n_kernels: int
    n_workloads: int
    size_bytes: int
    last_used: float


def list_targets(folder: Path | None = None) -> list[CachedTarget]:
    """Return what is kept for each target, sorted by name; none if there is no folder yet.

    Args:
        folder: The folder of all targets; the default is `default_cache_folder()`.
    """
    return [_target(path) for path in _folders(folder)]


def prune(unused_s: float, folder: Path | None = None) -> int:
    """Remove kernels that were not used lately; they are compiled again when they are wanted.

    Settings found by timing stay, as they are small and take long to find.

    Args:
        unused_s: Time without use after which a kernel goes, in seconds.
        folder: The folder of all targets; the default is `default_cache_folder()`.

    Returns:
        The number of bytes that were freed.
    """
    limit = time.time() - unused_s
    freed = 0
    for path in _folders(folder):
        for file in _kernel_files(path):
            state = file.stat()
            if state.st_mtime <= limit:
                file.unlink(missing_ok=True)
                freed += state.st_size
    return freed


def _folders(folder: Path | None) -> list[Path]:
    root = folder or default_cache_folder()
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _kernel_files(path: Path) -> Iterator[Path]:
    return (file for file in path.iterdir() if file.suffix in (".o", ".so"))


def _target(path: Path) -> CachedTarget:
    states = {file: file.stat() for file in path.iterdir()}
    return CachedTarget(
        path=path,
        n_kernels=sum(file.suffix == ".o" for file in states),
        n_workloads=len(SharedFolder(path).read_table(KNOBS_FILE)),
        size_bytes=sum(state.st_size for state in states.values()),
        last_used=max((state.st_mtime for state in states.values()), default=0.0),
    )
