"""Kernels of layers for a GPU, as TVM writes them in CUDA, on the CPU: every sum is exact."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paredown.evaluators.tvm.gpu import conv, depthwise
from paredown.evaluators.tvm.gpu.conv import Problem, Tile
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.parsing import parse
from paredown.evaluators.tvm.packing import ConvGeometry
from paredown.evaluators.tvm.sink import Sink
from tests.evaluators.tvm.gpu.emulation import EmulatedKernels

TILES = (*conv.TILES, conv.ROW, conv.THIN)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@dataclass(frozen=True)
class Case:
    """A layer: batch, height, width, channels in and out, and the form of its kernel."""

    size: tuple[int, int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (1, 1)
    zero_point: int = 0

    def problem(self, groups: int = 1) -> Problem:
        n, h, w, ic, oc = self.size
        pitch = 4 if ic <= 4 and groups == 1 else -(-ic // 8) * 8
        source = Image(None, "uint8", n, h, w, ic, pitch, zero_point=self.zero_point)
        geometry = ConvGeometry(
            ic, pitch, oc, self.kernel, self.stride, self.dilation, groups=groups
        )
        ho, wo = (
            (size + 2 * pad - step * (k - 1) - 1) // stride + 1
            for size, pad, step, k, stride in zip(
                (h, w), self.pads, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        sink = Sink(0)
        output = sink.image(n, ho, wo, oc)
        return Problem(geometry, source, self.pads, output, sink, has_fraction=False)


CASES = [
    Case((1, 9, 7, 5, 33)),
    Case((2, 8, 9, 16, 40), stride=(2, 1), zero_point=131),
    Case((1, 11, 13, 24, 20), dilation=(2, 3), pads=(2, 3), zero_point=255),
    Case((1, 17, 15, 3, 16), kernel=(7, 7), stride=(2, 2), pads=(3, 3), zero_point=118),
    Case((3, 5, 4, 40, 70), kernel=(1, 1), pads=(0, 0), zero_point=7),
    Case((1, 6, 6, 12, 8), kernel=(5, 5), pads=(2, 2), zero_point=128),
    Case((1, 1, 1, 300, 37), kernel=(1, 1), pads=(0, 0)),
    Case((1, 10, 7, 24, 48), kernel=(1, 1), pads=(0, 0), zero_point=90),
]


def sums(
    case: Case, data: NDArray[np.int64], weights: NDArray[np.int64], groups: int
) -> NDArray[np.int64]:
    """Return the products of `data - zero_point` and weights, summed; NHWC."""
    (top, left), (sh, sw), (dh, dw) = case.pads, case.stride, case.dilation
    padded = np.pad(data - case.zero_point, ((0, 0), (top, top), (left, left), (0, 0)))
    output = case.problem(groups).output
    total = np.zeros((output.n, output.h, output.w, output.c), np.int64)
    for y, x in np.ndindex(case.kernel):
        rows = slice(y * dh, y * dh + (output.h - 1) * sh + 1, sh)
        columns = slice(x * dw, x * dw + (output.w - 1) * sw + 1, sw)
        taps = padded[:, rows, columns]
        total += taps @ weights[:, :, y, x].T if groups == 1 else taps * weights[:, 0, y, x]
    return total


def filled(problem: Problem, data: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the buffer of an image; what fills up its pixels is random."""
    source, rng = problem.source, np.random.default_rng(3)
    flat = rng.integers(0, 256, source.size).astype(np.uint8)
    pixels = flat[: data.size // source.c * source.cp].reshape(*data.shape[:3], source.cp)
    pixels[..., : source.c] = data
    return flat


def check(case: Case, groups: int, tile: Tile | None, folder: Path) -> None:
    """Run a layer on the largest numbers and compare with exact sums; no tile is depthwise."""
    rng = np.random.default_rng(0)
    problem = case.problem(groups)
    geometry, output = problem.geometry, problem.output
    data = rng.choice([0, 1, 127, 128, 254, 255], case.size[:4])
    shape = (geometry.oc, geometry.ic // groups, *case.kernel)
    weights = rng.choice([-127, -1, 0, 3, 126, 127], shape).astype(np.int8)
    if tile is not None:
        kernel = conv.conv_kernel(problem, tile)
        packed = conv.pack(weights, problem.source.cp, tile)
    else:
        kernel = depthwise.depthwise_kernel(problem)
        packed = depthwise.pack(weights, output.cp)
    function = parse(kernel.text("main"))
    emulated = EmulatedKernels({kernel.symbol: function}, folder)
    bias = (128 - case.zero_point) * weights.astype(np.int64).sum((1, 2, 3))
    channels = kernel.buffers[2][2][0]
    numbers = np.pad(bias, (0, channels - len(bias))).astype(np.int32)
    found = np.full(output.size, np.nan, np.float32)
    scales = np.ones(channels, np.float32)
    emulated.run(kernel.symbol, [filled(problem, data), packed, numbers, scales, found])
    expected = sums(case, data, weights.astype(np.int64), groups)
    pixels = found[: problem.pixels * output.cp].reshape(-1, output.cp)
    assert np.array_equal(pixels[:, : output.c], expected.reshape(-1, output.c))
    assert (pixels[:, output.c :] == 0).all()
    assert np.isnan(found[pixels.size :]).all()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("case", "tile"), [*zip(CASES, TILES, strict=True)], ids=str)
def test_sums_are_exact(case: Case, tile: Tile, tmp_path: Path) -> None:
    check(case, 1, tile, tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 9, 7, 24, 24), zero_point=131),
        Case((1, 8, 9, 13, 13), kernel=(5, 5), stride=(2, 2), pads=(2, 2), zero_point=255),
        Case((1, 9, 9, 8, 8), kernel=(2, 3), dilation=(2, 3), pads=(1, 3)),
    ],
    ids=str,
)
def test_depthwise_sums_are_exact(case: Case, tmp_path: Path) -> None:
    check(case, case.size[3], None, tmp_path)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tile_fits_every_gpu(tile: Tile) -> None:
    words = tile.words * (tile.pixels + 4 + tile.channels)
    words += (tile.parts - 1) * tile.group * tile.rows * tile.columns
    assert 4 * words <= 48 * 1024
    assert 32 <= tile.threads <= 256
    assert tile.threads % 32 == 0
    assert tile.words % tile.parts == 0


