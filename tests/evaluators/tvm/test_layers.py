"""Every kernel of a layer computes it exactly, whatever its sizes: against torch in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.onnx_graph.activations import Activation
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.conv import Knobs
from paredown.evaluators.tvm.kernels.pointwise import widen_kernel
from paredown.evaluators.tvm.knobs import options
from paredown.evaluators.tvm.layers import ConvLayer, parameter_arrays
from paredown.evaluators.tvm.packing import ConvGeometry
from paredown.evaluators.tvm.sink import Sink

pytestmark = pytest.mark.slow
EVERY_FAMILY = True  # of kernels, emulated ones too
few = settings(max_examples=3, deadline=None, derandomize=True, database=None)


def pairs(top: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, top), st.integers(1, top))


@dataclass(frozen=True)
class Sizes:
    """A convolution; `pads` are top and left, and the same again at the bottom and right."""

    n: int
    inner: tuple[int, int]
    geometry: ConvGeometry
    pads: tuple[int, int]
    border: int

    @property
    def outer(self) -> tuple[int, int]:
        return self._windows(0), self._windows(1)

    def _windows(self, axis: int) -> int:
        g, size = self.geometry, self.inner[axis] + 2 * self.pads[axis]
        return (size - g.dilation[axis] * (g.kernel[axis] - 1) - 1) // g.stride[axis] + 1


@st.composite
def sizes(draw: st.DrawFn, depthwise: bool = False) -> Sizes:
    """Sizes with tails: channels off the multiples of eight, outputs smaller than tiles."""
    groups = draw(st.sampled_from([2, 8, 13, 24, 40, 72, 104] if depthwise else [1, 1, 1, 2, 3]))
    ic, oc = (groups, groups) if depthwise else draw(pairs(21))
    if not depthwise and groups > 1:
        ic, oc = groups * -(-ic // 4), groups * -(-oc // 2)
    cp = ic if ic < 8 and not depthwise else -(-ic // 8) * 8
    (kh, kw), (sh, sw), (dh, dw) = draw(pairs(4)), draw(pairs(3)), draw(pairs(2))
    border = draw(st.integers(0, 2))
    top, left = min(border, dh * (kh - 1) // 2), min(border, dw * (kw - 1) // 2)
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 15))
    height = max((rows - 1) * sh + dh * (kh - 1) + 1 - 2 * top, 1)
    width = max((columns - 1) * sw + dw * (kw - 1) + 1 - 2 * left, 1)
    geometry = ConvGeometry(ic, cp, oc, (kh, kw), (sh, sw), (dh, dw), groups)
    return Sizes(draw(st.integers(1, 3)), (height, width), geometry, (top, left), border)


def few_channels(channels: int, kernel: int) -> Sizes:
    """A depthwise layer of which several pixels fill a vector."""
    cp, pad = -(-channels // 8) * 8, kernel // 2
    geometry = ConvGeometry(channels, cp, channels, (kernel, kernel), (1, 1), (1, 1), channels)
    return Sizes(2, (3, 24), geometry, (pad, pad), pad)


def source_image(sizes: Sizes, dtype: str, zero_point: int = 0, data_max: int = 255) -> Image:
    g = sizes.geometry
    found = Image(None, dtype, sizes.n, *sizes.inner, g.ic, g.icp, sizes.border)
    if dtype == "float32":
        return found
    return replace(found, scale=2.0**-6, zero_point=zero_point, data_max=data_max)


def sums(sizes: Sizes, data: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of products, NHWC; exact for integers."""
    g = sizes.geometry
    (top, left), kind = sizes.pads, torch.float64
    planes = torch.from_numpy(data).to(kind).permute(0, 3, 1, 2)
    planes = torch.nn.functional.pad(planes, (left, left, top, top))
    result = torch.nn.functional.conv2d(
        planes, torch.from_numpy(weights).to(kind), None, g.stride, 0, g.dilation, g.groups
    )
    sums: NDArray[np.float64] = result.permute(0, 2, 3, 1).numpy()
    return sums


