"""Kernels that look across channels or pixels, against numpy in double precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.across import POWERS, across_kernel, response_kernel
from paredown.evaluators.tvm.kernels.moments import moments_kernel
from paredown.evaluators.tvm.kernels.pointwise import elementwise_kernel
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.sink import Sink

pytestmark = pytest.mark.slow
few = settings(max_examples=6, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9))
dtypes = st.sampled_from(["uint8", "float32"])


def image(dtype: str, size: tuple[int, int, int], channels: int) -> Image:
    found = Image(None, dtype, *size, channels, -(-channels // 8) * 8, 1)
    return found if dtype == "float32" else replace(found, scale=0.05, zero_point=100)


def pixels(source: Image) -> NDArray[Any]:
    rng = np.random.default_rng(source.h * 10 + source.w)
    shape = (source.n, source.h, source.w, source.c)
    if source.dtype == "uint8":
        return rng.integers(0, 256, shape)
    return rng.standard_normal(shape).astype(np.float32)


def reals(source: Image, data: NDArray[Any]) -> NDArray[np.float64]:
    return (data.astype(np.float64) - source.zero_point) * source.scale


@given(size=sizes, groups=st.integers(1, 5), per=st.integers(1, 5), dtype=dtypes)
@few
def test_moments(
    kernels: Any, size: tuple[int, int, int], groups: int, per: int, dtype: str
) -> None:
    source = image(dtype, size, groups * per)
    data, rng = pixels(source), np.random.default_rng(7)
    scale, shift = (np.zeros(source.cp, np.float32) for _ in range(2))
    scale[: source.c], shift[: source.c] = rng.standard_normal((2, source.c))
    grouped = reals(source, data).reshape(source.n, -1, groups, per)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((grouped - mean) / np.sqrt(variance + 1e-3)).reshape(data.shape)
    expected = normed * scale[: source.c] + shift[: source.c]
    for lanes in (16, 8) if source.cp % 16 == 0 else (8,):
        kernel = moments_kernel(dtype, lanes, 1)
        values: dict[str, float] = {**source.as_source("0"), "z0": source.zero_point}
        values |= {"n": source.n, "h": source.h, "w": source.w, "pitch": source.cp, "per": per}
        values |= {"groups": groups, "f0": source.scale, "eps": 1e-3}
        values["share"] = source.n / (data.size / groups)
        arguments = [kernels.fill(source, data), scale, shift, *parameter_arrays(kernel, values)]
        found = kernels.call(kernel, [*arguments, np.full(2 * source.n * source.cp, 9, "float32")])
        first, second = found.reshape(source.n, 2, 1, 1, source.cp).swapaxes(0, 1)
        assert (found.reshape(-1, source.cp)[:, source.c :] == 0).all()
        got = reals(source, data) * first[..., : source.c] + second[..., : source.c]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@given(size=sizes, channels=st.integers(1, 40), dtype=dtypes, how=st.sampled_from(["max", "sum"]))
@few
def test_across(
    kernels: Any, size: tuple[int, int, int], channels: int, dtype: str, how: str
) -> None:
    source = image(dtype, size, channels)
    data = pixels(source)
    join = np.max if how == "max" else np.sum
    expected = join(reals(source, data), axis=3, keepdims=True) * 0.5
    for sink in (Sink(1), Sink(1, "uint8", 0.11, 90)):
        output = sink.image(*size, 1)
        kernel = across_kernel(dtype, how, sink.epilogue, 1)
        values: dict[str, float] = {**output.as_output(), **sink.parameters(1 / sink.scale)}
        values |= {**source.as_source("0"), "z0": source.zero_point, "f0": source.scale}
        values |= {"width": channels, "share": 0.5}
        arguments = [kernels.fill(source, data), *parameter_arrays(kernel, values)]
        got = kernels.run(kernel, arguments, output)
        if sink.dtype == "float32":
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
        else:
            steps = np.clip(expected / sink.scale, *sink.steps) + sink.zero_point
            assert (np.abs(got - steps) < 0.501).all()


@given(
    size=sizes,
    channels=st.integers(1, 20),
    width=st.integers(1, 9),
    beta=st.sampled_from(sorted(POWERS)),
)
@few
def test_response(
    kernels: Any, size: tuple[int, int, int], channels: int, width: int, beta: float
) -> None:
    source, sink, before = image("float32", size, channels), Sink(0), (width - 1) // 2
    data = pixels(source)
    squares = np.pad(np.square(reals(source, data)), [(0, 0)] * 3 + [(before, width)])
    totals = sum(squares[..., k : k + channels] for k in range(width))
    expected = data / (0.7 + 0.3 * totals) ** beta
    output = sink.image(*size, channels)
    kernel = response_kernel(sink.epilogue, beta, 1)
    values: dict[str, float] = {**output.as_output(), **sink.parameters()}
    values |= {**source.as_source("0"), "width": channels, "size": width, "before": before}
    values |= {"rate": 0.3, "offset": 0.7}
    arguments = [kernels.fill(source, data), *parameter_arrays(kernel, values)]
    got = kernels.run(kernel, arguments, output)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@given(size=sizes, channels=st.integers(9, 20), forms=st.tuples(dtypes, dtypes))
@few
def test_gate_of_pixels(
    kernels: Any, size: tuple[int, int, int], channels: int, forms: tuple[str, str]
) -> None:
    source, gate = image(forms[0], size, channels), image(forms[1], size, 1)
    output = Sink(1).image(*size, channels)
    kernel = elementwise_kernel(forms, "float32", 1, "mul", is_gated=True)
    values: dict[str, float] = {**output.as_output(), **Sink(1).parameters()}
    for k, operand in enumerate((source, gate)):
        values |= operand.as_source(str(k))
        values |= {f"z{k}": operand.zero_point, f"f{k}": operand.scale}
    data = [pixels(operand) for operand in (source, gate)]
    filled = [kernels.fill(i, d) for i, d in zip((source, gate), data, strict=True)]
    got = kernels.run(kernel, [*filled, *parameter_arrays(kernel, values)], output)
    expected = reals(source, data[0]) * reals(gate, data[1])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
