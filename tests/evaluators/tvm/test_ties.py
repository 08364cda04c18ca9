"""Sums near a tie are rounded as ONNX Runtime's integer kernels round them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from paredown.evaluators.runtimes import get_runtime
from tests.evaluators.tvm.conftest import runnable

Floats = NDArray[np.float32]
SIZE = 256


@pytest.fixture
def run_both(tmp_path: Path) -> Callable[[onnx.ModelProto, Floats], list[Floats]]:
    """Run a model in TVM and in ONNX Runtime, each as it is deployed."""
    profile = runnable("x86-64-v3")  # the sums need fused multiply-adds

    def run(model: onnx.ModelProto, data: Floats) -> list[Floats]:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        outputs = []
        for name in ("tvm", "onnxruntime"):
            runtime = get_runtime(name)
            artifact = tmp_path / f"artifact-{name}{runtime.suffix}"
            runtime.build(path, artifact, profile)
            outputs.append(runtime.load(artifact, 1).run(data)[0])
        return outputs

    return run


def rounded(steps: Floats, zero_point: int) -> NDArray[np.int64]:
    clipped: Floats = np.clip(np.rint(steps) + zero_point, 0, 255)
    return clipped.astype(np.int64)


def dequantized(b: Any, values: NDArray[Any], scale: Any, axis: int = 0) -> str:
    scales = b.constant(np.asarray(scale, np.float32))
    name: str = b.op("DequantizeLinear", b.constant(values), scales, axis=axis)
    return name


def scales_of_a_layer(sums: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return scales of data, weight and output with which the order of rounding shows."""
    rng = np.random.default_rng(0)
    while True:
        data, weight, output = rng.uniform(0.01, 0.05, 3).astype(np.float32)
        output *= 32
        twice = sums.astype(np.float32) * (data * weight / output)
        once = sums.astype(np.float32) * np.float32(float(data) * float(weight) / float(output))
        if (rounded(twice, 0) != rounded(once, 0)).any():
            return data, weight, output


def test_a_layer_multiplies_its_scales_in_float32(builder: Any, run_both: Any) -> None:
    weights = np.arange(1, 64, dtype=np.int8)
    pixels = np.arange(256)
    sums = pixels[:, None] * weights.astype(np.int64)
    data, weight, output = scales_of_a_layer(sums)
    x = builder.quantized("input", float(data), 0)
    kernel = dequantized(builder, weights.reshape(-1, 1, 1, 1), np.full(len(weights), weight))
    bias = builder.constant(np.zeros(len(weights), np.float32))
    y = builder.quantized(builder.op("Conv", x, kernel, bias), float(output), 0)
    image = (pixels * data).astype(np.float32).reshape(1, 1, 16, 16)
    ours, theirs = run_both(builder.model(image.shape, y), image)
    np.testing.assert_array_equal(ours, theirs)
    steps = rounded(sums.astype(np.float32) * (data * weight / output), 0)
    found = np.rint(ours[0].reshape(len(weights), -1).T / output)
    np.testing.assert_array_equal(found, steps)


def scales_of_a_sum() -> tuple[float, float, int, int]:
    """Return scale and zero point of operands and sum with which the order of adding shows."""
    rng = np.random.default_rng(1)
    a, b = (v.astype(np.float32) for v in np.meshgrid(np.arange(SIZE), np.arange(SIZE)))
    while True:
        scale, total = rng.uniform(0.02, 0.04, 2).astype(np.float32)
        zero, total_zero = (int(z) for z in rng.integers(60, 190, 2))
        ratio = scale / total
        offset = np.float32(total_zero) - np.float32(2 * ratio * np.float32(zero))
        theirs = rounded(a * ratio + (b * ratio + offset), 0)
        direct = rounded((a - zero) * ratio + (b - zero) * ratio, total_zero)
        if (theirs != direct).any():
            return float(scale), float(total), zero, total_zero


def sums_near_ties(builder: Any, *, is_residual_first: bool) -> tuple[onnx.ModelProto, Floats]:
    """Return a network that adds all pairs of steps, and the image that holds them."""
    scale, total, zero, total_zero = scales_of_a_sum()
    x = builder.quantized("input", scale, zero)
    swap = np.array([[0, 1], [1, 0]], np.int8).reshape(2, 2, 1, 1)
    kernel = dequantized(builder, swap, [1.0, 1.0])
    swapped = builder.op("Conv", x, kernel, builder.constant(np.zeros(2, np.float32)))
    y = builder.quantized(swapped, scale, zero)
    operands = (x, y) if is_residual_first else (y, x)
    added = builder.quantized(builder.op("Add", *operands), total, total_zero)
    steps = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)))[None] - zero
    image = (steps * np.float32(scale)).astype(np.float32)
    return builder.model(image.shape, added), image


@pytest.mark.parametrize("is_residual_first", [False, True])
def test_a_sum_adds_the_zero_points_first(
    builder: Any, run_both: Any, is_residual_first: bool
) -> None:
    ours, theirs = run_both(*sums_near_ties(builder, is_residual_first=is_residual_first))
    np.testing.assert_array_equal(ours, theirs)
