"""Transposed convolutions of any form: the library means what the file says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEP = 0.03
FORMS: list[dict[str, Any]] = [
    dict(strides=[2, 2]),
    dict(strides=[2, 2], pads=[1, 0, 1, 2], output_padding=[1, 1]),
    dict(strides=[3, 1], dilations=[1, 2], pads=[0, 1, 1, 0]),
    dict(strides=[2, 2], auto_pad="SAME_UPPER"),
    dict(strides=[2, 3], auto_pad="SAME_LOWER"),
    dict(strides=[2, 3], output_shape=[10, 15]),
    dict(strides=[4, 2], dilations=[2, 2]),
]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (4, 1)])
def test_float(builder: Any, same_as_reference: Any, kernel: tuple[int, int]) -> None:
    b = builder
    x = b.float_conv("input", (12, 3, 1, 1))
    outputs = []
    for form in FORMS:
        y = b.op("ConvTranspose", x, b.floats(12, 9, *kernel), b.floats(9), **form)
        outputs.append(b.float_conv(b.op("Relu", y), (8, 9, 3, 3), pads=[1] * 4))
    same_as_reference(b.model((2, 3, 5, 6), *outputs))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 7, 8])
def test_integer(builder: Any, run_tvm: Any, run_reference: Any, bits: int) -> None:
    """Every kernel family: sums are exact, so only a tie may round to another side."""
    b = builder
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 3, 1, 1), 7, STEP), STEP, 100)
    outputs = []
    for form in FORMS[:3]:
        weights, scale = b.weights((8, 20, 3, 3), bits, axis=1)
        steps = np.rint(b.rng.standard_normal(20) * 0.1 / (STEP * scale)).astype(np.int32)
        unit = (np.float32(STEP) * scale).astype(np.float32)
        bias = b.op("DequantizeLinear", b.constant(steps), b.constant(unit), axis=0)
        y = b.op("Relu", b.op("ConvTranspose", x, weights, bias, **form))
        outputs.append(b.conv(b.quantized(y, STEP), (8, 20, 3, 3), 6, STEP, pads=[1] * 4))
    model = b.model((1, 3, 6, 5), *outputs)
    data = np.random.default_rng(3).standard_normal((1, 3, 6, 5)).astype(np.float32)
    for got, expected in zip(run_tvm(model, data), run_reference(model, data), strict=True):
        error = np.abs(got - expected)
        assert error.max() <= 2 * STEP
        assert (error > 1e-4).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("per_group", [1, 3])
def test_integer_groups(
    builder: Any, run_tvm: Any, run_reference: Any, bits: int, per_group: int
) -> None:
    """With one channel per group and with several, of sizes that do and do not divide."""
    b, groups = builder, 12 // per_group
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (12, 3, 1, 1), 7, STEP), STEP, 100)
    outputs = []
    for form in (
        *FORMS[:3],
        dict(strides=[2, 2], pads=[1] * 4),
        dict(strides=[2, 2], output_shape=[11, 9]),
    ):
        weights, scale = b.weights((12, per_group, 3, 3), bits, axis=1)
        unit = (np.float32(STEP) * np.tile(scale, groups)).astype(np.float32)
        steps = np.rint(b.rng.standard_normal(12) * 0.1 / unit).astype(np.int32)
        bias = b.op("DequantizeLinear", b.constant(steps), b.constant(unit), axis=0)
        y = b.op("ConvTranspose", x, weights, bias, group=groups, **form)
        outputs.append(b.quantized(b.op("Relu", y), STEP))
        outputs.append(b.op("Sigmoid", b.op("ConvTranspose", x, weights, group=groups, **form)))
    model = b.model((2, 3, 6, 5), *outputs)
    data = np.random.default_rng(3).standard_normal((2, 3, 6, 5)).astype(np.float32)
    for got, expected in zip(run_tvm(model, data), run_reference(model, data), strict=True):
        error = np.abs(got - expected)
        assert error.max() <= 1.01 * STEP
        assert (error > 1e-4).mean() < 0.02


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(2)]

    strides, kernel, dilations = pair(1, 3), pair(1, 4), pair(1, 2)
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = [draw(st.integers(0, r // 2)) for r in (*reach, *reach)]
    extra = [draw(st.integers(0, s - 1)) for s in strides]
    return {
        **{"strides": strides, "kernel_shape": kernel, "dilations": dilations, "pads": pads},
        **{"output_padding": extra, "group": draw(st.sampled_from([1, 1, 2, 4]))},
    }


@pytest.mark.slow
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(form=forms(), per_group=st.integers(1, 9), height=st.integers(1, 5))
def test_any_form(
    make_builder: Any,
    same_as_reference: Any,
    form: dict[str, Any],
    per_group: int,
    height: int,
) -> None:
    b = make_builder()
    y = b.op("ConvTranspose", "input", b.floats(4, per_group, *form["kernel_shape"]), **form)
    same_as_reference(b.model((1, 4, height, 6), b.op("Relu", y)))
