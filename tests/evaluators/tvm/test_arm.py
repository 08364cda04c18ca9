"""Whole quantized networks on emulated Arm CPUs: the same bits as on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.runtimes import get_runtime
from paredown.hw_profiles import load_profile

pytestmark = pytest.mark.slow

STEP = 0.03


def network(b: Any, bits: int) -> onnx.ModelProto:
    """Stem, depthwise block, residual block, pooling, linear layer; channel counts with tails."""
    x = b.quantized("input", 0.02, 128)
    x = b.op("Relu", b.conv(x, (20, 3, 3, 3), bits, 0.02, pads=[1] * 4, strides=[2, 2]))
    x = b.quantized(x, STEP)
    y = b.op("Relu", b.conv(x, (20, 1, 3, 3), bits, STEP, pads=[1] * 4, group=20))
    y = b.quantized(y, STEP)
    y = b.quantized(b.conv(y, (20, 20, 1, 1), bits, STEP), STEP, 120)
    x = b.quantized(b.op("Relu", b.op("Add", x, y)), STEP)
    x = b.quantized(b.op("Relu", b.conv(x, (36, 20, 3, 3), bits, STEP, pads=[1] * 4)), STEP)
    x = b.quantized(b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), STEP)
    x = b.quantized(b.op("GlobalAveragePool", x), 0.01)
    x = b.quantized(b.op("Flatten", x), 0.01)
    result = b.layer("Gemm", x, (10, 36), bits, 0.01, transB=1)
    model: onnx.ModelProto = b.model((1, 3, 22, 26), result)
    return model


@pytest.mark.parametrize(
    ("name", "cpu", "bits"),
    [
        ("raspberry-pi-4", "cortex-a72", 3),
        ("raspberry-pi-4", "cortex-a72", 5),
        ("raspberry-pi-4", "cortex-a72", 8),
        ("raspberry-pi-5", "cortex-a76", 7),
        ("graviton3", "max", 8),
    ],
)
def test_network_is_the_same_bit_for_bit(
    name: str, cpu: str, bits: int, builder: Any, emulated: Any, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(network(builder, bits), model)
    runtime = get_runtime("tvm")
    for profile in ("local", name):
        once = load_profile(f"{profile}@compile-only")  # settings are not timed
        runtime.build(model, tmp_path / f"{profile}.so", once)
    data = np.random.default_rng(3).standard_normal((1, 3, 22, 26)).astype(np.float32)
    expected = runtime.load(tmp_path / "local.so", 1).run(data)
    found = emulated(cpu).network(tmp_path / f"{name}.so", data)
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.unique(expected[0]).size > 5
