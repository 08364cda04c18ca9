"""Sums, changes of scale and layout, and concatenation against numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.pointwise import (
    concat_kernel,
    elementwise_kernel,
    from_nchw_kernel,
    to_nchw_kernel,
)
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.sink import Sink
from paredown.hw_profiles import ISAS

pytestmark = pytest.mark.slow
few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
dtypes = st.sampled_from(["uint8", "float32"])
sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))  # images, rows, columns
STEPS = ((np.float32(0.0231), 130), (np.float32(0.0417), 7))


def operand(dtype: str, size: tuple[int, int, int], channels: int, index: int = 0) -> Image:
    image = Image(None, dtype, *size, channels, -(-channels // 8) * 8, border=index % 3)
    scale, zero_point = STEPS[index % 2]
    if dtype == "float32":
        return image
    return replace(image, scale=float(scale), zero_point=zero_point)


def pixels(image: Image, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    shape = (image.n, image.h, image.w, image.c)
    if image.dtype == "uint8":
        return rng.integers(0, 256, shape)
    return (rng.standard_normal(shape) * 3).astype(np.float32)


def reals(image: Image, data: NDArray[Any]) -> NDArray[np.float32]:
    """What DequantizeLinear makes of the data."""
    if image.dtype == "float32":
        return data.astype(np.float32)
    return (data.astype(int) - image.zero_point).astype(np.float32) * np.float32(image.scale)


def stored(sink: Sink, values: NDArray[np.float32]) -> NDArray[Any]:
    """What Clip and QuantizeLinear make of real values, in float32."""
    values = np.asarray(np.clip(values, np.float32(sink.low), np.float32(sink.high)))
    if sink.dtype == "float32":
        return values
    steps = np.rint(values / np.float32(sink.scale)) + sink.zero_point
    return np.asarray(np.clip(steps, 0, 255), np.uint8)


def sink_of(dtype: str) -> Sink:
    if dtype == "float32":
        return Sink(1, low=-1.5, high=2.0)
    return Sink(1, "uint8", float(np.float32(0.0313)), 60, low=-1.5)


def run(
    kernels: Any, kernel: Any, sink: Sink, operands: list[Any], output: Image, **more: int
) -> Any:
    """Run a kernel on pairs of image and data."""
    values: dict[str, float] = {**output.as_output(), **sink.parameters(), **more}
    for k, (image, _) in enumerate(operands):
        source = image.as_source(str(k)).items()
        values |= {name: value for name, value in source if name not in more}
        values |= {f"z{k}": image.zero_point, f"f{k}": image.scale}
    buffers = [kernels.fill(image, data) for image, data in operands]
    return kernels.run(kernel, [*buffers, *parameter_arrays(kernel, values)], output)


@given(size=sizes, channels=st.integers(1, 20), inputs=st.lists(dtypes, min_size=1, max_size=2))
@few
@pytest.mark.parametrize("output", ["uint8", "float32"])
def test_sum_of_images(
    kernels: Any, size: tuple[int, int, int], channels: int, inputs: list[str], output: str
) -> None:
    sink = sink_of(output)
    images = [operand(dtype, size, channels, k) for k, dtype in enumerate(inputs)]
    operands = [(image, pixels(image, k)) for k, image in enumerate(images)]
    kernel = elementwise_kernel(tuple(inputs), output, 1)
    got = run(kernels, kernel, sink, operands, sink.image(*size, channels))
    expected = stored(sink, np.sum([reals(*pair) for pair in operands], axis=0))
    if len(inputs) == 1:
        np.testing.assert_array_equal(got, expected)
    else:  # CPUs with fused multiply-add round once less: next to a tie that may be a step
        tolerance = 1.0 if output == "uint8" else 1e-6
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=tolerance)
        assert (np.abs(got - expected.astype(float)) > 1e-6).mean() < 0.02


@given(size=sizes, channels=st.integers(1, 20), inputs=st.tuples(dtypes, dtypes))
@few
@pytest.mark.parametrize("is_gate", [False, True])
def test_product_of_images(
    kernels: Any, size: tuple[int, int, int], channels: int, inputs: list[str], is_gate: bool
) -> None:
    sink = sink_of("float32")
    sizes_of = [size, (size[0], 1, 1) if is_gate else size]
    images = [operand(dtype, sizes_of[k], channels, k) for k, dtype in enumerate(inputs)]
    operands = [(image, pixels(image, k)) for k, image in enumerate(images)]
    kernel = elementwise_kernel(tuple(inputs), "float32", 1, "mul")
    still = {"a1rs": 0, "a1cs": 0} if is_gate else {}
    got = run(kernels, kernel, sink, operands, sink.image(*size, channels), **still)
    expected = stored(sink, reals(*operands[0]) * reals(*operands[1]))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@given(
    size=sizes,
    inputs=st.lists(st.tuples(dtypes, st.integers(1, 19)), min_size=1, max_size=3),
    output=dtypes,
)
@few
def test_concatenation(
    kernels: Any, size: tuple[int, int, int], inputs: list[tuple[str, int]], output: str
) -> None:
    sink = sink_of(output)
    images = [operand(dtype, size, channels, k) for k, (dtype, channels) in enumerate(inputs)]
    operands = [(image, pixels(image, k)) for k, image in enumerate(images)]
    places = np.cumsum([0, *(channels for _, channels in inputs)])
    more = {f"c{k}": channels for k, (_, channels) in enumerate(inputs)}
    more |= {f"co{k}": int(places[k]) for k in range(len(inputs))}
    kernel = concat_kernel(tuple(dtype for dtype, _ in inputs), output, 1)
    target = sink.image(*size, int(places[-1]))
    got = run(kernels, kernel, sink, operands, replace(target, c=target.cp), **more)
    expected = stored(sink, np.concatenate([reals(*pair) for pair in operands], axis=3))
    np.testing.assert_array_equal(got[..., : target.c], expected)
    assert (got[..., target.c :] == target.zero_point).all()


@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 40)),
    channels=st.one_of(st.integers(1, 4), st.integers(1, 20)),
    dtype=dtypes,
    is_dense=st.booleans(),
)
@few
def test_layouts(
    kernels: Any, size: tuple[int, int, int], channels: int, dtype: str, is_dense: bool
) -> None:
    sink = sink_of(dtype)
    image = sink.image(*size, channels)
    if is_dense:
        image = replace(image, cp=channels)
    rng = np.random.default_rng(channels)
    planes = rng.standard_normal((size[0], channels, *size[1:])).astype(np.float32)
    kernel = from_nchw_kernel(dtype, 1, channels if is_dense and channels < 8 else 0)
    values: dict[str, float] = {**image.as_output(), **sink.parameters(), "c": channels}
    arguments = [planes.reshape(-1), *parameter_arrays(kernel, values)]
    got = kernels.run(kernel, arguments, image)
    np.testing.assert_array_equal(got, stored(sink, planes.transpose(0, 2, 3, 1)))
    back = to_nchw_kernel(dtype, 1)
    values = {"n": size[0], "h": size[1], "w": size[2], "c": channels, **image.as_source()}
    values |= {"z0": image.zero_point, "f0": image.scale}
    flat = Image(None, "float32", 1, 1, planes.size, 1, 1)
    arguments = [kernels.fill(image, got), *parameter_arrays(back, values)]
    returned = kernels.run(back, arguments, flat).reshape(planes.shape)
    np.testing.assert_array_equal(returned, reals(image, got).transpose(0, 3, 1, 2))


@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 70)),
    channels=st.integers(1, 4),
    is_narrow=st.booleans(),
    exponent=st.floats(-19, 19),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_packed_rows_are_rounded_as_divided_ones(
    kernels: Any,
    size: tuple[int, int, int],
    channels: int,
    is_narrow: bool,
    exponent: float,
    zero_point: int,
    seed: int,
) -> None:
    if not kernels.isa.startswith("avx"):
        pytest.skip("packed with instructions of AVX2 and AVX-512")
    scale = float(np.float32(10.0**exponent))
    sink = Sink(1, "uint8", scale, zero_point).within_steps()
    image = replace(sink.image(*size, channels), cp=channels)
    rng = np.random.default_rng(seed)
    shape = (size[0], channels, *size[1:])
    # Next to where a number of steps is rounded up or down, far outside, and anywhere.
    ties = (rng.integers(-300, 300, shape) + np.float32(0.5)) * np.float32(scale)
    for _ in range(3):
        towards = np.where(rng.integers(2, size=shape), np.inf, -np.inf).astype(np.float32)
        ties = np.where(rng.integers(2, size=shape), np.nextafter(ties, towards), ties)
    far = np.float32(3e38) * rng.choice([-1, 1], shape)
    anywhere = rng.standard_normal(shape) * 100 * scale
    planes = np.choose(rng.choice(3, shape, p=[0.8, 0.05, 0.15]), [ties, far, anywhere])
    planes = planes.astype(np.float32)
    register = 8 if is_narrow else ISAS[kernels.isa].vector_bits // 32
    kernel = from_nchw_kernel("uint8", 1, channels, register)
    inverse = float(np.float32(1) / np.float32(scale))
    values = {**image.as_output(), **sink.parameters(inverse), "c": channels}
    arguments = [planes.reshape(-1), *parameter_arrays(kernel, values)]
    got = kernels.run(kernel, arguments, image)
    plain = Sink(1, "uint8", scale, zero_point)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, stored(plain, planes.transpose(0, 2, 3, 1)))
