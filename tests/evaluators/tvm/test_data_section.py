"""Plain data of a library: arrays where kernels may read them, in a file of any name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paredown.evaluators.tvm.data_section import DataSection


def test_every_array_begins_where_vectors_may() -> None:
    data = DataSection()
    arrays = [np.zeros(size, np.uint8) for size in (1, 64, 65, 3)]
    assert [data.add(array) for array in arrays] == [0, 64, 128, 256]
    assert data.size == 320


@pytest.mark.parametrize("triple", ["", "aarch64-linux-gnu"])
def test_object_file_holds_the_bytes(triple: str, tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" folder, \\ and ä'
    folder.mkdir()
    data = DataSection()
    first, second = np.arange(100, dtype=np.uint8), np.arange(50, dtype=np.float32)
    data.add(first)
    data.add(second)
    data.write_object(folder / "weights.o", triple)
    expected = first.tobytes() + bytes(28) + second.tobytes()
    assert expected in (folder / "weights.o").read_bytes()
