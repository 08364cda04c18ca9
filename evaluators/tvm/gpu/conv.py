"""Convolution and linear layers as one matrix product of int8, four products an instruction.

Rows of the product are output pixels, columns output channels, and what is summed over are the
words (four channels) of all taps of the kernel. A block of threads computes a tile of it: slices
of both operands go through shared memory, the next ones being loaded while those at hand are
multiplied.
`__dp4a` takes bytes of one sign, so 128 is taken off the data when they are loaded, and the bias
makes up for it: sums are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..image import Image
from ..kernels.script import nest
from ..packing import ConvGeometry
from ..sink import Sink
from .epilogue import store_sums
from .script import Buffer, GpuKernel

SIGN = -0x7F7F7F80  # 0x80 in each byte, as int32: flips uint8 to what is 128 less in int8
_ENOUGH_BLOCKS = 120  # so that most GPUs have one for each of their processors
_MANY_WORDS = 64  # sums of fewer are not worth sharing


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block of threads computes.

    Attributes:
        pixels, channels: Size of the tile.
        rows, columns: Pixels and channels of one thread.
        words: Words of each pixel and channel in shared memory.
        parts: Into how many parts the words are shared out between groups of threads.
    """

    pixels: int
    channels: int
    rows: int
    columns: int
    words: int
    parts: int = 1

    @property
    def group(self) -> int:
        """Threads that compute the tile, each with a part of the words."""
        return (self.pixels // self.rows) * (self.channels // self.columns)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.group * self.parts


TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 8),
    Tile(64, 64, 8, 4, 8),
    Tile(64, 32, 4, 4, 8),
    Tile(32, 32, 4, 4, 16, 2),
    Tile(16, 32, 4, 4, 16, 4),
)
ROW = Tile(1, 32, 1, 4, 64, 16)  # a linear layer of one row, bound by its weights
THIN = Tile(32, 32, 4, 4, 16)  # few words to sum over


