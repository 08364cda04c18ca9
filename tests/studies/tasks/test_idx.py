import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from paredown.evaluators.task import TaskError
from paredown.studies.tasks.idx import read_idx


def write(path: Path, shape: tuple[int, ...], data: bytes, kind: int = 8) -> Path:
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    path.write_bytes(gzip.compress(header + data))
    return path


def test_array_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "images.gz", (2, 1, 3), bytes(range(6)))

    array = read_idx(path, 3)

    np.testing.assert_array_equal(array, [[[0, 1, 2]], [[3, 4, 5]]])
    array[0] = 9  # a copy: it may be written to


def test_file_with_data_missing(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"must have 6 bytes of data .* but has 4"):
        read_idx(write(tmp_path / "images.gz", (6,), bytes(4)), 1)


def test_truncated_gzip_file(tmp_path: Path) -> None:
    path = write(tmp_path / "images.gz", (600,), bytes(range(200)) * 3)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(TaskError, match="must be a whole gzip file"):
        read_idx(path, 1)


def test_file_that_is_not_compressed(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(b"hello")

    with pytest.raises(TaskError, match="must be a whole gzip file"):
        read_idx(path, 1)


def test_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(b"hello"))

    with pytest.raises(TaskError, match="must be an IDX file"):
        read_idx(path, 1)


def test_labels_in_place_of_images(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="may have been swapped"):
        read_idx(write(tmp_path / "images.gz", (3,), bytes(3)), 3)


def test_other_types_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="holds type 0x0d"):
        read_idx(write(tmp_path / "images.gz", (1,), bytes(4), kind=0x0D), 1)


def test_end_within_the_header(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0"))

    with pytest.raises(TaskError, match="ends within its header"):
        read_idx(path, 3)
