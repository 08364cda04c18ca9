"""Compiling for GPUs; without one, that code is made which a CUDA compiler takes."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from paredown.evaluators import EvaluationError
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.task import Data, Task
from paredown.evaluators.tvm import cuda
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings
from tests.benchmarks.networks import load_network

ARCHITECTURES = ("geforce-rtx-30", "a100", "h100")

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def compressed(network: str, weight_bits: int, folder: Path) -> Path:
    """Write a network of the benchmarks with the same bits in every layer."""
    loaded = load_network(network)
    inputs = loaded.inputs[:4]
    profile = load_profile("a100")
    settings = SpaceSettings(max_pruning_ratio=0.0, activation_bits=(8,))
    space = SearchSpace.from_model(loaded.model, inputs[:1], profile, settings)
    data = Data(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    task = Task(network, loaded.model, inputs[:1], inputs, data)
    compressor = Compressor(task, space, CompressionSettings(n_calibration=len(inputs)))
    path = folder / f"{network}.onnx"
    onnx.save(compressor.compress(space.uniform(weight_bits)).model, path)
    return path


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "weight_bits", "layers"),
    # Kernels of layers in integers; those with the same numbers share one.
    [("mobilenetv2", 32, range(1)), ("resnet18", 4, range(15, 22))],
)
def test_networks_compile_for_three_architectures(
    network: str, weight_bits: int, layers: range, tmp_path: Path
) -> None:
    model = compressed(network, weight_bits, tmp_path)
    for name in ARCHITECTURES:
        library = tmp_path / f"{name}.so"
        compile_onnx(model, load_profile(name), library)
        code = library.read_bytes()
        assert b"__global__" in code
        assert len(set(re.findall(rb"pd_conv\w+_kernel", code))) in layers


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """Return a network that adds its input to itself."""
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 64])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 64])
    node = helper.make_node("Add", ["input", "input"], ["output"])
    graph = helper.make_graph([node], "doubling", [value], [output])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


@needs_nvcc
@pytest.mark.slow
def test_without_a_gpu_loading_says_so(doubling: Path, tmp_path: Path) -> None:
    if cuda.has_gpu():
        pytest.skip("there is a GPU")
    compile_onnx(doubling, load_profile("cuda"), tmp_path / "a.so")
    with pytest.raises(EvaluationError, match="needs an NVIDIA GPU, but there is none"):
        get_runtime("tvm").load(tmp_path / "a.so", 1)


@pytest.mark.device
@pytest.mark.slow
def test_a_gpu_computes_what_the_model_means(tmp_path: Path) -> None:
    import onnxruntime

    if not cuda.has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    for network, bits, bound in (("mobilenetv2", 32, 1e-3), ("resnet18", 8, 0.1)):
        model = compressed(network, bits, tmp_path)
        compile_onnx(model, load_profile("cuda@local"), tmp_path / f"{network}.so")
        session = get_runtime("tvm").load(tmp_path / f"{network}.so", 1)
        x = load_network(network).inputs[:1].numpy()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        reference = onnxruntime.InferenceSession(str(model), options)
        (expected,) = reference.run(None, {"input": x})
        (found,) = session.run(x)
        assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
        call = session.bind(x)
        call()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_CUDA_COMPILE_MODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"needs a CUDA compiler.*Install the CUDA toolkit"):
        cuda.use_cuda_compiler()


@needs_nvcc
@pytest.mark.slow
def test_device_code_that_nvcc_refuses_fails_the_build(
    doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "device_sources", lambda module: ["int broken("])
    with pytest.raises(EvaluationError, match="device code for 'sm_80' is refused by nvcc"):
        compile_onnx(doubling, load_profile("a100"), tmp_path / "a.so")
