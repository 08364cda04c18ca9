"""Depthwise convolution: every channel has its own kernel, so vectors run over channels.

The pixels of a tile are unrolled and share what they load: each input column is read (and brought
to the form that the products need) once, then meets the weights of every output pixel that it
belongs to. Integer forms multiply several kernel rows at once: the bytes of two or four rows are
interleaved, so that one instruction adds that many products of a channel. Where the kernel's rows
leave room in a group, a tile of several rows fills it: each row has weights of its own then, with
zeros for the rows of the input that only the others need.

Where pixels of few channels follow each other in the input as well, some are folded into one of as
many more channels, so that vectors are full: the output then has `wf` columns of `cf` channels.

Table `G`: the offset of each input row of a tile, in groups of as many rows as the form multiplies
at once; a group that is not full repeats a row, against zero weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from . import epilogue
from .epilogue import Epilogue, Place
from .script import (
    Kernel,
    fill_border,
    in_groups,
    intrinsic,
    local_buffer,
    nest,
    parallel,
    shuffle,
)

INTS = (
    *("n", "ho", "wo", "ans", "ars", "px"),
    *("dns", "drs", "dcs", "doff", "db", "shift", "wf", "cf"),
    *epilogue.INTS,
)


@dataclass(frozen=True, slots=True)
class DepthwiseForm:
    """How a kernel multiplies and sums.

    Attributes:
        name: `dw_f32` (fused multiply-add), `dw_plain` (s32 products, any CPU), `dw_taps` (x86
            `pmaddwd`, one product per lane), `dw_pairs` (the same on two rows in s16), `dw_quads`
            (x86 `pmaddubsw` on four rows, widened after every step), `dw_runs` (the same, summed
            in s16 over the columns of a group), `dw_dot` (`vpdpbusd` on four rows). NEON:
            `dw_words` (`smlal` of s16 into s32), `dw_row` and `dw_all` (`smlal` of bytes into s16,
            widened after each row or once), `dw_sdot` and `dw_usdot` (on four rows).
        rows: Kernel rows that are multiplied at once.
        weights: dtype of the packed weights.
        is_shifted: Whether the kernel takes `shift` off the data, so that they fit s8.
    """

    name: str
    rows: int
    weights: str
    is_shifted: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether the kernel reads uint8 images."""
        return self.weights != "float32"


FORMS = {
    form.name: form
    for form in (
        DepthwiseForm("dw_f32", 1, "float32"),
        DepthwiseForm("dw_plain", 1, "int32"),
        DepthwiseForm("dw_taps", 1, "int32"),
        DepthwiseForm("dw_pairs", 2, "int16"),
        DepthwiseForm("dw_quads", 4, "int8"),
        DepthwiseForm("dw_runs", 4, "int8"),
        DepthwiseForm("dw_dot", 4, "int8"),
        DepthwiseForm("dw_words", 1, "int16"),
        DepthwiseForm("dw_row", 1, "int8", is_shifted=True),
        DepthwiseForm("dw_all", 1, "int8", is_shifted=True),
        DepthwiseForm("dw_sdot", 4, "int8", is_shifted=True),
        DepthwiseForm("dw_usdot", 4, "int8"),
    )
}


X86_FORMS = ("dw_taps", "dw_pairs", "dw_quads", "dw_runs", "dw_dot")


