import gzip
import shutil
import struct
from pathlib import Path

import pytest

from paredown.evaluators.task import TaskError
from paredown.studies.tasks import load_task
from paredown.studies.tasks.fashion_mnist import WIDTHS
from paredown.studies.tasks.models import ResidualNet


def write_part(
    folder: Path, part: str, n: int = 4, n_labels: int = 4, label: int = 9, size: int = 28
) -> None:
    images = struct.pack(">4I", 0x803, n, size, size) + bytes(n * size * size)
    labels = struct.pack(">2I", 0x801, n_labels) + bytes([label] * n_labels)
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_missing_data_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"apt-get install dataset-fashion-mnist.*--data"):
        load_task("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"label": 10}, "must hold classes 0..9, but holds 10"),
        ({"n_labels": 3}, "must belong together, but hold 4 images and 3 labels"),
        ({"size": 27}, "must hold images of 28x28 pixels, but they are 27x27"),
        ({"n": 0, "n_labels": 0}, "must hold at least one sample"),
    ],
)
def test_wrong_data(tmp_path: Path, fault: dict[str, int], message: str) -> None:
    write_part(tmp_path, "train")
    write_part(tmp_path, "t10k", **fault)

    with pytest.raises(TaskError, match=message):
        load_task("fashion-mnist", data_dir=tmp_path)


def test_swapped_files(tmp_path: Path) -> None:
    write_part(tmp_path, "train")
    write_part(tmp_path, "t10k")
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    shutil.copy(tmp_path / "t10k-labels-idx1-ubyte.gz", images)

    with pytest.raises(TaskError, match="may have been swapped"):
        load_task("fashion-mnist", data_dir=tmp_path)


def test_network_has_the_weights_of_resnet8() -> None:
    model = ResidualNet(WIDTHS, n_classes=10, in_channels=3)
    n_weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)

    # 78,666 of MLPerf Tiny, less 346 biases and 4 * 240 values of its batch norms.
    assert n_weights == 78_666 - 346 - 960
