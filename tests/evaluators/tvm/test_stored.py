"""Weights come back from the bits they are stored in, and take no more than these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.stored import are_halves, pack_bits, store
from paredown.hw_profiles import load_profile


def test_bits_are_packed_from_the_lowest() -> None:
    assert pack_bits(np.array([1, -1, 2, 0]), 3).tolist() == [0b10111001, 0b0]


def test_bits_follow_from_the_values() -> None:
    assert store(np.array([0, -7, 7], np.int8), 1, 3, 0).ints[0] == 4
    assert store(np.array([-8], np.int8), 1, 1, 0).ints[0] == 4
    assert store(np.array([8], np.int8), 1, 1, 0).ints[0] == 5
    assert store(np.array([-128, 127], np.int16), 1, 2, 0).ints[0] == 8


def test_what_is_not_smaller_is_not_stored_in_bits() -> None:
    values = np.array([-128, 127, 0, 3], np.int8)
    assert store(values, 1, 4, 0).or_none(values) is None
    small = np.array([-8, 7] * 8, np.int8)
    stored = store(small, 1, 16, 0)
    assert stored.or_none(small) is stored
    assert stored.or_none(small.astype(np.int16)) is stored


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, True),
        (0.1, False),
        (65504.0, True),
        (65536.0, False),
        (2.0**-24, True),  # the least number above 0
        (2.0**-25, False),
        (np.inf, False),
        (np.nan, False),
    ],
)
@pytest.mark.parametrize("place", [0, 1500])
def test_halves_are_found(value: float, expected: bool, place: int) -> None:
    values = np.ones((40, 50), np.float32)
    values.flat[place] = value
    assert are_halves(values) is expected


@pytest.mark.slow
def test_every_half_comes_back(kernels: Any) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = halves[np.isfinite(halves)].astype(np.float32)
    stored = store(values, 1, values.size, 0)
    assert stored.data.nbytes == 2 * values.size
    got = kernels.unpack(stored)
    np.testing.assert_array_equal(got.view(np.uint32), values.view(np.uint32))


@pytest.mark.slow
def test_halves_of_repeated_channels_are_stored_once(kernels: Any) -> None:
    values = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    values[1, :, :5] = values[0, :, 3:]
    stored = store(values.reshape(-1), 2, 8, 5)
    assert stored.data.nbytes == 2 * (24 + 9)
    np.testing.assert_array_equal(kernels.unpack(stored).reshape(2, 3, 8), values)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local", "x86-64"])
def test_halves_make_a_library_of_half_the_size(profile: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((1000, 512)).astype(np.float32)
    sizes = []
    for weight in (floats, floats.astype(np.float16)):
        library = tmp_path / f"{weight.dtype}.so"
        compile_onnx(linear(weight), load_profile(profile), library)
        sizes.append(library.stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(2 * floats.size, rel=0.05)


def linear(weight: NDArray[Any]) -> onnx.ModelProto:
    """A linear layer whose weight is cast to float32, as files hold float16 weights."""
    value, make = helper.make_tensor_value_info, helper.make_node
    out, inner = weight.shape
    graph = helper.make_graph(
        [
            make("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
            make("Gemm", ["input", "w32"], ["output"], transB=1),
        ],
        "linear",
        [value("input", TensorProto.FLOAT, [1, inner])],
        [value("output", TensorProto.FLOAT, [1, out])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.slow
def test_fewer_bits_make_a_smaller_library(builder: Any, tmp_path: Path) -> None:
    sizes = {}
    for bits in (7, 4):  # those of 8 bits are read as they are stored
        data = builder.quantized("input", 0.02, 128)
        layer = builder.layer("Conv", data, (256, 64, 3, 3), bits, 0.02)
        model = builder.model((1, 64, 4, 4), layer)
        compile_onnx(model, load_profile("local"), tmp_path / f"{bits}.so")
        sizes[bits] = (tmp_path / f"{bits}.so").stat().st_size
    assert sizes[7] - sizes[4] == pytest.approx(256 * 64 * 9 * 3 / 8, rel=0.1)