class Case:
    """A layer with random data, and what must come out of it."""

    def __init__(self, sizes: Sizes, rng: np.random.Generator, sink: Sink, bits: int) -> None:
        self.sizes, self.rng, self.sink = sizes, rng, sink
        g = sizes.geometry
        shape = (g.oc, g.ic // g.groups, *g.kernel)
        if bits == 32:
            self.weights: NDArray[Any] = rng.standard_normal(shape).astype(np.float32)
        else:
            top = 2 ** (bits - 1) - 1
            self.weights = rng.integers(-top, top + 1, shape).astype(np.int8)
            self.weights[rng.random(g.oc) < 0.2] = top  # the edge of what is proved
            self.weights[rng.random(g.oc) < 0.2] = -top

    @property
    def output(self) -> Image:
        return self.sink.image(self.sizes.n, *self.sizes.outer, self.sizes.geometry.oc)

    def integer(self, zero_point: int, data_max: int) -> tuple[ConvLayer, Any, Any]:
        """Return layer, input pixels and float32 results before they are stored."""
        g, rng = self.sizes.geometry, self.rng
        source = source_image(self.sizes, "uint8", zero_point, data_max)
        data = rng.integers(0, data_max + 1, (source.n, source.h, source.w, source.c))
        data[rng.random(data.shape) < 0.3] = data_max
        bias = rng.integers(-1000, 1000, g.oc)
        factor = np.exp2(rng.integers(-9, -6, g.oc)).astype(np.float32)
        corrected = bias - self.weights.astype(int).sum((1, 2, 3)) * zero_point
        total = sums(self.sizes, data - zero_point, self.weights) + bias
        layer = self.layer(source, corrected.astype(np.int32), factor)
        return layer, data, total.astype(np.float32) * factor

    def layer(self, source: Image, bias: NDArray[Any], factor: NDArray[Any]) -> ConvLayer:
        return ConvLayer(
            self.sizes.geometry,
            self.weights,
            bias,
            factor,
            source,
            self.sizes.pads,
            self.output,
            self.sink,
            threads=int(self.rng.choice([1, 1, 3, 5])),
        )


def stored(sink: Sink, reals: NDArray[Any]) -> NDArray[Any]:
    """Quantize numbers that are given in output steps; scales are powers of two: no rounding."""
    low, high = sink.steps
    steps: NDArray[Any] = np.clip(np.rint(reals), low, high) + sink.zero_point
    return steps.astype(np.uint8)


def assert_close(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare float sums; what cancels in a sum leaves an error of the size of its terms."""
    largest = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * largest)


def run(kernels: Any, layer: ConvLayer, knobs: Knobs, data: Any, *more: Any) -> Any:
    """Run one setting; `more` is the residual buffer."""
    call = layer.call(knobs)
    weights, *constants, ints, floats = call.constants
    if call.weights is not None:
        np.testing.assert_array_equal(kernels.unpack(call.weights), weights)
    constants = [weights, *constants]
    source = kernels.fill(layer.source, data)
    if call.reads_words:
        widen = widen_kernel(layer.threads)
        sizes = parameter_arrays(widen, {"size": source.size})
        source = kernels.call(widen, [source, *sizes, np.full(source.size, -9, np.int16)])
    arguments = [source, *constants, *more, ints, floats]
    return kernels.run(call.kernel, arguments, layer.output)


def settings_of(kernels: Any, layer: ConvLayer) -> list[Knobs]:
    """Return the first setting of every form; all would be compiled for minutes."""
    found = options(layer, kernels.isa)
    assert found
    for knobs in found:
        assert layer.is_depthwise or knobs.ocb <= layer.geometry.ocp
        assert (knobs.th, knobs.tw) <= (layer.output.h, layer.output.w)
        assert knobs.tw <= layer.output.w
    return list({knobs.form: knobs for knobs in reversed(found)}.values())


numbers = st.integers(0, 2**32 - 1)
data_maxima = st.sampled_from([15, 31, 63, 127, 255])


@given(sizes=sizes(), bits=st.integers(2, 8), seed=numbers, data_max=data_maxima)
@few
def test_integer_layer(kernels: Any, sizes: Sizes, bits: int, seed: int, data_max: int) -> None:
    rng = np.random.default_rng(seed)
    sink = Sink(int(rng.integers(0, 3)), "uint8", 0.25, int(rng.integers(0, 256)), low=-20.0)
    case = Case(sizes, rng, sink, bits)
    layer, data, reals = case.integer(int(rng.integers(0, data_max + 1)), data_max)
    for knobs in settings_of(kernels, layer):
        for reach in (1.0, 2.0**40):  # what leaves the range of int32 is clamped as well
            reaching = replace(layer, factor=layer.factor * np.float32(reach))
            got = run(kernels, reaching, knobs, data)
            np.testing.assert_array_equal(got, stored(sink, reals * np.float32(reach)))


@given(sizes=sizes(), bits=st.integers(2, 8), seed=numbers)
@few
def test_integer_layer_with_float_output(kernels: Any, sizes: Sizes, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(sizes, rng, Sink(1, low=-3.0, high=math.inf), bits)
    layer, data, reals = case.integer(77, 255)
    knobs = settings_of(kernels, layer)[0]
    np.testing.assert_array_equal(run(kernels, layer, knobs, data), np.maximum(reals, -3.0))
    fraction = rng.uniform(-0.5, 0.5, sizes.geometry.oc).astype(np.float32)
    got = run(kernels, replace(layer, fraction=fraction), knobs, data)
    np.testing.assert_allclose(got, np.maximum(reals + fraction, -3.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("oc", [16, 24])  # an even and an odd number of vectors
def test_activation_before_steps(kernels: Any, oc: int, name: str) -> None:
    rng = np.random.default_rng(0)
    case = Case(
        Sizes(1, (3, 5), ConvGeometry(16, 16, oc, (1, 1)), (0, 0), 0),
        rng,
        Sink(0, "uint8", 2.0**-4, 20, activation=Activation(name)),
        bits=4,
    )
    layer, data, reals = case.integer(100, 255)
    activate: Any = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[name]
    wanted = stored(case.sink, activate(torch.from_numpy(reals)).numpy() * 2.0**4)
    for knobs in settings_of(kernels, layer):
        got = run(kernels, layer, knobs, data)
        np.testing.assert_allclose(got, wanted.astype(float), atol=1.0)  # a step at a tie
        assert (got == wanted).mean() > 0.99


@given(sizes=st.one_of(sizes(), sizes(depthwise=True)), bits=st.integers(2, 8), seed=numbers)
@example(sizes=few_channels(24, 3), bits=8, seed=1)
@example(sizes=few_channels(72, 3), bits=3, seed=2)
@few
def test_sum_of_quantized_tensors(kernels: Any, sizes: Sizes, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = Sink(0, "uint8", 0.5, 90, low=-40.0)
    stored_as = Sink(int(rng.integers(0, 3)), "uint8", 0.125, 30)
    image = stored_as.image(sizes.n, *sizes.outer, sizes.geometry.oc)
    sink = Sink(1, "uint8", 0.25, 60, low=0.0, residual=image, own=own)
    case = Case(sizes, rng, sink, bits)
    layer, data, reals = case.integer(100, 255)
    other = rng.integers(0, 256, (image.n, image.h, image.w, image.c))
    total = (stored(own, reals).astype(int) - 90) * 0.5 + (other - 30) * 0.125
    for knobs in settings_of(kernels, layer):
        got = run(kernels, layer, knobs, data, kernels.fill(image, other))
        np.testing.assert_array_equal(got, stored(sink, total / 0.25))


@given(sizes=sizes(), seed=numbers, is_quantized=st.booleans())
@few
def test_float_layer(kernels: Any, sizes: Sizes, seed: int, is_quantized: bool) -> None:
    rng = np.random.default_rng(seed)
    sink = Sink(1, "uint8", 0.25, 90) if is_quantized else Sink(0, low=-1.0, high=6.0)
    case = Case(sizes, rng, sink, 32)
    source, g = source_image(sizes, "float32"), sizes.geometry
    data = rng.standard_normal((source.n, source.h, source.w, source.c)).astype(np.float32)
    bias = rng.standard_normal(g.oc).astype(np.float32)
    layer = case.layer(source, bias, np.ones(g.oc, np.float32))
    reals = sums(sizes, data, case.weights) + bias
    for knobs in settings_of(kernels, layer):
        got = run(kernels, layer, knobs, data)
        if is_quantized:
            step = np.abs(got.astype(int) - stored(sink, reals / 0.25).astype(int))
            assert step.max() <= 1
            assert (step > 0).mean() < 0.01 + 2 / step.size
        else:
            assert_close(got, np.clip(reals, -1, 6))


@pytest.mark.parametrize("bits", [2, 6, 7, 8, 32])
def test_weights_beyond_the_near_caches(kernels: Any, bits: int) -> None:
    rng = np.random.default_rng(bits)
    sizes = Sizes(1, (3, 5), ConvGeometry(160, 160, 104, (3, 3)), (1, 1), 1)
    sink = Sink(0) if bits == 32 else Sink(0, "uint8", 0.25, 90)
    case = Case(sizes, rng, sink, bits)
    if bits == 32:
        data = rng.standard_normal((1, 3, 5, 160)).astype(np.float32)
        bias, factor = np.zeros(104, np.float32), np.ones(104, np.float32)
        layer = case.layer(source_image(sizes, "float32"), bias, factor)
        reals = sums(sizes, data, case.weights)
    else:
        layer, data, reals = case.integer(100, 255)
    for knobs in settings_of(kernels, layer):
        is_far = not knobs.form.startswith("neon")
        assert layer.call(knobs).kernel.kind.endswith("_prefetch") == is_far
        got = run(kernels, layer, knobs, data)
        if bits == 32:
            assert_close(got, reals)
        else:
            np.testing.assert_array_equal(got, stored(sink, reals))


@given(sizes=sizes(), seed=numbers)
@few
def test_layer_of_halves(kernels: Any, sizes: Sizes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(sizes, rng, Sink(1), 32)
    case.weights = case.weights.astype(np.float16).astype(np.float32)
    source, channels = source_image(sizes, "float32"), sizes.geometry.oc
    data = rng.standard_normal((source.n, source.h, source.w, source.c)).astype(np.float32)
    zeros, ones = (np.full(channels, value, np.float32) for value in (0, 1))
    layer = replace(case.layer(source, zeros, ones), is_half=True)
    expected = sums(sizes, data, case.weights)
    unpacked = settings_of(kernels, layer)
    assert layer.call(unpacked[0]).weights is not None
    in_place = []
    if kernels.isa.startswith("avx"):
        in_place = [replace(knobs, form="f16") for knobs in unpacked]
        call = layer.call(in_place[0])
        assert call.constants[0].dtype == np.float16
        assert call.weights is None
    for knobs in (*in_place, *unpacked):
        assert_close(run(kernels, layer, knobs, data), expected)


@given(sizes=sizes(), seed=numbers)
@few
def test_float_sum(kernels: Any, sizes: Sizes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Sink(2).image(sizes.n, *sizes.outer, sizes.geometry.oc)
    case = Case(sizes, rng, Sink(1, low=0.0, residual=image), 32)
    source = source_image(sizes, "float32")
    data = rng.standard_normal((source.n, source.h, source.w, source.c)).astype(np.float32)
    other = rng.standard_normal((image.n, image.h, image.w, image.c)).astype(np.float32)
    zeros, ones = (np.full(sizes.geometry.oc, value, np.float32) for value in (0, 1))
    layer = case.layer(source, zeros, ones)
    knobs = settings_of(kernels, layer)[0]
    got = run(kernels, layer, knobs, data, kernels.fill(image, other))
    expected = np.maximum(sums(sizes, data, case.weights) + other, 0)
    assert_close(got, expected)


@given(sizes=sizes(depthwise=True), bits=st.integers(2, 8), seed=numbers)
@example(sizes=few_channels(8, 3), bits=8, seed=1)
@example(sizes=few_channels(13, 5), bits=4, seed=2)
@example(sizes=few_channels(32, 3), bits=2, seed=3)
@settings(few, max_examples=4)
def test_depthwise_integer_layer(kernels: Any, sizes: Sizes, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sink = Sink(int(rng.integers(0, 3)), "uint8", 0.25, int(rng.integers(0, 256)), low=-20.0)
    layer, data, reals = Case(sizes, rng, sink, bits).integer(int(rng.integers(0, 256)), 255)
    assert layer.is_depthwise
    for knobs in settings_of(kernels, layer):
        np.testing.assert_array_equal(run(kernels, layer, knobs, data), stored(sink, reals))


@given(sizes=sizes(depthwise=True), seed=numbers)
@example(sizes=few_channels(6, 3), seed=1)
@settings(few, max_examples=4)
def test_depthwise_float_layer(kernels: Any, sizes: Sizes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(sizes, rng, Sink(1, low=0.0), 32)
    source, channels = source_image(sizes, "float32"), sizes.geometry.oc
    data = rng.standard_normal((source.n, source.h, source.w, source.c)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    layer = case.layer(source, bias, np.ones(channels, np.float32))
    expected = np.maximum(sums(sizes, data, case.weights) + bias, 0)
    for knobs in settings_of(kernels, layer):
        assert_close(run(kernels, layer, knobs, data), expected)
    case.weights = case.weights.astype(np.float16).astype(np.float32)
    layer = replace(layer, weights=case.weights, is_half=True)
    expected = np.maximum(sums(sizes, data, case.weights) + bias, 0)
    knobs = settings_of(kernels, layer)[0]
    assert layer.call(knobs).weights is not None
    assert_close(run(kernels, layer, knobs, data), expected)
