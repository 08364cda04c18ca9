"""Reader of IDX files, the format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...evaluators.task import TaskError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, n_dims: int) -> NDArray[np.uint8]:
    """Read a gzip-compressed IDX file of unsigned bytes.

    Args:
        path: The file.
        n_dims: Dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The array, a copy that may be written to.

    Raises:
        TaskError: If the file is truncated, is no IDX file, or holds something else.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(
            f"'{path}' must be a whole gzip file, but: {error}. Download it again."
        ) from error
    header = 4 + 4 * n_dims
    if len(content) < 4 or content[:2] != b"\0\0":
        raise TaskError(f"'{path}' must be an IDX file, but starts with {content[:4]!r}.")
    if content[2] != _UNSIGNED_BYTE or content[3] != n_dims:
        raise TaskError(
            f"'{path}' must hold unsigned bytes in {n_dims} dimension(s), but holds type "
            f"{content[2]:#04x} in {content[3]}. Images and labels may have been swapped."
        )
    if len(content) < header:
        raise TaskError(f"'{path}' ends within its header. Download it again.")
    shape = struct.unpack(f">{n_dims}I", content[4:header])
    n_bytes = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != n_bytes:
        raise TaskError(
            f"'{path}' must have {n_bytes} bytes of data for shape {shape}, but has "
            f"{len(content) - header}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
