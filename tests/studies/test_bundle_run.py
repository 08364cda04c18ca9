from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from paredown.studies.bundle_run import RunError, check_cpu, cpu_flags, main, read_input
from paredown.studies.export import export_trial
from paredown.studies.records import StudyRecord

NewStudy = Callable[..., StudyRecord]
SPEC: dict[str, Any] = {"name": "input", "shape": [1, 2, 3], "dtype": "float32"}


def machine() -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: sse pni avx2 fma\n\nprocessor : 1\nflags : none\n")
    return path


def test_flags_are_read_with_their_usual_names(cpuinfo: Path, tmp_path: Path) -> None:
    assert cpu_flags(cpuinfo) == {"sse", "pni", "avx2", "fma", "sse3"}
    arm = tmp_path / "arm"
    arm.write_text("Features : fp asimd\n")
    assert cpu_flags(arm) == {"fp", "asimd"}


def test_a_missing_feature_is_named_before_loading(cpuinfo: Path) -> None:
    check_cpu({"arch": machine(), "features": ["avx2", "sse3"]}, cpuinfo)
    with pytest.raises(RunError, match=r"lacks: avx512f, vnni. Export the trial for this machine"):
        check_cpu({"arch": machine(), "features": ["vnni", "avx2", "avx512f"]}, cpuinfo)
    with pytest.raises(RunError, match="The library is for riscv64, but this machine is"):
        check_cpu({"arch": "riscv64", "features": []}, cpuinfo)


def test_without_cpuinfo_a_note_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_cpu({"arch": machine(), "features": ["avx9"]}, tmp_path / "missing")
    assert "cannot be checked" in capsys.readouterr().err


def test_input_is_one_sample_or_many(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((2, 3)))
    one = read_input(path, SPEC, 0)
    assert one.shape == (1, 2, 3)
    assert one.dtype.name == "float32"
    np.save(path, np.ones((5, 2, 3), np.float32))
    assert read_input(path, SPEC, 0).shape == (5, 2, 3)
    assert np.array_equal(read_input(None, SPEC, 3), read_input(None, SPEC, 3))


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2), (0, 2, 3), (2,)])
def test_input_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape))
    with pytest.raises(RunError, match=r"must have the shape \('n', 2, 3\)"):
        read_input(tmp_path / "x.npy", SPEC, 0)


def test_a_broken_input_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_text("no array")
    for name in ("x.npy", "missing.npy"):
        with pytest.raises(RunError, match=r"must be an array in \.npy form"):
            read_input(tmp_path / name, SPEC, 0)


def test_outside_of_a_bundle_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "must be the bundle's description" in capsys.readouterr().err


def test_help_needs_no_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python run.py --time 200" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--time", "0"])


@pytest.mark.slow
def test_an_exported_library_runs_on_its_own(stored_study: NewStudy, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_trial(stored_study("tvm"), 1, folder)
    samples = np.random.default_rng(0).standard_normal((7, 1, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # -I: neither this checkout nor the working folder can be imported from by accident.
        return subprocess.run(
            [sys.executable, "-I", str(folder / "run.py"), *arguments],
            capture_output=True, text=True, timeout=120, cwd=tmp_path, env=dict(os.environ),
        )  # fmt: skip

    done = run("--input", "x.npy", "--output", "y.npy", "--time", "20")
    assert done.returncode == 0, done.stderr
    assert "us median of 20 runs on 1 thread(s)" in done.stdout
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    expected = np.concatenate([session.run(None, {"input": x[None]})[0] for x in samples])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-4)

    description = json.loads((folder / "bundle.json").read_text())
    description["features"].append("no_such_flag")
    (folder / "bundle.json").write_text(json.dumps(description))
    done = run()
    assert done.returncode == 1
    assert "lacks: no_such_flag" in done.stderr