@dataclass(frozen=True, slots=True)
class Window:
    """What is fixed in a kernel's text.

    Attributes:
        groups: Groups of the kernel rows of all rows of a tile.
        columns: Kernel columns.
        stride, dilation: Horizontal, in pixels of the input.
        blocks: Channels of a block, widest first. All but the last width are used as often as
            whole blocks fit; the last covers the rest, its last block moved back.
        th, tw: Rows and columns of the output in a tile.
    """

    groups: int
    columns: int
    stride: int
    dilation: int
    blocks: tuple[int, ...]
    th: int
    tw: int

    @property
    def pixels(self) -> int:
        """Output pixels of a tile, counted row by row."""
        return self.th * self.tw

    @property
    def taps(self) -> int:
        """Weights of a channel and a row of the input: one for each row of the tile and column."""
        return self.th * self.columns

    def uses(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """Return each input column of a tile with pairs of an output pixel and its weights.

        Those are counted through the rows of the tile first, then through the kernel's columns.
        """
        found: dict[int, list[tuple[int, int]]] = {}
        for i, j in product(range(self.th), range(self.tw)):
            for k in range(self.columns):
                pair = i * self.tw + j, k * self.th + i
                found.setdefault(j * self.stride + k * self.dilation, []).append(pair)
        return sorted(found.items())


def depthwise_kernel(
    form: DepthwiseForm, window: Window, stores: Epilogue, threads: int
) -> Kernel:
    """Return the kernel of a depthwise convolution with one output per input channel.

    Buffers: `A` input image, `W` packed weights (see `depthwise.pack`), `B` bias, `S` scale
    (integer only; both as `is_woven` says), `G` offsets of kernel rows, what the epilogue adds,
    `D` output image.

    Args:
        form: How it multiplies.
        window: Sizes that are fixed.
        stores: What is stored.
        threads: Number of threads of the network.
    """
    data, sums = ("uint8", "int32") if form.is_integer else ("float32", "float32")
    buffers = [("A", data), ("W", form.weights), ("B", sums)]
    buffers += [("S", "float32")] if form.is_integer else []
    buffers += [("G", "int32"), *stores.buffers, ("D", stores.output)]
    loops = [
        f"for t in {parallel(f'(ho + {window.th - 1}) // {window.th}', threads)}:",
        f"y: T.let[T.int32] = T.min(t * {window.th}, ho - {window.th})",
        "for b in range(n):",
        f"for wt in range((wf + {window.tw - 1}) // {window.tw}):",
        f"wb: T.let[T.int32] = T.min(wt * {window.tw}, wf - {window.tw})",
    ]
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    return Kernel(
        kind=f"{form.name}_{window.columns}_{stores.tag}",
        buffers=tuple(buffers),
        ints=INTS,
        floats=epilogue.FLOATS,
        body=(
            *fill_border("D", border, stores.output),
            *nest(loops, _all_channels(form, window, stores)),
        ),
    )


def _all_channels(form: DepthwiseForm, window: Window, stores: Epilogue) -> list[str]:
    """Lines that compute all channels of a tile, block after block."""
    body: list[str] = []
    done = "0"  # channels before those of the loop at hand
    for width in window.blocks:
        is_last = width == window.blocks[-1]
        count = f"(cf - {done} + {width - 1}) // {width}" if is_last else f"cf // {width}"
        channel = f"{done} + c * {width}"
        start = f"T.min({channel}, cf - {width})" if is_last else channel
        lines = [
            f"cb: T.let[T.int32] = {start}",
            f"pc: T.let[T.int32] = {channel}",
            f"wc: T.let[T.int32] = pc * {window.groups * window.taps * form.rows}",
            *_Tile(form, window, width, stores).lines(),
        ]
        body += nest([f"for c in range({count}):"], lines)
        done = f"cf // {width} * {width}"
    return body


def is_woven(form: DepthwiseForm, stores: Epilogue) -> bool:
    """Return whether bias and scale of each block lie in the order of its sums.

    That order is one of its own where rows are interleaved. Narrowing puts it right by itself.
    """
    return form.rows > 1 and not stores.keeps_order


class _Tile:
    """Writes the lines that compute a block of channels of a tile."""

    def __init__(self, form: DepthwiseForm, window: Window, width: int, stores: Epilogue) -> None:
        self.form, self.window, self.width, self.stores = form, window, width, stores
        self.parts = form.rows  # interleaving leaves that many vectors of sums
        self.lanes = width // self.parts
        self.in_16 = form.name in ("dw_runs", "dw_row", "dw_all")
        self.lanes_16 = self.lanes * (2 if form.name == "dw_runs" else 1)
        self.is_woven = is_woven(form, stores)
        self.starts_at_bias = self.is_woven or form.rows == 1
        self.data = "int8" if form.is_shifted else "uint8" if form.is_integer else "float32"

    def acc(self, j: int, v: int, of: str = "acc") -> str:
        """Sums of part `v` of output pixel `j`."""
        lanes = self.lanes_16 if of == "acc16" else self.lanes
        return f"{of}[{j * self.parts + v}, T.ramp(0, 1, {lanes})]"

    def every(self, line: str) -> list[str]:
        """A line for every vector of sums; `{acc}` and `{acc16}` stand for it."""
        return [
            line.format(acc=self.acc(j, v), acc16=self.acc(j, v, "acc16"))
            for j in range(self.window.pixels)
            for v in range(self.parts)
        ]

    def lines(self) -> list[str]:
        """All lines of the block."""
        dtype = "int32" if self.form.is_integer else "float32"
        size = self.window.pixels * self.parts
        lines = [local_buffer("acc", dtype, size, self.lanes)]
        if self.in_16:
            lines += [local_buffer("acc16", "int16", size, self.lanes_16)]
        if self.form.rows > 1:
            lines += [local_buffer(name, self.data, self.parts, self.width) for name in "pq"]
        lines += [
            f"{self.acc(j, v)} = {self._start(v)}"
            for j in range(self.window.pixels)
            for v in range(self.parts)
        ]
        group = [
            *(
                f"a{t}: T.let[T.int64] = T.Cast('int64', b * ans + y * ars"
                f" + wb * px * {self.window.stride} + cb + G[g * {self.form.rows} + {t}])"
                for t in range(self.form.rows)
            ),
            f"wg: T.let[T.int32] = wc + g * {self.window.taps * self.form.rows * self.width}",
            *self._group(),
        ]
        start16 = self.every(f"{{acc16}} = T.broadcast(T.int16(0), {self.lanes_16})")
        widened = self.every(f"{{acc}} = {{acc}} + {self._widen('{acc16}')}")
        if self.in_16 and self.form.name != "dw_all":
            group = [*start16, *group, *widened]
        loop = nest([f"for g in range({self.window.groups}):"], group)
        if self.form.name == "dw_all":
            loop = [*start16, *loop, *widened]
        return [*lines, *loop, *self._store()]

    def _start(self, v: int) -> str:
        """What the sums of part `v` begin with."""
        if not self.starts_at_bias:
            return f"T.broadcast(0, {self.lanes})"
        first = f"pc + {v * self.lanes}" if self.is_woven else "cb"
        return f"B[T.ramp({first}, 1, {self.lanes})]"

    # ---- products

    def _group(self) -> list[str]:
        """Lines that add the products of one group of kernel rows."""
        lines: list[str] = []
        for x, uses in self.window.uses():
            lines += self._interleave(x)
            for j, k in uses:
                lines += [self._multiply_add(x, j, k, v) for v in range(self.parts)]
        return lines

    def _pixel(self, x: int, t: int = 0) -> str:
        values = f"A[T.ramp(a{t} + T.Cast('int64', px) * T.int64({x}), T.int64(1), {self.width})]"
        if not self.form.is_shifted:
            return values
        shift = f"T.broadcast(T.Cast('uint8', shift), {self.width})"
        return f"T.reinterpret('int8x{self.width}', {values} - {shift})"

    def _interleave(self, x: int) -> list[str]:
        """Lines that leave the rows of input column `x` interleaved in `q`."""
        if self.form.rows == 1:
            return []
        at = f"T.ramp(0, 1, {self.width})"
        if self.form.rows == 2:
            sides = self._zip(self._pixel(x, 0), self._pixel(x, 1), 1)
            return [f"q[{i}, {at}] = {side}" for i, side in enumerate(sides)]
        lines = []
        for t in (0, 2):
            sides = self._zip(self._pixel(x, t), self._pixel(x, t + 1), 1)
            lines += [f"p[{t + i}, {at}] = {side}" for i, side in enumerate(sides)]
        for i in (0, 1):
            sides = self._zip(f"p[{i}, {at}]", f"p[{i + 2}, {at}]", 2)
            lines += [f"q[{2 * i + k}, {at}] = {side}" for k, side in enumerate(sides)]
        return lines

    def _zip(self, left: str, right: str, size: int) -> tuple[str, str]:
        """Items of `size` bytes of two vectors in turns, as x86 unpacks them: in lanes of 16."""

        def half(first: int) -> str:
            index = [
                side + lane + first + item + byte
                for lane in range(0, self.width, 16)
                for item in range(0, 8, size)
                for side in (0, self.width)
                for byte in range(size)
            ]
            return f"T.Shuffle([{left}, {right}], {index})"

        return half(0), half(8)

    def _multiply_add(self, x: int, j: int, k: int, v: int) -> str:
        """The line that adds the products of input column `x` and weights `k` to pixel `j`."""
        acc, lanes, name = self.acc(j, v), self.lanes, self.form.name
        weight = (
            f"W[T.ramp(wg + {(k * self.parts + v) * self.width}, 1, {self.width})]"
            if self.form.rows > 1
            else f"W[T.ramp(wg + {k * self.width}, 1, {self.width})]"
        )
        data = f"q[{v}, T.ramp(0, 1, {self.width})]" if self.form.rows > 1 else self._pixel(x)
        if name == "dw_f32":
            name = f"llvm.fmuladd.v{lanes}f32"
            return f"{acc} = {intrinsic(f'float32x{lanes}', name, data, weight, acc)}"
        if name == "dw_dot":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            return f"{acc} = {intrinsic(f'int32x{lanes}', name, acc, data, weight)}"
        if name in ("dw_sdot", "dw_usdot"):
            name = f"llvm.aarch64.neon.{name[3:]}.v4i32.v16i8"
            return f"{acc} = {intrinsic('int32x4', name, acc, data, weight)}"
        if name in ("dw_words", "dw_row", "dw_all"):
            return self._long_add(acc, self.acc(j, v, "acc16"), data, weight)
        if name == "dw_pairs":
            words = _madd_words(lanes, f"T.Cast('int16x{self.width}', {data})", weight)
            return f"{acc} = {acc} + {words}"
        if self.form.rows == 1:
            return f"{acc} = {acc} + {self._tap(data, weight)}"
        product = _madd_bytes(lanes, data, weight)
        if self.in_16:
            acc16 = self.acc(j, v, "acc16")
            return f"{acc16} = {acc16} + {product}"
        return f"{acc} = {acc} + {self._widen(product)}"

    def _long_add(self, acc: str, acc16: str, data: str, weight: str) -> str:
        """The line that adds products of twice the width: `smlal` and `smlal2`."""
        size = self.width
        if self.form.name == "dw_words":
            words = f"T.Cast('int32x{size}', T.Cast('int16x{size}', {data}))"
            return f"{acc} = {acc} + {words} * T.Cast('int32x{size}', {weight})"
        sides = (f"T.Cast('int16x{size}', {side})" for side in (data, weight))
        return f"{acc16} = {acc16} + {' * '.join(sides)}"

    def _tap(self, data: str, weight: str) -> str:
        lanes = self.lanes
        data = f"T.Cast('int32x{lanes}', {data})"
        if self.form.name == "dw_plain":
            return f"{data} * {weight}"
        # The upper half of each lane of data is zero, so `pmaddwd` is a full product of small
        # numbers at half the cost.
        words = (f"T.reinterpret('int16x{2 * lanes}', {side})" for side in (data, weight))
        return _madd_words(lanes, *words)

    def _widen(self, sums16: str) -> str:
        """Sums in s16 as those in s32: x86 adds neighbouring lanes."""
        if self.form.name != "dw_runs" and self.in_16:
            return f"T.Cast('int32x{self.lanes}', {sums16})"
        return _madd_words(self.lanes, sums16, f"T.broadcast(T.int16(1), {2 * self.lanes})")

    # ---- result

    def _store(self) -> list[str]:
        if self.stores.narrows_together and (self.is_woven or self.parts == 1):
            return self._store_together()
        lanes = min(self.width, 16)
        lines = []
        for j in range(self.window.pixels):
            for o in range(self.width // lanes):
                place = self._place(j, o * lanes, lanes)
                total = self._in_order(j, o, lanes)
                if self.form.is_integer:
                    bias = "" if self.starts_at_bias else f" + B[{place.channel}]"
                    stored = self.stores.integer([place], f"({total}{bias})", self.lanes)
                else:
                    stored = self.stores.real(place, total)
                # A scope of their own for what an activation names.
                lines += nest(["for s in T.unroll(1):"], stored) if len(stored) > 1 else stored
        return lines

    def _place(self, j: int, first: int, lanes: int) -> Place:
        """Place of channels of output pixel `j`."""
        row, column = divmod(j, self.window.tw)
        pixel = f"b * {{0}}ns + (y + {row}) * {{0}}rs + (wb + {column}) * {{1}} + {{0}}off"
        pixel += f" + cb + {first}"
        residual, output = (
            f"T.ramp({pixel.format(image, pitch)}, 1, {lanes})"
            for image, pitch in (("r", "rcs"), ("d", "cf"))
        )
        channel = f"T.ramp({'pc' if self.is_woven else 'cb'} + {first}, 1, {lanes})"
        return Place(lanes, channel, f"D[{output}]", residual)

    def _store_together(self) -> list[str]:
        """Lines that narrow four registers at a time where there are as many."""
        lines = []
        sizes = [size // self.parts for size in (4, 2, 1) if size >= self.parts]
        for pixels in in_groups(range(self.window.pixels), sizes):
            places = [self._place(j, 0, self.width) for j in pixels]
            sums = [self.acc(j, v) for j in pixels for v in range(self.parts)]
            order = [n * self.width + at for n in range(len(pixels)) for at in self._channels()]
            total = shuffle(sums, range(len(order)))
            stored = self.stores.integer(places, total, self.lanes, order)
            lines += nest(["for s in T.unroll(1):"], stored)
        return lines

    def _channels(self) -> list[int]:
        """Which channel of the block each sum of a pixel belongs to."""
        each = 16 // self.parts
        return [
            lane // each * 16 + v * each + lane % each
            for v in range(self.parts)
            for lane in range(self.lanes)
        ]

    def _in_order(self, j: int, o: int, lanes: int) -> str:
        """Sums of `lanes` neighbouring channels of output pixel `j`."""
        if self.parts == 1:
            return self.acc(j, 0)
        each = lanes // self.parts
        index = [v * self.lanes + o * each + i for v in range(self.parts) for i in range(each)]
        return f"T.Shuffle([{', '.join(self.acc(j, v) for v in range(self.parts))}], {index})"


def _madd_bytes(lanes: int, data: str, weight: str) -> str:
    """Sums of two u8 x s8 products in s16; the caller has proved that they fit."""
    names = {
        4: "llvm.x86.ssse3.pmadd.ub.sw.128",
        8: "llvm.x86.avx2.pmadd.ub.sw",
        16: "llvm.x86.avx512.pmaddubs.w.512",
    }
    return intrinsic(f"int16x{2 * lanes}", names[lanes], data, weight)


def _madd_words(lanes: int, left: str, right: str) -> str:
    """Sums of two s16 x s16 products in s32."""
    names = {
        4: "llvm.x86.sse2.pmadd.wd",
        8: "llvm.x86.avx2.pmadd.wd",
        16: "llvm.x86.avx512.pmaddw.d.512",
    }
    return intrinsic(f"int32x{lanes}", names[lanes], left, right)
