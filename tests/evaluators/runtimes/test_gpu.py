"""The runtimes on NVIDIA GPUs: what can be said without one, and a QDQ model where one is."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import OnnxRuntimeCuda, get_runtime, require_installed
from paredown.evaluators.runtimes.nvidia import Gpu, missing_gpu
from paredown.evaluators.runtimes.onnxruntime import OnnxRuntimeSession
from paredown.hw_profiles.profile import HardwareProfile

NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")


def skip_without(name: str) -> None:
    lack = get_runtime(name).missing()
    if lack is not None:
        pytest.skip(f"runtime '{name}': {lack}")


@pytest.mark.parametrize("name", NAMES)
def test_absence_has_a_reason(name: str) -> None:
    runtime = get_runtime(name)
    lack = runtime.missing()
    if lack is None:
        pytest.skip(f"runtime '{name}' is here")
    with pytest.raises(EvaluationError, match=f"Runtime '{name}' must be installed, but") as info:
        require_installed(runtime)
    assert info.value.reason == "unavailable"
    assert str(info.value).endswith(lack)


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    lack = missing_gpu()
    assert lack is not None
    assert "no NVIDIA driver was found (libcuda.so.1)" in lack


def test_driver_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(cuInit=lambda flags: 100, cuDeviceGetCount=lambda count: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    lack = missing_gpu()
    assert lack is not None
    assert "finds no GPU (CUDA error 100)" in lack


def test_provider_is_looked_for_in_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both packages of ONNX Runtime bring the same module; only one has the library."""
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert OnnxRuntimeCuda().version() is None
    (package / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert OnnxRuntimeCuda().version() == get_runtime("onnxruntime").version()


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_provider_that_does_not_start_is_an_error(small_net: Path) -> None:
    """ONNX Runtime alone would run on the CPU and say nothing."""
    if get_runtime("onnxruntime-cuda").missing() is None:
        pytest.skip("the CUDA provider starts here")
    cuda: Any = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    with pytest.raises(EvaluationError, match=r"on CUDAExecutionProvider, but only CPU") as info:
        OnnxRuntimeSession(small_net, 1, cuda, "cuda")
    assert info.value.reason == "unavailable"


@pytest.mark.device
def test_memory_comes_back_as_it_was_written() -> None:
    lack = missing_gpu()
    if lack is not None:
        pytest.skip(lack)
    gpu = Gpu()
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    buffer = gpu.allocate(array)
    gpu.write(buffer, array)
    gpu.wait()
    np.testing.assert_array_equal(gpu.read(buffer), array)


@pytest.mark.device
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_network_agrees(
    name: str,
    bits: int,
    builder: Any,
    run_reference: Any,
    tmp_path: Path,
    profile: HardwareProfile,
) -> None:
    skip_without(name)
    step = 0.02
    x = builder.quantized("input", 0.05, 60, bits)
    x = builder.quantized(
        builder.op("Relu", builder.conv(x, (16, 4, 3, 3), 8, 0.05)), step, 0, bits
    )
    model = builder.model((1, 4, 9, 8), builder.conv(x, (8, 16, 1, 1), 4, step))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    runtime = get_runtime(name)
    artifact = tmp_path / f"artifact{runtime.suffix}"
    runtime.build(path, artifact, profile)
    data = builder.rng.standard_normal((1, 4, 9, 8)).astype(np.float32)
    (found,) = runtime.load(artifact, 1).run(data)
    (expected,) = run_reference(model, data)
    # A tie that is rounded the other way moves the second layer's sums by one of its weights.
    assert np.abs(found - expected).max() <= step
    assert (np.abs(found - expected) > 1e-4).mean() < 0.05
