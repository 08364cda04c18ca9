"""Pooling kernels against windows cut out with numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.pool import average_pool_kernel, max_pool_kernel
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.sink import Sink

pytestmark = pytest.mark.slow
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def windows(draw: st.DrawFn) -> dict[str, int]:
    """Window parameters of an image, each window with a pixel in it."""
    (kh, kw), (sh, sw) = draw(pairs), draw(pairs)
    pt, pl = draw(st.integers(0, kh - 1)), draw(st.integers(0, kw - 1))
    hi, wi = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    sizes = {"kh": kh, "kw": kw, "sh": sh, "sw": sw, "pt": pt, "pl": pl, "hi": hi, "wi": wi}
    return {**sizes, "ho": (hi + pt - 1) // sh + 1, "wo": (wi + pl - 1) // sw + 1}


def pooled(
    data: NDArray[Any], w: dict[str, int], reduce: Callable[[NDArray[Any]], Any]
) -> NDArray[Any]:
    """Reduce each window, cut at the edge of the NHWC data."""
    result = np.zeros((data.shape[0], w["ho"], w["wo"], data.shape[3]))
    for y, x in np.ndindex(w["ho"], w["wo"]):
        top, left = y * w["sh"] - w["pt"], x * w["sw"] - w["pl"]
        part = data[:, max(top, 0) : top + w["kh"], max(left, 0) : left + w["kw"]]
        result[:, y, x] = reduce(part.reshape(len(data), -1, data.shape[3]))
    return result


def image(dtype: str, window: dict[str, int], channels: int) -> Image:
    found = Image(None, dtype, 2, window["hi"], window["wi"], channels, -(-channels // 8) * 8, 1)
    return found if dtype == "float32" else replace(found, scale=0.5, zero_point=100)


def pixels(dtype: str, source: Image) -> NDArray[Any]:
    rng = np.random.default_rng(source.h * 10 + source.w)
    shape = (source.n, source.h, source.w, source.c)
    if dtype == "uint8":
        return rng.integers(0, 256, shape)
    return rng.standard_normal(shape).astype(np.float32)


@given(window=windows(), channels=st.integers(1, 33), dtype=st.sampled_from(["uint8", "float32"]))
@few
def test_max_pool(kernels: Any, window: dict[str, int], channels: int, dtype: str) -> None:
    source = image(dtype, window, channels)
    output = replace(source, h=window["ho"], w=window["wo"], border=2)
    data = pixels(dtype, source)
    for lanes in (8, 16, 32) if dtype == "uint8" else (8,):
        if source.cp % lanes == 0:
            kernel = max_pool_kernel(dtype, lanes, 1)
            values: dict[str, float] = {**output.as_output(), **source.as_source(), **window}
            arguments = [kernels.fill(source, data), *parameter_arrays(kernel, values)]
            got = kernels.run(kernel, arguments, output)
            np.testing.assert_array_equal(got, pooled(data, window, lambda p: p.max(1)))


@given(
    window=windows(),
    channels=st.integers(1, 20),
    forms=st.sampled_from([(a, b) for a in ("uint8", "float32") for b in ("uint8", "float32")]),
    counts_padding=st.booleans(),
)
@few
def test_average_pool(
    kernels: Any,
    window: dict[str, int],
    channels: int,
    forms: tuple[str, str],
    counts_padding: bool,
) -> None:
    source = image(forms[0], window, channels)
    sink = Sink(1, "uint8", 0.11, 90) if forms[1] == "uint8" else Sink(1)
    output = sink.image(2, window["ho"], window["wo"], channels)
    data = pixels(forms[0], source)
    whole = window["kh"] * window["kw"] if counts_padding else 0
    reals = (data - source.zero_point) * source.scale
    expected = pooled(reals, window, lambda p: p.sum(1) / (whole or p.shape[1]))
    kernel = average_pool_kernel(*forms, threads=1)
    values: dict[str, float] = {**output.as_output(), **sink.parameters(), **source.as_source()}
    values |= {**window, "whole": whole, "za": source.zero_point, "f": source.scale / sink.scale}
    arguments = [kernels.fill(source, data), *parameter_arrays(kernel, values)]
    got = kernels.run(kernel, arguments, output)
    if forms[1] == "float32":
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    else:
        steps = np.clip(expected / sink.scale, *sink.steps) + sink.zero_point
        assert (np.abs(got - steps) < 0.5001).all()
