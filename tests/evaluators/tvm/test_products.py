"""Products of activations against plain numpy, in integers exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.products import Product, choose_knobs
from paredown.evaluators.tvm.sink import Sink
from paredown.evaluators.tvm.views import View, joined
from paredown.hw_profiles.isa import ISAS

few = settings(max_examples=5, deadline=None, derandomize=True, database=None)
ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (0, 2, 3, 1), (3, 2, 1, 0))


def stored(values: NDArray[Any], order: tuple[int, ...]) -> tuple[View, NDArray[Any]]:
    """Lay a tensor down in another order of its dimensions; return its view and the buffer."""
    moved = np.ascontiguousarray(values.transpose(order))
    image = Image(None, str(values.dtype), 1, 1, moved.size, 1, 1)
    strides = dict(zip(order, (s // moved.itemsize for s in moved.strides), strict=True))
    view = View(image, values.shape, tuple(strides[k] for k in range(4)))
    return view, np.append(moved.reshape(-1), np.full(64, 3, values.dtype))


def multiplied(kernels: Any, product: Product, left: Any, right: Any) -> NDArray[Any]:
    """Run both kernels; return what is in the output's view."""
    pack, kernel = product.pack_kernel(), product.kernel()
    packed = np.full(product.packed_size, 7, product.packed_dtype)
    packed = kernels.call(pack, [right, *parameter_arrays(pack, product.packing()), packed])
    image, view = product.output.image, product.output
    parameters = parameter_arrays(kernel, product.multiplying())
    output = np.full(image.size, 77, image.dtype)
    flat = kernels.call(kernel, [left, packed, *product.constants(), *parameters, output])
    assert (
        flat[image.n * image.plane :] == (77 if image.cp == image.c else image.zero_point)
    ).all()
    strides = [s * flat.itemsize for s in view.strides]
    found = np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)
    return np.array(found)


def product_of(
    isa: str, left: View, right: View, sink: Sink, *, is_moved: bool, threads: int
) -> Product:
    """Return the product of two views of four dimensions."""
    b0, b1, m, _ = left.shape
    n = right.shape[-1]
    if is_moved:  # heads side by side
        output = View.of_rows(sink.image(1, 1, b0 * m, b1 * n), (b0, m, b1 * n))
        split = output.reshaped((b0, m, b1, n))
        assert split is not None
        output = split.transposed((0, 2, 1, 3))
    else:
        output = View.of_rows(sink.image(1, 1, b0 * b1 * m, n), (b0, b1, m, n))
    dims = joined((b0, b1), [view.strides[:2] for view in (left, right, output)])
    outer, inner = [(1, 0, 0, 0)] * (2 - len(dims)) + dims
    knobs = choose_knobs(isa, n, m, is_integer=left.image.dtype == "uint8")
    return Product(left, right, output, (outer, inner), sink, knobs, threads)


sizes = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(1, 40),
    st.integers(1, 70),
)


@pytest.mark.slow
@given(
    size=sizes,
    orders=st.tuples(st.sampled_from(ORDERS[:2]), st.sampled_from(ORDERS)),
    zero_points=st.tuples(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])),
    is_moved=st.booleans(),
    is_quantized=st.booleans(),
    extreme=st.booleans(),
)
@few
def test_integers(
    kernels: Any,
    size: tuple[int, ...],
    orders: tuple[tuple[int, ...], tuple[int, ...]],
    zero_points: tuple[int, int],
    is_moved: bool,
    is_quantized: bool,
    extreme: bool,
) -> None:
    b0, b1, m, k, n = size
    rng = np.random.default_rng(math.prod(size))
    shapes = ((b0, b1, m, k), (b0, b1, k, n))
    values = [
        (255 * rng.integers(0, 2, s) if extreme else rng.integers(0, 256, s)).astype(np.uint8)
        for s in shapes
    ]
    (left, a), (right, b) = (stored(v, o) for v, o in zip(values, orders, strict=True))
    left, right = (
        replace(view, image=replace(view.image, scale=scale, zero_point=z))
        for view, scale, z in zip((left, right), (0.25, 0.5), zero_points, strict=True)
    )
    sink = Sink(0, "uint8", 0.125 * 2048, 90) if is_quantized else Sink(0)
    product = product_of(kernels.isa, left, right, sink, is_moved=is_moved, threads=1)
    got = multiplied(kernels, product, a, b)
    first, second = (v.astype(np.int64) for v in values)
    exact = (
        np.matmul(first - zero_points[0], second - zero_points[1]) * 0.125
    )  # powers of two: floats hold it exactly
    if is_quantized:
        exact = np.clip(np.rint(exact / sink.scale) + 90, 0, 255)
    np.testing.assert_array_equal(got, exact)


@pytest.mark.slow
@given(
    size=sizes,
    orders=st.tuples(st.sampled_from(ORDERS[:2]), st.sampled_from(ORDERS)),
    is_moved=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
@few
def test_floats(
    kernels: Any,
    size: tuple[int, ...],
    orders: tuple[tuple[int, ...], tuple[int, ...]],
    is_moved: bool,
    threads: int,
) -> None:
    b0, b1, m, k, n = size
    rng = np.random.default_rng(math.prod(size))
    values = [rng.standard_normal(s).astype(np.float32) for s in ((b0, b1, m, k), (b0, b1, k, n))]
    (left, a), (right, b) = (stored(v, o) for v, o in zip(values, orders, strict=True))
    product = product_of(kernels.isa, left, right, Sink(0), is_moved=is_moved, threads=threads)
    got = multiplied(kernels, product, a, b)
    exact = values[0].astype(np.float64) @ values[1]
    size_of_terms = np.abs(values[0]).astype(np.float64) @ np.abs(values[1])
    assert (np.abs(got - exact) <= 1e-6 * size_of_terms).all()


def test_small_matrices_have_settings() -> None:
    for isa in ISAS:
        for is_integer in (False, True):
            knobs = choose_knobs(isa, 1, 1, is_integer=is_integer)
            assert (knobs.ocb, knobs.tw) == (8, 1)
            assert choose_knobs(isa, 8, 3, is_integer=is_integer).tw <= 3
