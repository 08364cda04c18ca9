"""Products of two matrices that both come from the network, in batches.

Operands are read through strides, so heads of an attention need no copy of their own. The right
one is packed first, in panels of `ocb` columns in the order in which the convolution's inner
product reads weights (see `conv.Tile`, which does the work); a last panel that does not fit is
moved back and overlaps its neighbour.

Integer forms are exact. With zero points `za` and `zb`, and `w = q_b - zb` stored in s16,
`sum((q_a - za) * w) = sum(q_a * w) - za * sum(w)`: the second part is known for each column when
it is packed, and stored behind the panel. `vpdpbusd` wants s8, so there `w' = q_b - 128` is
stored, and `shift = 128 - zb` times the row's sum of `q_a` is added where it is not zero.
"""

from __future__ import annotations

from . import epilogue
from .conv import FORMS, WIDE_ORDER, Form, Knobs, Tile
from .epilogue import Epilogue, Place
from .script import Kernel, intrinsic, local_buffer, nest, parallel

_PACKED = {"f32": "float32", "dot": "int8", "wide": "int16", "plain": "int16"}
_UNITS = {"dot": 4, "wide": 2, "plain": 2}  # packed numbers in the room of an int32

PACK_INTS = (
    *("batch", "inner", "depth", "n", "blocks", "panel"),
    *("bs0", "bs1", "bsk", "bsn", "boff", "za", "zb", "shift"),
)
INTS = (
    *("batch", "inner", "chunks", "per", "m", "n", "blocks", "steps", "panel", "shift", "fill"),
    *("as0", "as1", "ars", "acs", "aoff", "ds0", "ds1", "dcs", "doff"),
    *epilogue.INTS,
)


def packed_dtype(form: Form) -> str:
    """Return the dtype of packed numbers."""
    return _PACKED[form.name]


