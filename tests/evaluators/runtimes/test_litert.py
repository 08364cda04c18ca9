import os
from pathlib import Path

import numpy as np
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import LiteRt
from paredown.hw_profiles.profile import HardwareProfile

pytest.importorskip("ai_edge_litert")


@pytest.fixture
def artifact(small_net: Path, tmp_path: Path, profile: HardwareProfile) -> Path:
    path = tmp_path / "model.tflite"
    LiteRt().build(small_net, path, profile)
    return path


def test_threads_are_those_asked_for(artifact: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    before = count()
    one = LiteRt().load(artifact, 1)
    assert count() == before
    three = LiteRt().load(artifact, 3)
    assert count() == before + 2
    data = np.ones((1, 2, 12, 12), np.float32)
    np.testing.assert_allclose(one.run(data)[0], three.run(data)[0], rtol=1e-5)


def test_build_replaces_the_file(
    artifact: Path, small_net: Path, profile: HardwareProfile
) -> None:
    """A build replaces the file as a whole and leaves no temporary one."""
    before = artifact.stat()
    LiteRt().build(small_net, artifact, profile)
    assert artifact.stat().st_ino != before.st_ino
    assert artifact.stat().st_mode == small_net.stat().st_mode  # others may read it
    assert {path.suffix for path in artifact.parent.iterdir()} == {".onnx", ".tflite"}


def test_damaged_file_is_refused(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a valid Flatbuffer"):
        LiteRt().load(artifact, 1)


def test_missing_library_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, small_net: Path, tmp_path: Path, profile: HardwareProfile
) -> None:
    monkeypatch.setattr(LiteRt, "version", lambda self: None)
    for use in (
        lambda: LiteRt().build(small_net, tmp_path / "model.tflite", profile),
        lambda: LiteRt().load(tmp_path / "model.tflite", 1),
    ):
        with pytest.raises(EvaluationError, match=r"pip install 'paredown\[litert\]'"):
            use()