def choose_tile(pixels: int, channels: int, words: int) -> Tile:
    """Return the tile for a layer: the largest that keeps a GPU busy.

    Larger ones read less for each product. It is a rule of thumb: there is no GPU here to time it.

    Args:
        pixels: Output pixels of all images.
        channels: Output channels.
        words: Words that each sum is made of.
    """
    if pixels <= 2:
        return ROW
    fitting = [t for t in TILES if t.channels <= max(32, -(-channels // 32) * 32)]
    for tile in fitting:
        if -(-pixels // tile.pixels) * -(-channels // tile.channels) >= _ENOUGH_BLOCKS:
            return tile
    return THIN if words < _MANY_WORDS else fitting[-1]


def pack(weights: NDArray[np.generic], pitch: int, tile: Tile) -> NDArray[np.int32]:
    """Return OIHW weights in words, ordered as block of channels, word, channel; zeros behind.

    Args:
        weights: Shape `(oc, ic, kh, kw)`.
        pitch: Numbers of an input pixel, a multiple of four.
        tile: Says how they are read.
    """
    oc, ic, kh, kw = weights.shape
    n_blocks, words = -(-oc // tile.channels), kh * kw * pitch // 4
    rows = np.zeros((n_blocks * tile.channels, kh, kw, pitch), np.int8)
    rows[:oc, :, :, :ic] = weights.transpose(0, 2, 3, 1)
    packed = np.ascontiguousarray(rows.reshape(len(rows), -1)).view(np.int32)
    packed = np.pad(packed, ((0, 0), (0, -words % tile.words)))
    blocks = packed.reshape(n_blocks, tile.channels, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(-1)


@dataclass(frozen=True, slots=True)
class Problem:
    """A layer in the terms of its kernel.

    Attributes:
        geometry: Sizes; one group, or as many as channels.
        source: The input, uint8, without a border.
        pads: Top and left padding.
        output: The result, without a border.
        sink: What is stored.
        has_fraction: Whether floats are added to the scaled sums.
    """

    geometry: ConvGeometry
    source: Image
    pads: tuple[int, int]
    output: Image
    sink: Sink
    has_fraction: bool

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return self.output.n * self.output.h * self.output.w

    @property
    def pixel_words(self) -> int:
        """Words of an input pixel."""
        return self.source.cp // 4

    @property
    def words(self) -> int:
        """Words that a sum over all taps and channels is made of."""
        return math.prod(self.geometry.kernel) * self.pixel_words

    @property
    def padding(self) -> int:
        """Word that stands outside of the image, as the sums take it."""
        byte = self.source.zero_point ^ 0x80
        return int(np.frombuffer(bytes([byte] * 4), np.int32)[0])

    @property
    def tag(self) -> str:
        """Names what is stored."""
        return self.sink.epilogue.tag

    def buffers(self, n_weights: int, n_channels: int) -> list[Buffer]:
        """Return the kernel's arguments: data, weights, numbers per channel, residual, output."""
        fraction: list[Buffer] = [("C", "float32", (n_channels,))] if self.has_fraction else []
        residual = self.sink.residual
        added = [] if residual is None else [("R", residual.dtype, (residual.size,))]
        return [
            ("A", "uint8", (self.source.size,)),
            ("W", "int32", (n_weights,)),
            *(("B", "int32", (n_channels,)), ("S", "float32", (n_channels,))),
            *(*fraction, *added),
            ("D", self.output.dtype, (self.output.size,)),
        ]

    def first_tap(self, pixel: str) -> list[str]:
        """Lines that name the place of the first tap of an output pixel: `b0`, `y0` and `x0`."""
        h, w = self.output.h, self.output.w
        (down, across), (top, left) = self.geometry.stride, self.pads
        return [
            f"b0: T.let[T.int32] = {pixel} // {h * w}",
            f"y0: T.let[T.int32] = {pixel} % {h * w} // {w} * {down} - {top}",
            f"x0: T.let[T.int32] = {pixel} % {w} * {across} - {left}",
        ]

    def is_inside(self, y: str, x: str) -> str:
        """Return whether a row and a column lie in the image."""
        h, w = self.source.h, self.source.w
        return f"0 <= {y} and {y} < {h} and 0 <= {x} and {x} < {w}"


def conv_kernel(problem: Problem, tile: Tile) -> GpuKernel:
    """Return the kernel of a layer without groups."""
    return _Writer(problem, tile).kernel()


class _Writer:
    """Writes the text of one kernel."""

    def __init__(self, problem: Problem, tile: Tile) -> None:
        self.problem, self.tile = problem, tile
        self.blocks = -(-problem.geometry.oc // tile.channels)  # of channels
        self.steps = -(-problem.words // tile.words)
        self.vector = math.gcd(problem.pixel_words, tile.words, 4)  # words that are loaded at once
        self.pitch = tile.pixels + (4 if tile.pixels % 4 == 0 else 0)  # shared rows of other banks
        per_thread = tile.pixels * tile.words // self.vector / tile.threads
        self.loads, self.has_rest = math.ceil(per_thread), per_thread % 1 > 0
        per_thread = tile.channels * tile.words // 4 / tile.threads
        self.weight_loads, self.has_weight_rest = math.ceil(per_thread), per_thread % 1 > 0

    def kernel(self) -> GpuKernel:
        problem, tile = self.problem, self.tile
        n_channels = self.blocks * tile.channels
        n_weights = n_channels * self.steps * tile.words
        h, w = problem.geometry.kernel
        kind = f"conv{h}x{w}_{problem.tag}"
        blocks = self.blocks * -(-problem.pixels // tile.pixels)
        buffers = tuple(problem.buffers(n_weights, n_channels))
        return GpuKernel(kind, buffers, blocks, tile.threads, tuple(self._body()))

    def _body(self) -> list[str]:
        tile = self.tile
        return [
            f"m0: T.let[T.int32] = bx // {self.blocks} * {tile.pixels}",
            f"nb: T.let[T.int32] = bx % {self.blocks}",
            f"part: T.let[T.int32] = tx // {tile.group}",
            f"tm: T.let[T.int32] = tx % {tile.group} // {tile.channels // tile.columns}",
            f"tn: T.let[T.int32] = tx % {tile.channels // tile.columns}",
            f"SA = T.alloc_buffer(({tile.words * self.pitch},), 'int32', scope='shared')",
            f"SW = T.alloc_buffer(({tile.words * tile.channels},), 'int32', scope='shared')",
            f"place = T.alloc_buffer(({3 * self.loads},), 'int32', scope='local')",
            f"ra = T.alloc_buffer(({self.loads * self.vector},), 'int32', scope='local')",
            f"rw = T.alloc_buffer(({self.weight_loads * 4},), 'int32', scope='local')",
            f"fa = T.alloc_buffer(({tile.rows},), 'int32', scope='local')",
            f"fw = T.alloc_buffer(({tile.columns},), 'int32', scope='local')",
            f"acc = T.alloc_buffer(({tile.rows * tile.columns},), 'int32', scope='local')",
            *nest([f"for i in T.unroll({tile.rows * tile.columns}):"], ["acc[i] = 0"]),
            *self._places(),
            *self._load("0"),
            *nest([f"for s in range({self.steps}):"], self._step()),
            *self._join(),
            *self._store(),
        ]

    # ---- from memory, through registers, to shared memory

    def _places(self) -> list[str]:
        """Lines that find where each load of this thread begins."""
        lines = [
            f"m: T.let[T.int32] = m0 + {self._pixel}",
            *self.problem.first_tap("m"),
            "place[q * 3] = b0",
            # Pixels behind the last one lie far outside.
            f"place[q * 3 + 1] = T.if_then_else(m < {self.problem.pixels}, y0, -(1 << 24))",
            "place[q * 3 + 2] = x0",
        ]
        return nest([f"for q in T.unroll({self.loads}):"], lines)

    @property
    def _run(self) -> int:
        """Loads that fetch the words of one pixel."""
        return self.tile.words // self.vector

    @property
    def _pixel(self) -> str:
        return f"(tx + q * {self.tile.threads}) // {self._run}"

    @property
    def _word(self) -> str:
        return f"(tx + q * {self.tile.threads}) % {self._run} * {self.vector}"

    def _load(self, step: str) -> list[str]:
        """Lines that load what a step multiplies into registers."""
        problem, tile, v = self.problem, self.tile, self.vector
        (_, kw), (down, across) = problem.geometry.kernel, problem.geometry.dilation
        pixel, row = problem.pixel_words, problem.source.w * problem.pixel_words
        inside = problem.is_inside("y", "x")
        if problem.words % tile.words:
            inside = f"k < {problem.words} and {inside}"
        at = f"place[q * 3] * {problem.source.h * row} + y * {row} + x * {pixel} + k % {pixel}"
        sign, padding = _words(SIGN, v), _words(problem.padding, v)
        value = f"T.bitwise_xor(A4[{_ramp(at, v)}], {sign})"
        lines = [
            f"k: T.let[T.int32] = {step} * {tile.words} + {self._word}",
            f"y: T.let[T.int32] = place[q * 3 + 1] + k // {pixel * kw} * {down}",
            f"x: T.let[T.int32] = place[q * 3 + 2] + k // {pixel} % {kw} * {across}",
            f"ra[{_ramp(f'q * {v}', v)}] = T.if_then_else({inside}, {value}, {padding})",
        ]
        start = f"(nb * {self.steps} + {step}) * {tile.words * tile.channels}"
        place = f"tx + q * {tile.threads}"
        weights = [f"rw[{_ramp('q * 4', 4)}] = W[{_ramp(f'{start} + ({place}) * 4', 4)}]"]
        return [
            *nest([f"for q in T.unroll({self.loads}):", *self._guard()], lines),
            *nest([f"for q in T.unroll({self.weight_loads}):", *self._weight_guard()], weights),
        ]

    def _guard(self) -> list[str]:
        total = self.tile.pixels * self._run
        return [f"if tx + q * {self.tile.threads} < {total}:"] if self.has_rest else []

    def _weight_guard(self) -> list[str]:
        total = self.tile.channels * self.tile.words // 4
        return [f"if tx + q * {self.tile.threads} < {total}:"] if self.has_weight_rest else []

    def _share(self) -> list[str]:
        """Lines that write the registers to shared memory."""
        v = self.vector
        data = [
            f"SA[({self._word} + {i}) * {self.pitch} + {self._pixel}] = ra[q * {v} + {i}]"
            for i in range(v)
        ]
        place = f"(tx + q * {self.tile.threads}) * 4"
        weights = [f"SW[{_ramp(place, 4)}] = rw[{_ramp('q * 4', 4)}]"]
        return [
            *nest([f"for q in T.unroll({self.loads}):", *self._guard()], data),
            *nest([f"for q in T.unroll({self.weight_loads}):", *self._weight_guard()], weights),
        ]

    # ---- products

    def _step(self) -> list[str]:
        sync = "T.evaluate(T.tvm_storage_sync('shared'))"
        more = nest([f"if s + 1 < {self.steps}:"], self._load("(s + 1)")) if self.steps > 1 else []
        return [*self._share(), sync, *more, *self._multiply(), sync]

    def _multiply(self) -> list[str]:
        tile = self.tile
        place = f"acc[i * {tile.columns} + j]"
        product = f"{place} = T.call_pure_extern('int32', '__dp4a', fa[i], fw[j], {place})"
        return nest(
            [f"for t in T.unroll({tile.words // tile.parts}):"],
            [
                f"word: T.let[T.int32] = t * {tile.parts} + part",
                *self._fetch("fa", "SA", self.pitch, self._row, tile.rows),
                *self._fetch("fw", "SW", tile.channels, self._column, tile.columns),
                *nest(
                    [f"for i in T.unroll({tile.rows}):", f"for j in T.unroll({tile.columns}):"],
                    [product],
                ),
            ],
        )

    def _fetch(self, to: str, shared: str, pitch: int, place: str, count: int) -> list[str]:
        """Lines that load a thread's words of one operand from shared memory."""
        v = math.gcd(count, 4)
        source = f"{shared}[{_ramp(f'word * {pitch} + {place}', v)}]"
        return nest(
            [f"for g in T.unroll({count // v}):"], [f"{to}[{_ramp(f'g * {v}', v)}] = {source}"]
        )

    @property
    def _row(self) -> str:
        """First pixel of the `g`-th few of a thread: neighbours have neighbouring ones."""
        few = math.gcd(self.tile.rows, 4)
        return f"g * {self.tile.pixels * few // self.tile.rows} + tm * {few}"

    @property
    def _column(self) -> str:
        return f"g * {self.tile.channels * 4 // self.tile.columns} + tn * 4"

    # ---- results

    def _join(self) -> list[str]:
        """Lines that add up the sums of all parts in the first group of threads."""
        tile = self.tile
        if tile.parts == 1:
            return []
        size, group = tile.rows * tile.columns, tile.group
        loop = f"for i in T.unroll({size}):"
        place = f"SP[({{}} * {size} + i) * {group} + tx % {group}]"
        parts = " + ".join(place.format(p) for p in range(tile.parts - 1))
        return [
            f"SP = T.alloc_buffer(({(tile.parts - 1) * size * group},), 'int32', scope='shared')",
            *nest(["if part > 0:", loop], [f"{place.format('(part - 1)')} = acc[i]"]),
            "T.evaluate(T.tvm_storage_sync('shared'))",
            *nest(["if part == 0:", loop], [f"acc[i] = acc[i] + {parts}"]),
        ]

    def _store(self) -> list[str]:
        problem, tile = self.problem, self.tile
        few, pitch = math.gcd(tile.rows, 4), problem.output.cp
        row = f"r // {few} * {tile.pixels * few // tile.rows} + tm * {few} + r % {few}"
        total = f"acc[T.ramp(r * {tile.columns} + g * 4, 1, 4)] + B[T.ramp(channel, 1, 4)]"
        lines = store_sums(
            *(problem.sink, total, "channel", f"pixel * {pitch} + channel"),
            has_fraction=problem.has_fraction,
        )
        guards = [] if tile.parts == 1 else ["part == 0"]
        if problem.pixels % tile.pixels:
            guards.append(f"pixel < {problem.pixels}")
        if pitch < self.blocks * tile.channels:
            guards.append(f"channel < {pitch}")
        guard = [f"if {' and '.join(guards)}:"] if guards else []
        return nest(
            [
                *(f"for r in T.unroll({tile.rows}):", f"for g in T.unroll({tile.columns // 4}):"),
                f"pixel: T.let[T.int32] = m0 + {row}",
                f"channel: T.let[T.int32] = nb * {tile.channels} + {self._column}",
                *guard,
            ],
            lines,
        )


def _ramp(start: str, lanes: int) -> str:
    return f"T.ramp({start}, 1, {lanes})" if lanes > 1 else start


def _words(word: int, lanes: int) -> str:
    return f"T.broadcast(T.int32({word}), {lanes})" if lanes > 1 else f"T.int32({word})"
