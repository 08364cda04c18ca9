"""A folder of files that several processes share and that may be cut off at any moment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..measurement import EvaluationError


class SharedFolder:
    """Keeps files under names that hold a hash of their content.

    A file is written under a temporary name and renamed, so none is seen half written by another
    process; and one that a full disk or a power cut has spoiled is noticed by its name, dropped
    and made again.

    Args:
        path: The folder; it is made if it is missing.

    Raises:
        EvaluationError: If the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sound: dict[tuple[str, str], Path] = {}
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)

    def get(self, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
        """Return the file of a name; if there is none yet, let `write` make it.

        Raises:
            EvaluationError: If the folder cannot be written to.
        """
        key = (stem, suffix)
        if key not in self._sound:
            self._sound[key] = self._find(stem, suffix) or self._add(stem, suffix, write)
        return self._sound[key]

    def _find(self, stem: str, suffix: str) -> Path | None:
        for path in sorted(self.path.glob(f"{stem}-*{suffix}")):
            if path.name == f"{stem}-{_digest(path)}{suffix}":
                os.utime(path)  # so that what nobody uses can be told and removed
                return path
            path.unlink(missing_ok=True)
        return None

    def _add(self, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
        with self._temporary(suffix) as temporary:
            write(temporary)
            path = self.path / f"{stem}-{_digest(temporary)}{suffix}"
            with self._writing():
                temporary.replace(path)
        return path

    def read_table(self, name: str) -> dict[str, Any]:
        """Return the entries of a JSON file, none if it is missing or spoiled."""
        try:
            table = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}

    def update_table(self, name: str, entries: Mapping[str, Any]) -> None:
        """Add entries to a JSON file and keep what other processes added meanwhile.

        Raises:
            EvaluationError: If the folder cannot be written to.
        """
        with self._writing(), open(self.path / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
            text = json.dumps({**self.read_table(name), **entries}, indent=1, sort_keys=True)
            with self._temporary(".json") as temporary:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self.path / name)

    @contextmanager
    def _temporary(self, suffix: str) -> Iterator[Path]:
        with self._writing():
            handle, name = tempfile.mkstemp(prefix=".new-", suffix=suffix, dir=self.path)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EvaluationError(
                f"The folder of compiled kernels must be writable, but '{self.path}' is not: "
                f"{error.strerror}. Name another in the environment variable `PAREDOWN_CACHE`.",
                "build",
            ) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
