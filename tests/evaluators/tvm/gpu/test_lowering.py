"""Networks for a GPU, their kernels run on the CPU: the same numbers as the CPU's kernels make."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm import cuda
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile
from tests.evaluators.tvm.gpu.emulation import (
    EmulatedKernels,
    cuda_source,
    lowered,
    network_on_cpu,
    own_kernels,
)
from tests.evaluators.tvm.test_ties import sums_near_ties

STEP = 0.03
Network = Callable[[Any], Any]
# Of each, the kinds of own kernels it must have.
CASES: list[tuple[Network, set[str]]] = []


def case(*kinds: str) -> Callable[[Network], Network]:
    def add(network: Network) -> Network:
        CASES.append((network, {"from_plain", "to_plain", *kinds}))
        return network

    return add


@case("conv3x3_u8", "conv3x3_u8_add", "conv1x1_f32", "average_pool")
def residual(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 120), (16, 3, 3, 3), 8, STEP, pads=[1] * 4)
    x = b.quantized(b.op("Relu", x), STEP)
    y = b.quantized(b.conv(x, (16, 16, 3, 3), 4, STEP, pads=[1] * 4), STEP, 100)
    z = b.quantized(b.op("Clip", b.op("Add", y, x), b.number(0), b.number(6)), STEP)
    pooled = b.quantized(b.op("GlobalAveragePool", z), 0.0113)
    flat = b.quantized(b.op("Flatten", pooled), 0.0113)
    return b.model((2, 3, 9, 8), b.layer("Gemm", flat, (10, 16), 8, 0.0113, transB=1))


@case("conv3x3_u8", "depthwise5x5_u8_hard_swish", "max_pool", "conv1x1_f32")
def depthwise_and_pooling(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 120), (16, 3, 3, 3), 8, STEP, strides=[2, 2])
    x = b.op("MaxPool", b.quantized(x, STEP, 64, bits=7), kernel_shape=[3, 3], pads=[1] * 4)
    x = b.conv(b.quantized(x, STEP, 64, bits=7), (16, 1, 5, 5), 8, STEP, group=16, pads=[2] * 4)
    x = b.quantized(b.op("HardSwish", x), STEP, 20)
    return b.model((1, 3, 15, 13), b.conv(x, (5, 16, 1, 1), 6, STEP))


@case("conv3x3_u8", "concat2", "mul", "conv1x1_f32")
def joined(b: Any) -> Any:
    x = b.quantized("input", STEP, 120)
    y = b.quantized(b.conv(x, (8, 4, 3, 3), 8, STEP, pads=[1] * 4), STEP, 128)
    z = b.quantized(b.conv(x, (12, 4, 3, 3), 8, STEP, pads=[1] * 4), 2 * STEP, 100)
    both = b.quantized(b.op("Concat", y, z, axis=1), 2 * STEP, 110)
    gate = b.quantized(b.op("GlobalAveragePool", both), STEP, 90)
    gated = b.quantized(b.op("Mul", both, gate), STEP, 128)
    return b.model((1, 4, 6, 7), b.conv(gated, (8, 20, 1, 1), 8, STEP))


@case("conv1x1_u8", "conv1x1_f32")
def linear(b: Any) -> Any:
    x = b.quantized("input", STEP, 120)
    x = b.quantized(b.op("Relu", b.layer("Gemm", x, (40, 20), 8, STEP, transB=1)), STEP)
    return b.model((1, 20), b.layer("Gemm", x, (3, 40), 5, STEP, transB=1))


def random_input(model: onnx.ModelProto) -> NDArray[np.float32]:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def on_cpu(model: onnx.ModelProto, data: NDArray[np.float32], folder: Path) -> list[Any]:
    """Run a model with the kernels for this machine's CPU."""
    library = folder / "cpu.so"
    compile_onnx(model, load_profile("local@compile-only"), library)
    return get_runtime("tvm").load(library, 1).run(data)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.slow
