"""Convolution and linear kernels: one skeleton, one inner product per form.

An image is NHWC with a border that already holds the padding value, so one kernel row of `kw` x
`ic` numbers is one contiguous run. The skeleton walks over segments (such runs; one per kernel
row, or one per tap where dilation or groups break the run up) from a table of offsets. That covers
any kernel size, stride, dilation and group count. Output channels are taken in blocks of `ocb`,
pixels in tiles of `th` x `tw`; a last block or tile that does not fit is moved back and overlaps
its neighbour. Threads share tasks: blocks, whose rows of tiles may be cut into `chunks`. From one
block to the next it is `bs` tasks, from chunk to chunk `cs`.

Table `G`: the offset of each segment; per block the offset of its first input channel; per block
its run, in the form that has one; per block the place of its output, if blocks are spread over
several pixels (a transposed convolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from . import amx, epilogue, neon
from .epilogue import Epilogue
from .script import (
    LINE_BYTES,
    Kernel,
    fill_border,
    in_groups,
    intrinsic,
    local_buffer,
    nest,
    parallel,
    prefetch,
    shuffle,
)

INTS = (
    *("n", "ho", "wo", "oc", "blocks", "chunks", "bs", "cs", "segments", "steps"),
    *("ans", "ars", "acs", "dns", "drs", "dcs", "doff", "db", "shift"),
    *epilogue.INTS,
)
_AMX = ("kt", "cfg")  # steps that are multiplied at once, place of the tiles' sizes in `G`
_SPREAD = ("fh", "fw", "frs", "fcs")  # size and strides of the whole output, for its border

WIDE_ORDER = (0, 1, 4, 5, 2, 3, 6, 7)  # `phaddd` of two registers puts these back in order


@dataclass(frozen=True, slots=True)
class Form:
    """How a kernel multiplies and sums.

    Attributes:
        name: `f32` (fused multiply-add), `f16` (the same with weights widened as they are read),
            `pair1`, `pair2`, `pair4` (x86 `pmaddubsw`, that many
            products summed in s16 before they are widened to s32), `rolled` (s16 sums over a run
            that is read from the table, two steps per iteration), `wide` (AVX2, s16 x s16 for
            weights of full 8 bits), `words` (x86, the same on data that were widened before,
            which takes half the registers), `dot` (`vpdpbusd`: exact at any width), `amx` as in
            `amx.py`, `plain` (s32 products, any CPU); `neon_...` as in `neon.py`.
        group: Input numbers per step.
        unroll: The number of steps per segment is a multiple of this.
        weights: dtype of the packed weights.
        is_shifted: Whether the kernel takes `shift` off the data, so that they fit s8.
        data: dtype of the image that integer forms read.
    """

    name: str
    group: int
    unroll: int
    weights: str
    is_shifted: bool = False
    data: str = "uint8"

    @property
    def is_integer(self) -> bool:
        """Whether sums are integers."""
        return not self.weights.startswith("float")

    @property
    def is_neon(self) -> bool:
        """Whether the form is one of `neon.py`."""
        return self.name.startswith("neon_")


FORMS = {
    form.name: form
    for form in (
        Form("f32", group=1, unroll=1, weights="float32"),
        Form("f16", group=1, unroll=1, weights="float16"),
        Form("pair1", group=4, unroll=1, weights="int8"),
        Form("pair2", group=4, unroll=2, weights="int8"),
        Form("pair4", group=4, unroll=4, weights="int8"),
        Form("rolled", group=4, unroll=2, weights="int8"),
        Form("wide", group=4, unroll=1, weights="int16"),
        Form("words", group=2, unroll=1, weights="int16", data="int16"),
        Form("dot", group=4, unroll=1, weights="int8"),
        Form("amx", group=4, unroll=1, weights="int8"),
        Form("plain", group=1, unroll=1, weights="int8"),
        Form("neon_f32", group=1, unroll=1, weights="float32"),
        Form("neon_mull1", group=8, unroll=1, weights="int8", is_shifted=True),
        Form("neon_mull2", group=8, unroll=1, weights="int8", is_shifted=True),
        Form("neon_mull3", group=8, unroll=1, weights="int8", is_shifted=True),
        Form("neon_dot", group=4, unroll=1, weights="int8", is_shifted=True),
        Form("neon_usdot", group=4, unroll=1, weights="int8"),
        Form("neon_mmla", group=8, unroll=1, weights="int8"),
    )
}


_STEPS_AHEAD = 32  # 24 to 48 gave the same

X86_FORMS = ("pair1", "pair2", "pair4", "rolled", "wide", "words", "dot", "amx")


@dataclass(frozen=True, slots=True, order=True)
class Knobs:
    """Settings of a kernel: form, lanes of a register, tile in channels, rows and columns."""

    form: str
    lanes: int
    ocb: int
    th: int
    tw: int


def conv_kernel(
    knobs: Knobs,
    stores: Epilogue,
    threads: int,
    *,
    is_spread: bool = False,
    prefetches: bool = False,
) -> Kernel:
    """Return the kernel of a convolution or linear layer.

    Buffers: `A` input image, `W` packed weights (see `packing.pack`), `B` bias (int32, or float32
    for the float form), `S` scale per channel (integer forms), `G` the int32 table, what the
    epilogue adds, `D` output image. With `is_spread`, the table says where each block goes, and
    rows and pixels of the output are those of one phase. With `prefetches`, weights are asked for
    some steps before they are multiplied.
    """
    form = FORMS[knobs.form]
    data, bias = (form.data, "int32") if form.is_integer else ("float32", "float32")
    buffers = [("A", data), ("W", form.weights), ("B", bias)]
    buffers += [("S", "float32")] if form.is_integer else []
    buffers += [("G", "int32"), *stores.buffers, ("D", stores.output)]
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    place = f"G[segments + {1 + (form.name == 'rolled')} * blocks + o]"
    tasks = f"for task in {parallel('blocks * chunks', threads)}:"
    loops = [
        # Terms with `//` are kept in memory: TVM would put them into every address, and simplify
        # them there for seconds.
        local_buffer("at", "int32", 6),
        "at[0] = task // bs % blocks",
        "o: T.let[T.int32] = at[0]",
        f"ob: T.let[T.int32] = T.min(o * {knobs.ocb}, oc - {knobs.ocb})",
        "oo: T.let[T.int32] = G[segments + o]",
        *(["run: T.let[T.int32] = G[segments + blocks + o]"] if form.name == "rolled" else []),
        *([f"to: T.let[T.int32] = {place}"] if is_spread else []),
        f"at[1] = n * ((ho + {knobs.th - 1}) // {knobs.th})",
        "at[5] = task // cs % chunks",
        "at[2] = at[5] * at[1] // chunks",
        "for r in range((at[5] + 1) * at[1] // chunks - at[2]):",
        f"at[3] = (at[2] + r) // ((ho + {knobs.th - 1}) // {knobs.th})",
        f"at[4] = (at[2] + r) % ((ho + {knobs.th - 1}) // {knobs.th})",
        "b: T.let[T.int32] = at[3]",
        f"hb: T.let[T.int32] = T.min(at[4] * {knobs.th}, ho - {knobs.th})",
        f"for wt in range((wo + {knobs.tw - 1}) // {knobs.tw}):",
    ]
    body = [
        f"wb: T.let[T.int32] = T.min(wt * {knobs.tw}, wo - {knobs.tw})",
        *Tile(form, knobs, stores, "to" if is_spread else "ob", prefetches=prefetches).lines(),
    ]
    name = f"{'fc' if knobs.th * knobs.tw == 1 else 'conv'}_{form.name}_{stores.tag}"
    name += "_prefetch" if prefetches else ""
    sizes = _SPREAD if is_spread else ("ho", "wo", "drs", "dcs")
    lines = nest(loops, body)
    if form.name != "amx":
        lines = nest([tasks], lines)
    elif threads > 1:  # every thread has tiles of its own
        lines = nest([tasks], [amx.BEGIN, *lines, amx.END])
    else:
        lines = [amx.BEGIN, *nest([tasks], lines), amx.END]
    return Kernel(
        kind=f"spread_{name}" if is_spread else name,
        buffers=tuple(buffers),
        ints=(*INTS, *(_SPREAD if is_spread else ()), *(_AMX if form.name == "amx" else ())),
        floats=epilogue.FLOATS,
        body=(*fill_border("D", border, stores.output, sizes), *lines),
    )


class Tile:
    """Writes the lines of one tile: clear, accumulate, store."""

    def __init__(
        self,
        form: Form,
        knobs: Knobs,
        stores: Epilogue,
        to: str = "ob",
        *,
        prefetches: bool = False,
    ) -> None:
        self.form, self.knobs, self.stores, self.to = form, knobs, stores, to
        self.prefetches = prefetches
        self.lanes = knobs.lanes
        self.vectors = knobs.ocb // self.lanes * (2 if form.name == "wide" else 1)
        if form.is_neon and form.group == 8 and form.is_shifted:
            self.vectors = knobs.ocb  # sums of one channel fill a vector
        # The other integer forms have vectors of partial sums, or tiles.
        has_sums = not form.is_neon and form.name not in ("wide", "amx")
        self.starts_at_bias = has_sums or not form.is_integer
        self.pixels = knobs.th * knobs.tw
        self.size = self.pixels * self.vectors
        self.at = f"(i * {knobs.tw} + j) * {self.vectors} + v"
        self.acc = f"acc[{self.at}, T.ramp(0, 1, {self.lanes})]"
        self.acc16 = f"acc16[{self.at}, T.ramp(0, 1, {2 * self.lanes})]"

    def each(self, *lines: str, vectors: int | None = None) -> list[str]:
        """Unrolled loops over the pixels and vectors of the tile; 0 leaves out the vectors."""
        loops = [("i", self.knobs.th), ("j", self.knobs.tw)]
        loops += [("v", self.vectors if vectors is None else vectors)] if vectors != 0 else []
        return nest([f"for {name} in T.unroll({extent}):" for name, extent in loops], lines)

    # ---- addresses

    def starts(self, pixel: str, weights: str) -> list[str]:
        """Lines that note where pixels (of row `i` and column `j`) and weights begin.

        In 64 bits: of places in 32, an innermost loop on x86 makes addresses in every step. Arm
        extends a place as it loads, and has no registers left for the longer ones.
        """
        if self.form.name == "amx":
            return []
        if self.form.is_neon:
            return [f"wb0: T.let[T.int32] = {weights}"]
        start = f"start[i * {self.knobs.tw} + j]"
        return [
            local_buffer("start", "int64", self.pixels + 1),
            *self.each(f"{start} = T.Cast('int64', {pixel})", vectors=1),
            f"start[{self.pixels}] = T.Cast('int64', {weights})",
        ]

    def number(self, at: str) -> str:
        """Number `at` of the pixel at hand."""
        return f"A[{self._place(at)}]"

    def numbers(self, at: str, lanes: int, i: str = "i", j: str = "j") -> str:
        """Numbers of a pixel from `at` on."""
        return f"A[{self._ramp(self._place(at, i, j), lanes)}]"

    def weights(self, at: str, lanes: int = 1) -> str:
        """Weights from `at` on."""
        first = f"start[{self.pixels}] + T.Cast('int64', {at})"
        first = f"wb0 + {at}" if self.form.is_neon else first
        return f"W[{first if lanes == 1 else self._ramp(first, lanes)}]"

    def _place(self, at: str, i: str = "i", j: str = "j") -> str:
        if self.form.is_neon:
            return f"ab + {i} * ars + {j} * acs + {at}"
        return f"start[{i} * {self.knobs.tw} + {j}] + T.Cast('int64', {at})"

    def _ramp(self, first: str, lanes: int) -> str:
        stride = "1" if self.form.is_neon else "T.int64(1)"
        return f"T.ramp({first}, {stride}, {lanes})"

    # ---- the tile

    def lines(self) -> list[str]:
        """All lines of the tile."""
        dtype = "int32" if self.form.is_integer else "float32"
        lanes = self.lanes
        start = f"T.broadcast(0, {lanes})"
        if self.starts_at_bias:
            start = f"B[T.ramp(ob + v * {lanes}, 1, {lanes})]"
        is_amx = self.form.name == "amx"
        lines = [amx.sums_buffer(self) if is_amx else local_buffer("acc", dtype, self.size, lanes)]
        if self.form.is_neon:
            lines += neon.buffers(self)
        if self.form.name == "rolled":
            lines.append(local_buffer("acc16", "int16", self.size, 2 * lanes))
        step = self.knobs.ocb * self.form.group
        segment = [
            "ab: T.let[T.int32] = b * ans + hb * ars + wb * acs + G[g] + oo",
            *self.starts("ab + i * ars + j * acs", f"(o * segments + g) * steps * {step}"),
            *self.accumulate(),
        ]
        first, last = self.each(f"{self.acc} = {start}"), list[str]()
        if is_amx:
            first, last = amx.clear(self), amx.spill(self)
        loop = nest(["for g in range(segments):"], segment)
        return [*lines, *first, *loop, *last, *self._store()]

    # ---- inner products

    def _prefetch(self, *steps: str) -> list[str]:
        """Lines that prefetch the weights of later steps, a cache line at a time."""
        if not self.prefetches:
            return []
        size = self.knobs.ocb * self.form.group
        line = LINE_BYTES // np.dtype(self.form.weights).itemsize
        places = [
            f"({step} + {_STEPS_AHEAD}) * {size} + {at}"
            for step in steps
            for at in range(0, size, line)
        ]
        return [prefetch(self.weights(place)) for place in places]

    def accumulate(self) -> list[str]:
        """Lines that add one segment to the sums."""
        if self.form.is_neon:
            return neon.accumulate(self)
        if self.form.name == "amx":
            return amx.accumulate(self)
        ways = {
            **{"f32": self._f32, "f16": self._f32, "rolled": self._rolled, "wide": self._wide},
            **{"words": self._words, "dot": self._dot, "plain": self._plain},
        }
        return ways.get(self.form.name, self._pair)()

    def _data(self, step: str) -> str:
        """A step of the input, four bytes, as a scalar int32."""
        group = self.form.group
        return f"T.reinterpret('int32', {self.numbers(f'({step}) * {group}', group)})"

    def _weights(self, step: str, lanes: int) -> str:
        size = self.knobs.ocb * self.form.group
        return self.weights(f"({step}) * {size} + v * {lanes}", lanes)

    def repeated(self, step: str) -> str:
        """Four bytes of the input in every lane."""
        lanes = self.lanes
        return f"T.reinterpret('uint8x{4 * lanes}', T.broadcast({self._data(step)}, {lanes}))"

    def _madd_bytes(self, step: str) -> str:
        """Sums of two u8 x s8 products in s16; the caller has proved that they fit."""
        name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[self.lanes]
        weights = self._weights(step, 4 * self.lanes)
        return intrinsic(f"int16x{2 * self.lanes}", name, self.repeated(step), weights)

    def _madd_words(self, left: str, right: str) -> str:
        """Sums of two s16 x s16 products in s32."""
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[self.lanes]
        return intrinsic(f"int32x{self.lanes}", name, left, right)

    def _widen(self, sums16: str) -> str:
        """Neighbouring s16 lanes added into s32 lanes."""
        return self._madd_words(sums16, f"T.broadcast(T.int16(1), {2 * self.lanes})")

    def _pair(self) -> list[str]:
        run = self.form.unroll
        total = " + ".join(self._madd_bytes(f"c * {run} + {s}") for s in range(run))
        lines = self.each(f"{self.acc} = {self.acc} + {self._widen(f'({total})')}")
        prefetch = self._prefetch(*(f"c * {run} + {s}" for s in range(run)))
        return nest([f"for c in range(steps // {run}):"], [*prefetch, *lines])

    def _rolled(self) -> list[str]:
        steps = [f"c * run + s * 2 + {u}" for u in (0, 1)]
        sums = [self.each(f"{self.acc16} = {self.acc16} + {self._madd_bytes(s)}") for s in steps]
        lines = [
            *self.each(f"{self.acc16} = T.broadcast(T.int16(0), {2 * self.lanes})"),
            *nest(
                ["for s in range(T.min(run, steps - c * run) // 2):"],
                [*self._prefetch(*steps), *sums[0], *sums[1]],
            ),
            *self.each(f"{self.acc} = {self.acc} + {self._widen(self.acc16)}"),
        ]
        return nest(["for c in range((steps + run - 1) // run):"], lines)

    def _wide(self) -> list[str]:
        data = f"T.Cast('int16x16', T.reinterpret('uint8x16', T.broadcast({self._data('c')}, 4)))"
        product = self._madd_words(data, self._weights("c", 16))
        return self._each_step(f"{self.acc} = {self.acc} + {product}")

    def _words(self) -> list[str]:
        lanes = self.lanes
        data = f"T.reinterpret('int16x{2 * lanes}', T.broadcast({self._data('c')}, {lanes}))"
        product = self._madd_words(data, self._weights("c", 2 * lanes))
        return self._each_step(f"{self.acc} = {self.acc} + {product}")

    def _dot(self) -> list[str]:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        total = intrinsic(
            f"int32x{self.lanes}",
            name,
            self.acc,
            self.repeated("c"),
            self._weights("c", 4 * self.lanes),
        )
        return self._each_step(f"{self.acc} = {total}")

    def _plain(self) -> list[str]:
        data = f"T.broadcast(T.Cast('int32', {self.number('c')}), 8)"
        product = f"{data} * T.Cast('int32x8', {self._weights('c', 8)})"
        return self._each_step(f"{self.acc} = {self.acc} + {product}")

    def _f32(self) -> list[str]:
        lanes = self.lanes
        data = f"T.broadcast({self.number('c')}, {lanes})"
        name = f"llvm.fmuladd.v{lanes}f32"
        weights = self._weights("c", lanes)
        if self.form.name == "f16":
            weights = f"T.Cast('float32x{lanes}', {weights})"
        total = intrinsic(f"float32x{lanes}", name, data, weights, self.acc)
        return self._each_step(f"{self.acc} = {total}")

    def _each_step(self, line: str) -> list[str]:
        return nest(["for c in range(steps):"], [*self._prefetch("c"), *self.each(line)])

    # ---- result

    def _store(self) -> list[str]:
        if self.form.name == "neon_mmla":
            # Where a sum lies depends on the pixel: it must be known in the text.
            loop = [f"for v in T.unroll({self.knobs.ocb // 8}):"]
            places = [(i, j) for i in range(self.knobs.th) for j in range(self.knobs.tw)]
            return [line for place in places for line in nest(loop, self._stored(8, "v", *place))]
        lanes = max(self.lanes, 8)
        if not self.stores.narrows_together:
            return self.each(*self._stored(lanes), vectors=self.knobs.ocb // lanes)
        # Three registers would be stored in pieces; more of an activation would leave them.
        sizes = (2, 1) if self.stores.activation else (4, 2, 1)
        pixels = [*product(range(self.knobs.th), range(self.knobs.tw))]
        lines = []
        for vectors in in_groups(range(self.knobs.ocb // lanes), sizes):
            counts = [size // len(vectors) for size in sizes if size >= len(vectors)]
            for group in in_groups(pixels, counts):
                lines += nest(["for s in T.unroll(1):"], self._stored_together(group, vectors))
        return lines

    def _stored_together(
        self, pixels: Sequence[tuple[int, int]], vectors: Sequence[int]
    ) -> list[str]:
        """Lines that store the same neighbouring vectors of pixels, given as row and column."""
        first, size = str(vectors[0]), len(vectors) * self.lanes
        places = [self._place_of(self.lanes, first, *pixel, len(vectors)) for pixel in pixels]
        sums = [self.sums(*pixel, v) for pixel in pixels for v in vectors]
        total = shuffle(sums, range(len(pixels) * size))
        if not self.starts_at_bias:
            bias = [f"B[{place.channel}]" for place in places]
            total = f"({total} + {shuffle(bias, range(len(pixels) * size))})"
        return self.stores.integer(places, total, self.lanes)

    def _stored(
        self, lanes: int, v: str = "v", i: str | int = "i", j: str | int = "j"
    ) -> list[str]:
        """Lines that store `lanes` channels, the `v`-th of so many, of a pixel of the tile."""
        place, sums = self._place_of(lanes, v, i, j), self.sums(i, j, v)
        if not self.form.is_integer:
            return self.stores.real(place, sums)
        bias = "" if self.starts_at_bias else f" + B[{place.channel}]"
        return self.stores.integer([place], f"({sums}{bias})")

    def _place_of(
        self, lanes: int, v: str, i: str | int, j: str | int, count: int = 1
    ) -> epilogue.Place:
        """Place of `count` vectors of so many lanes of a pixel, from the `v`-th on."""
        size = count * lanes
        pixel = f"b * {{0}}ns + (hb + {i}) * {{0}}rs + (wb + {j}) * {{0}}cs + {{0}}off"
        residual, output = (
            f"T.ramp({pixel.format(image)} + {block} + {v} * {lanes}, 1, {size})"
            for image, block in (("r", "ob"), ("d", self.to))
        )
        channel = f"T.ramp(ob + {v} * {lanes}, 1, {size})"
        return epilogue.Place(size, channel, f"D[{output}]", residual)

    def sums(self, i: str | int = "i", j: str | int = "j", v: str | int = "v") -> str:
        """Sums of the tile; the wide form holds two partial sums per channel in two registers."""
        if self.form.is_neon:
            return neon.sums(self, i, j)
        first = f"({i} * {self.knobs.tw} + {j}) * {self.vectors}"
        if self.form.name == "amx":
            return f"acc[{first} + {v}]"
        if self.form.name != "wide":
            return f"acc[{first} + {v}, T.ramp(0, 1, {self.lanes})]"
        halves = [f"acc[{first} + {v} * 2 + {half}, T.ramp(0, 1, 8)]" for half in (0, 1)]
        return intrinsic("int32x8", "llvm.x86.avx2.phadd.d", *halves)
