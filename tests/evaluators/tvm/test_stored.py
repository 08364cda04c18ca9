"""Weights come back from the bits they are stored in, and take no more than these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.stored import pack_bits, store
from paredown.hw_profiles import load_profile


def test_bits_are_packed_from_the_lowest() -> None:
    assert pack_bits(np.array([1, -1, 2, 0]), 3).tolist() == [0b10111001, 0b0]


def test_bits_follow_from_the_values() -> None:
    assert store(np.array([0, -7, 7], np.int8), 1, 3, 0).ints[0] == 4
    assert store(np.array([-8], np.int8), 1, 1, 0).ints[0] == 4
    assert store(np.array([8], np.int8), 1, 1, 0).ints[0] == 5
    assert store(np.array([-128, 127], np.int16), 1, 2, 0).ints[0] == 8


@pytest.mark.slow
@given(
    bits=st.integers(1, 8),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 12)),
    share=st.floats(0, 1),
    dtype=st.sampled_from(["int8", "int16"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
def test_round_trip(
    kernels: Any, bits: int, shape: tuple[int, int, int], share: float, dtype: str, seed: int
) -> None:
    blocks, _, length = shape
    skip = int(share * (length - 1)) if blocks > 1 else 0
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(dtype)
    if blocks > 1:
        values[-1, :, :skip] = values[-2, :, length - skip :]
    stored = store(values.reshape(-1), blocks, length, skip)
    assert len(stored.data) <= (values.size - shape[1] * skip) * bits // 8 + 2
    np.testing.assert_array_equal(kernels.unpack(stored).reshape(shape), values)


@pytest.mark.slow
def test_fewer_bits_make_a_smaller_library(builder: Any, tmp_path: Path) -> None:
    sizes = {}
    for bits in (8, 4):
        data = builder.quantized("input", 0.02, 128)
        layer = builder.layer("Conv", data, (256, 64, 3, 3), bits, 0.02)
        model = builder.model((1, 64, 4, 4), layer)
        compile_onnx(model, load_profile("local"), tmp_path / f"{bits}.so")
        sizes[bits] = (tmp_path / f"{bits}.so").stat().st_size
    assert sizes[8] - sizes[4] == pytest.approx(256 * 64 * 9 * 4 / 8, rel=0.1)