def test_a_tile_leaves_no_processor_idle_where_there_is_enough_to_do() -> None:
    for pixels, channels, words in ((3136, 64, 144), (784, 128, 288), (196, 256, 576)):
        tile = conv.choose_tile(pixels, channels, words)
        assert -(-pixels // tile.pixels) * -(-channels // tile.channels) >= 64
    assert conv.choose_tile(50_000, 512, 1152).pixels == 128
    assert conv.choose_tile(1, 1000, 128).pixels == 1


def test_weights_lie_in_words_of_four_input_channels() -> None:
    weights = np.arange(2 * 6, dtype=np.int8).reshape(2, 6, 1, 1)
    packed = conv.pack(weights, 8, Tile(16, 32, 4, 4, 8)).reshape(8, 32)
    assert packed[0, 0].tobytes() == bytes([0, 1, 2, 3])
    assert packed[1, 0].tobytes() == bytes([4, 5, 0, 0])
    assert packed[0, 1].tobytes() == bytes([6, 7, 8, 9])
    assert not packed[2:].any()
    assert not packed[:, 2:].any()


def test_depthwise_weights_lie_in_words_of_four_taps() -> None:
    weights = np.arange(2 * 9, dtype=np.int8).reshape(2, 1, 3, 3)
    packed = depthwise.pack(weights, 8).reshape(3, 8)
    assert packed[0, 1].tobytes() == bytes([9, 10, 11, 12])
    assert packed[2, 0].tobytes() == bytes([8, 0, 0, 0])
    assert not packed[:, 2:].any()