def panel_size(form: Form, ocb: int, depth: int) -> int:
    """Return the length of a panel of `ocb` columns, with what is behind it."""
    steps = -(-depth // form.group)
    return ocb * (steps * form.group + _UNITS.get(form.name, 0))


def pack_kernel(knobs: Knobs, order: str, threads: int) -> Kernel:
    """Return the kernel that packs the right operand `B` into `D`.

    Args:
        knobs: Of the product; the operand has `knobs.ocb` columns or more unless `order` is `any`.
        order: Which numbers of the operand lie side by side: those of a `row`, those of a
            `column`, or `any`.
        threads: Number of threads of the network.
    """
    form = FORMS[knobs.form]
    panel = _Panel(form, knobs)
    loops = [
        f"for p in {parallel('batch', threads)}:",
        "base: T.let[T.int32] = p // inner * bs0 + p % inner * bs1 + boff",
        "for o in range(blocks):",
        f"ob: T.let[T.int32] = T.max(T.min(o * {knobs.ocb}, n - {knobs.ocb}), 0)",
        "to: T.let[T.int32] = (p * blocks + o) * panel",
    ]
    lines = {"row": panel.from_rows, "column": panel.from_columns, "any": panel.from_any}[order]()
    return Kernel(
        kind=f"pack_{form.name}_{order}",
        buffers=(("B", "float32" if form.name == "f32" else "uint8"), ("D", packed_dtype(form))),
        ints=PACK_INTS,
        floats=(),
        body=tuple(nest(loops, [*lines, *panel.corrections()])),
    )


class _Panel:
    """Writes the lines that pack one panel."""

    def __init__(self, form: Form, knobs: Knobs) -> None:
        self.form, self.ocb, self.lanes = form, knobs.ocb, knobs.lanes

    def _value(self, numbers: str, lanes: int) -> str:
        """Packed form of a vector of the operand's numbers, or of one number."""
        suffix = f"x{lanes}" if lanes > 1 else ""

        def wide(value: str) -> str:
            return f"T.broadcast({value}, {lanes})" if lanes > 1 else value

        if self.form.name == "f32":
            return numbers
        if self.form.name == "dot":
            flipped = f"T.bitwise_xor({numbers}, {wide('T.uint8(128)')})"
            return f"T.reinterpret('int8{suffix}', {flipped})"
        zero_point = wide("T.Cast('int16', zb)")
        return f"T.Cast('int16{suffix}', {numbers}) - {zero_point}"

    def _slot(self, column: int) -> int:
        """Place of a column of the panel."""
        if self.form.name != "wide":
            return column
        return column // 8 * 8 + WIDE_ORDER[column % 8]

    def from_rows(self) -> list[str]:
        """Whole rows, as vectors; those of one step are interleaved."""
        group = self.form.group
        lanes = {"dot": 16 if self.ocb % 16 == 0 else 8, "wide": 8}.get(self.form.name, self.lanes)
        order = [self._slot(c) for c in range(lanes)]  # its own inverse
        lines = []
        for first in range(0, self.ocb, lanes):
            rows = [
                f"B[T.ramp(base + (c * {group} + {t}) * bsk + ob + {first}, 1, {lanes})]"
                for t in range(group)
            ]
            size = lanes * group
            index = [t * lanes + order[c] for c in range(lanes) for t in range(group)]
            joined = rows[0] if group == 1 else f"T.Shuffle([{', '.join(rows)}], {index})"
            to = f"D[T.ramp(to + c * {self.ocb * group} + {first * group}, 1, {size})]"
            lines.append(f"{to} = {self._value(joined, size)}")
        return [*nest([f"for c in range(depth // {group}):"], lines), *self._rest()]

    def from_columns(self) -> list[str]:
        """Columns, a step of each at a time."""
        if self.form.group == 1:
            at = f"T.ramp(base + c * bsk + (ob + v * {self.lanes}) * bsn, bsn, {self.lanes})"
            to = f"T.ramp(to + c * {self.ocb} + v * {self.lanes}, 1, {self.lanes})"
            loops = ["for c in range(depth):", f"for v in T.unroll({self.ocb // self.lanes}):"]
            return nest(loops, [f"D[{to}] = {self._value(f'B[{at}]', self.lanes)}"])
        lines = []
        for column in range(self.ocb):
            source = f"B[T.ramp(base + (ob + {column}) * bsn + c * 4, 1, 4)]"
            to = f"D[T.ramp(to + c * {self.ocb * 4} + {self._slot(column) * 4}, 1, 4)]"
            lines.append(f"{to} = {self._value(source, 4)}")
        return [*nest(["for c in range(depth // 4):"], lines), *self._rest()]

    def from_any(self) -> list[str]:
        """Number by number."""
        return self._each("depth // {0}" if self.form.group > 1 else "depth", "c") + self._rest()

    def _rest(self) -> list[str]:
        """The last step, where the depth is no multiple of the group."""
        if self.form.group == 1:
            return []
        return self._each("T.min(depth % {0}, 1)", "(depth // {0} + c)")

    def _each(self, count: str, step: str) -> list[str]:
        group = self.form.group
        step = step.format(group)
        at = f"base + T.min({step} * {group} + t, depth - 1) * bsk + T.min(ob + j, n - 1) * bsn"
        value = self._value(f"B[{at}]", 1)
        slot = "j"
        if self.form.name == "wide":  # bits 1 and 2 change places
            slot = "(j // 8 * 8 + j % 2 + j // 2 % 2 * 4 + j // 4 % 2 * 2)"
        zero = {"f32": "T.float32(0)", "dot": "T.int8(0)"}.get(self.form.name, "T.int16(0)")
        kept = f"T.if_then_else({step} * {group} + t < depth, {value}, {zero})"
        return nest(
            [
                f"for c in range({count.format(group)}):",
                f"for j in range({self.ocb}):",
                f"for t in range({group}):",
            ],
            [f"D[to + ({step} * {self.ocb} + {slot}) * {group} + t] = {kept}"],
        )

    def corrections(self) -> list[str]:
        """Lines that put what is added to each column's sum behind the panel."""
        if self.form.name == "f32":
            return []
        lanes, unit, group = self.lanes, _UNITS[self.form.name], self.form.group
        per = 2 if self.form.name == "wide" else 1  # registers of partial sums
        steps = f"((depth + {group - 1}) // {group})"
        sums = [f"sums[v * {per} + {half}, T.ramp(0, 1, {lanes})]" for half in range(per)]
        size = lanes * group // per
        each = f"for v in T.unroll({self.ocb // lanes}):"
        added = []
        for half, total in enumerate(sums):
            at = f"to + (c * {self.ocb} + v * {lanes}) * {group} + {half * size}"
            added.append(f"{total} = {self._added(total, f'D[T.ramp({at}, 1, {size})]')}")
        total = sums[0] if per == 1 else intrinsic("int32x8", "llvm.x86.avx2.phadd.d", *sums)
        total = f"({total} + T.broadcast(depth * shift, {lanes})) * T.broadcast(0 - za, {lanes})"
        kept = f"T.reinterpret('{packed_dtype(self.form)}x{lanes * unit}', {total})"
        to = f"to + {steps} * {self.ocb * group} + v * {lanes * unit}"
        return [
            local_buffer("sums", "int32", self.ocb // lanes * per, lanes),
            *nest([each], [f"{total} = T.broadcast(0, {lanes})" for total in sums]),
            *nest([f"for c in range({steps}):", each], added),
            *nest([each], [f"D[T.ramp({to}, 1, {lanes * unit})] = {kept}"]),
        ]

    def _added(self, total: str, packed: str) -> str:
        lanes = self.lanes
        if self.form.name == "dot":
            ones = f"T.broadcast(T.uint8(1), {4 * lanes})"
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            return intrinsic(f"int32x{lanes}", name, total, ones, packed)
        if self.form.name == "wide":
            ones = "T.broadcast(T.int16(1), 16)"
            return f"{total} + {intrinsic('int32x8', 'llvm.x86.avx2.pmadd.wd', ones, packed)}"
        return f"{total} + T.Cast('int32x{lanes}', {packed})"


def matmul_kernel(
    knobs: Knobs, stores: Epilogue, threads: int, *, is_shifted: bool, is_narrow: bool
) -> Kernel:
    """Return the kernel that multiplies `A` by the packed operand `W`.

    Buffers: `A` left operand, whose rows are contiguous, `W` from `pack_kernel`, `S` scale of each
    column (integer forms), `E` one for each number of a row and zeros up to whole steps (shifted
    only), `D` output.

    Args:
        knobs: Form and tile; `th` is 1.
        stores: What is stored, without a residual.
        threads: Number of threads of the network.
        is_shifted: Whether `shift` is not zero.
        is_narrow: Whether there are fewer columns than the eight of a panel.
    """
    form = FORMS[knobs.form]
    data = "float32" if form.name == "f32" else "uint8"
    buffers = [("A", data), ("W", packed_dtype(form))]
    buffers += [("S", "float32")] if form.is_integer else []
    buffers += [("E", "int8")] if is_shifted else []
    zero = "T.Cast('uint8', zo)" if stores.output == "uint8" else "T.float32(0)"
    loops = [
        f"for p in {parallel('batch * chunks', threads)}:",
        "b: T.let[T.int32] = p // chunks",
        "ab0: T.let[T.int32] = b // inner * as0 + b % inner * as1 + aoff",
        "db0: T.let[T.int32] = b // inner * ds0 + b % inner * ds1 + doff",
        "for o in range(blocks):",
        f"ob: T.let[T.int32] = T.max(T.min(o * {knobs.ocb}, n - {knobs.ocb}), 0)",
        "for t in range(per):",
        f"wb: T.let[T.int32] = T.min((p % chunks * per + t) * {knobs.tw}, m - {knobs.tw})",
    ]
    tile = _Product(form, knobs, stores, is_shifted=is_shifted, is_narrow=is_narrow)
    return Kernel(
        kind=f"matmul_{form.name}_{stores.tag}",
        buffers=(*buffers, ("D", stores.output)),
        ints=INTS,
        floats=epilogue.FLOATS,
        body=(*nest(["for i in range(fill):"], [f"D[i] = {zero}"]), *nest(loops, tile.lines())),
    )


class _Product(Tile):
    """Writes the lines of one tile of a product."""

    def __init__(
        self, form: Form, knobs: Knobs, stores: Epilogue, *, is_shifted: bool, is_narrow: bool
    ) -> None:
        super().__init__(form, knobs, stores)
        self.is_shifted, self.is_narrow = is_shifted, is_narrow

    def lines(self) -> list[str]:
        """All lines of the tile."""
        lanes, tw = self.lanes, self.knobs.tw
        dtype, zero = ("int32", "0") if self.form.is_integer else ("float32", "T.float32(0)")
        lines = [
            *self.starts("ab0 + (wb + j) * acs", "(b * blocks + o) * panel"),
            local_buffer("acc", dtype, self.size, lanes),
            *self.each(f"{self.acc} = T.broadcast({zero}, {lanes})"),
        ]
        if self.is_shifted:
            lines += [
                local_buffer("rows", "int32", tw, lanes),
                *self.each(f"{self._row_sum} = T.broadcast(0, {lanes})", vectors=1),
            ]
        return [*lines, *self._accumulated(), *self._store_all()]

    @property
    def _row_sum(self) -> str:
        return f"rows[j, T.ramp(0, 1, {self.lanes})]"

    def _accumulated(self) -> list[str]:
        lines = self.accumulate()
        if not self.is_shifted:
            return lines
        lanes = self.lanes
        ones = f"T.broadcast(T.reinterpret('int32', E[T.ramp(c * 4, 1, 4)]), {lanes})"
        total = intrinsic(
            f"int32x{lanes}",
            f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
            self._row_sum,
            self.repeated("c"),
            f"T.reinterpret('int8x{4 * lanes}', {ones})",
        )
        loop, *body = lines
        more = self.each(f"{self._row_sum} = {total}", vectors=1)
        return [loop, *body, *nest([loop], more)[1:]]

    def _store_all(self) -> list[str]:
        lanes = self.lanes
        channel = f"T.ramp(ob + v * {lanes}, 1, {lanes})"
        pixel = f"db0 + (wb + j) * dcs + ob + v * {lanes}"
        to = "out[0, T.ramp(0, 1, 8)]" if self.is_narrow else f"D[T.ramp({pixel}, 1, {lanes})]"
        place = Place(lanes, channel, to)
        if self.form.is_integer:
            lines = self.stores.integer([place], self._total())
        else:
            lines = self.stores.real(place, self.acc)
        if self.is_narrow:
            lines = [
                local_buffer("out", self.stores.output, 1, 8),
                *lines,
                *nest(["for s in range(n):"], [f"D[{pixel} + s] = out[0, s]"]),
            ]
        return self.each(*lines, vectors=self.knobs.ocb // lanes)

    def _total(self) -> str:
        """Sum of products, with what is known of the column and of the row."""
        lanes, unit = self.lanes, _UNITS[self.form.name]
        at = f"steps * {self.knobs.ocb * self.form.group} + v * {lanes * unit}"
        column = f"T.reinterpret('int32x{lanes}', {self.weights(at, lanes * unit)})"
        row = f" + {self._row_sum} * T.broadcast(shift, {lanes})" * self.is_shifted
        return f"({self.sums()} + {column}{row})"