@pytest.mark.parametrize(("make", "kinds"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_gpu_makes_the_numbers_of_the_cpu(
    make: Network, kinds: set[str], builder: Any, tmp_path: Path
) -> None:
    model = make(builder)
    data = random_input(model)
    module = lowered(model, tmp_path)
    kernels = own_kernels(module)
    found = {re.sub("^pd_|_[0-9a-f]{12}$", "", name) for name in kernels}
    assert kinds <= found
    run = network_on_cpu(module, EmulatedKernels(kernels, tmp_path))
    for got, expected in zip(run(data), on_cpu(model, data, tmp_path), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("is_residual_first", [False, True])
def test_a_gpu_rounds_sums_near_ties_as_the_cpu_does(
    is_residual_first: bool, builder: Any, tmp_path: Path
) -> None:
    model, image = sums_near_ties(builder, is_residual_first=is_residual_first)
    module = lowered(model, tmp_path)
    run = network_on_cpu(module, EmulatedKernels(own_kernels(module), tmp_path))
    np.testing.assert_array_equal(run(image)[0], on_cpu(model, image, tmp_path)[0])


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.parametrize(("make", "kinds"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_real_gpu_makes_the_numbers_of_the_cpu(
    make: Network, kinds: set[str], builder: Any, tmp_path: Path
) -> None:
    if not cuda.has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    model = make(builder)
    data = random_input(model)
    compile_onnx(model, load_profile("cuda@local"), tmp_path / "gpu.so")
    found = get_runtime("tvm").load(tmp_path / "gpu.so", 1).run(data)
    for got, expected in zip(found, on_cpu(model, data, tmp_path), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_every_architecture_multiplies_four_bytes_at_once(builder: Any, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(cuda_source(own_kernels(lowered(residual(builder), tmp_path))))
    for arch in ("sm_80", "sm_86", "sm_90"):
        ptx = tmp_path / f"{arch}.ptx"
        command = ["nvcc", "-w", "-ptx", f"-arch={arch}", str(source), "-o", str(ptx)]
        subprocess.run(command, check=True)
        assert ptx.read_text().count("dp4a.s32.s32") >= 64


def test_layers_in_float_are_left_to_tvm(builder: Any, tmp_path: Path) -> None:
    x = builder.op("Relu", builder.float_conv("input", (8, 4, 3, 3)))
    x = builder.op("Sigmoid", builder.op("Add", x, builder.floats(8, 1, 1)))
    model = builder.model((1, 4, 9, 9), builder.op("MaxPool", x, kernel_shape=[2, 2]))
    assert not own_kernels(lowered(model, tmp_path))


def test_a_layer_with_groups_runs_in_float(builder: Any, tmp_path: Path) -> None:
    x = builder.quantized("input", STEP, 128)
    model = builder.model((1, 8, 5, 5), builder.conv(x, (8, 4, 3, 3), 8, STEP, group=2))
    kinds = own_kernels(lowered(model, tmp_path))
    assert not [name for name in kinds if "conv" in name or "depthwise" in name]


def test_float16_weights_stay_so_and_multiply_as_floats(
    builder: Any, run_reference: Any, tmp_path: Path
) -> None:
    def halves(*shape: int) -> str:
        values = (builder.rng.standard_normal(shape) * 0.3).astype(np.float16)
        return str(builder.op("Cast", builder.constant(values), to=TensorProto.FLOAT))

    x = builder.op(
        "Conv", "input", halves(8, 4, 3, 3), builder.floats(8), pads=[1, 1, 0, 1], strides=[2, 1]
    )
    x = builder.op("Conv", builder.op("Relu", x), halves(8, 1, 3, 3), group=8)
    x = builder.op("Flatten", x)
    x = builder.op("Gemm", x, halves(12, 96), builder.floats(12), transB=1)
    model = builder.model((1, 4, 9, 8), builder.op("MatMul", x, halves(12, 5)))
    data = random_input(model)
    module = lowered(model, tmp_path)
    weights = re.findall(r'B: T\.Buffer\(\([^"]*"float16"\)', str(module))
    assert len(weights) == 4
    (found,), (expected,) = network_on_cpu(module, None)(data), run_reference(model, data)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
