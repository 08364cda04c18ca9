"""Softmax over rows against numpy in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.evaluators.tvm.kernels.softmax import softmax_kernel
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.sink import Sink

pytestmark = pytest.mark.slow
few = settings(max_examples=6, deadline=None, derandomize=True, database=None)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    m=st.integers(1, 5),
    width=st.one_of(st.integers(1, 40), st.sampled_from([64, 128])),
    spread=st.sampled_from([0.1, 3.0, 400.0]),
    has_mask=st.booleans(),
    is_quantized=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
@few
def test_softmax(
    kernels: Any,
    batch: int,
    heads: int,
    m: int,
    width: int,
    spread: float,
    has_mask: bool,
    is_quantized: bool,
    threads: int,
) -> None:
    rng = np.random.default_rng(batch + 10 * width)
    rows = batch * heads * m
    source = Sink(0).image(1, 1, rows, width)
    data = (rng.standard_normal((1, 1, rows, width)) * spread).astype(np.float32)
    sink = Sink(0, "uint8", 1 / 200, 3) if is_quantized else Sink(0)
    output = sink.image(1, 1, rows, width)
    lanes = 16 if width % 16 == 0 and kernels.isa.startswith("avx512") else 8
    mask = np.where(rng.random((batch, 1, m, width)) < 0.2, -np.inf, 0).astype(np.float32)
    mask[..., 0] = 0.5
    kernel = softmax_kernel(sink.epilogue, lanes, threads, has_mask=has_mask)
    per, room = 2, 4 * (width + 16)
    values: dict[str, float] = {**sink.parameters(1 / sink.scale), "rows": rows, "per": per}
    values |= {"width": width, "acs": source.cp, "dcs": output.cp, "factor": 0.3}
    values["rate"] = math.log2(math.e) * (1 if has_mask else 0.3)
    values |= {"m": m, "inner": heads, "ms0": m * width, "ms2": width, "behind": output.size}
    masks = [np.append(mask.reshape(-1), np.zeros(8, np.float32))] if has_mask else []
    result = np.zeros(output.size + room * rows, sink.dtype)
    arguments = [kernels.fill(source, data), *masks, *parameter_arrays(kernel, values)]
    flat = kernels.call(kernel, [*arguments, result])
    got = kernels.inside(output, flat[: output.size])[0, 0]
    scores = data.astype(np.float64).reshape(batch, heads, m, width) * np.float32(0.3)
    scores = (scores + (mask if has_mask else 0)).reshape(rows, width)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    if is_quantized:
        assert (np.abs(got - np.clip(expected * 200 + 3, 0, 255)) < 0.501).all()
    else:
        # A score of several hundred is rounded before its power is taken.
        np.testing.assert_allclose(got, expected, rtol=1e-6 + 3e-7 * spread, atol=1e-12)
        padded = flat[: rows * output.cp].reshape(rows, output.cp)
        assert np.isfinite(padded).all()
