"""Rounding to uint8 with instructions of x86 that saturate as they narrow.

Those narrow two registers at once, and take pieces of 16 bytes of them in turns. What order that
leaves is followed here, so that at most one instruction puts all bytes in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .script import intrinsic, shuffle

# By how many numbers each of the two registers holds.
_TO_S16 = {
    4: "llvm.x86.sse2.packssdw.128",
    8: "llvm.x86.avx2.packssdw",
    16: "llvm.x86.avx512.packssdw.512",
}
_TO_U8 = {
    8: "llvm.x86.sse2.packuswb.128",
    16: "llvm.x86.avx2.packuswb",
    32: "llvm.x86.avx512.packuswb.512",
}


@dataclass(frozen=True, slots=True)
class _Register:
    """A vector in a register.

    Attributes:
        text: Its expression.
        places: Where each of its numbers is to be stored.
    """

    text: str
    places: tuple[int, ...]


def store_u8(
    outputs: Sequence[tuple[str, int]],
    steps: str,
    size: int,
    places: Sequence[int],
    *,
    is_shifted: bool = False,
    is_bounded: bool = False,
) -> list[str]:
    """Return the lines that store a vector of float32 in output steps as uint8.

    `cvtps2dq` rounds half to even; it makes what is too large negative, so the upper bound comes
    before it where that may be. All that follows saturates, so other bounds wait for the bytes.

    Args:
        outputs: Where it is stored, and how many numbers go there, one after the other.
        steps: The vector: 1, 2 or 4 registers.
        size: How many numbers a register holds: 4, 8 or 16.
        places: Where each number comes among all that are stored.
        is_shifted: Whether the zero point has been added already.
        is_bounded: Whether all numbers are known to fit int32.
    """
    lanes = len(places)
    high = "qhi + T.Cast('float32', zo)" if is_shifted else "qhi"
    ready = steps if is_bounded else f"T.min({steps}, T.broadcast({high}, {lanes}))"
    lines = [f"ready: T.let[T.float32x{lanes}] = {ready}"]
    name = f"llvm.lrint.v{size}i32.v{size}f32"
    registers = [
        _Register(intrinsic(f"int32x{size}", name, part.text), part.places)
        for part in _parts(_Register("ready", tuple(places)), size)
    ]
    if len(registers) == 1:
        lines.append(f"words: T.let[T.int32x{lanes}] = {registers[0].text}")
        registers = _parts(_Register("words", registers[0].places), lanes // 2)
    registers = _packed(registers, _TO_S16, "int16")
    if not is_shifted:
        n = len(registers[0].places)
        zero = f"T.broadcast(T.Cast('int16', zo), {n})"
        registers = [
            _Register(intrinsic(f"int16x{n}", f"llvm.sadd.sat.v{n}i16", r.text, zero), r.places)
            for r in registers
        ]
    if len(registers) == 1:
        lines.append(f"shorts: T.let[T.int16x{lanes}] = {registers[0].text}")
        registers = _parts(_Register("shorts", registers[0].places), max(lanes // 2, 8))
    (packed,) = _packed([registers[0], registers[-1]], _TO_U8, "int8")
    index = [packed.places.index(place) for place in range(lanes)]
    in_order = (
        packed.text if index == [*range(len(packed.places))] else shuffle([packed.text], index)
    )
    stored = f"T.reinterpret('uint8x{lanes}', {in_order})"
    low, high = (
        f"T.broadcast(T.Cast('uint8', T.Cast('int32', {bound}) + zo), {lanes})"
        for bound in ("qlo", "qhi")
    )
    stored = f"T.max({stored}, {low})"
    stored = f"T.min({stored}, {high})" if is_bounded else stored
    if len(outputs) == 1:
        return [*lines, f"{outputs[0][0]} = {stored}"]
    lines.append(f"u8: T.let[T.uint8x{lanes}] = {stored}")
    at = 0
    for output, count in outputs:
        lines.append(f"{output} = {shuffle(['u8'], range(at, at + count))}")
        at += count
    return lines


def quotient(name: str, divisor: str, inverse: str, lanes: int) -> str:
    """Return the expression of a quotient of float32, rounded as a division rounds it.

    It takes three instructions of multipliers, where a division keeps the CPU for up to ten
    cycles. Nothing may leave the range of float32 on the way, not even below.

    Args:
        name: Of the vector that is divided.
        divisor: By what, a number.
        inverse: The float32 next to 1 / `divisor`.
        lanes: Length of the vector.

    References:
        Markstein. Computation of elementary functions on the IBM RISC System/6000 processor.
        IBM J. Res. Dev. 34 (1990), theorem 8.
    """

    def fma(*arguments: str) -> str:
        return intrinsic(f"float32x{lanes}", f"llvm.fma.v{lanes}f32", *arguments)

    inverses = f"T.broadcast({inverse}, {lanes})"
    near = product(name, inverses, lanes)
    left = fma(near, f"T.broadcast(T.float32(-1) * {divisor}, {lanes})", name)
    return fma(left, inverses, near)


def interleaved_u8(steps: Sequence[str], size: int) -> str:
    """Return the expression of up to four vectors rounded to uint8, a number of each in turn.

    Packing leaves four bytes of each vector in every piece of 16 bytes, so they are put in turns
    within these pieces, and what is left of the pieces is joined.

    Args:
        steps: The vectors of float32, in output steps, relative to the zero point `zo`; with that
            within 0..255.
        size: Their length: what fits a register, 8 or 16.
    """
    words = [intrinsic(f"int32x{size}", f"llvm.lrint.v{size}i32.v{size}f32", v) for v in steps]
    registers = [_Register(text, tuple(range(size))) for text in words]
    registers += registers[-1:] * (4 - len(registers))
    zero = f"T.broadcast(T.Cast('int16', zo), {2 * size})"
    shorts = [replace(r, text=f"{r.text} + {zero}") for r in _packed(registers, _TO_S16, "int16")]
    (packed,) = _packed(shorts, _TO_U8, "int8")
    n = len(steps)
    pieces = range(0, 4 * size, 16)
    turns = [4 * k + pixel for pixel in range(4) for k in range(n)]
    turns += [0] * (16 - len(turns))
    in_turns = shuffle([packed.text], [piece + at for piece in pieces for at in turns])
    fours = f"T.reinterpret('int32x{size}', {in_turns})"
    joined = shuffle([fours], [piece // 4 + at for piece in pieces for at in range(n)])
    return f"T.reinterpret('uint8x{n * size}', {joined})"


def _parts(register: _Register, size: int) -> list[_Register]:
    """Return a named vector in parts of `size` numbers."""
    places = register.places
    if len(places) == size:
        return [register]
    return [
        _Register(shuffle([register.text], range(at, at + size)), places[at : at + size])
        for at in range(0, len(places), size)
    ]


def _packed(registers: Sequence[_Register], names: dict[int, str], dtype: str) -> list[_Register]:
    """Return each pair of registers narrowed to one."""
    size = len(registers[0].places)
    taken = {"int16": 4, "int8": 8}[dtype]  # of one register, in turns
    found = []
    for left, right in zip(registers[::2], registers[1::2], strict=True):
        places = tuple(
            place
            for at in range(0, size, taken)
            for side in (left, right)
            for place in side.places[at : at + taken]
        )
        text = intrinsic(f"{dtype}x{2 * size}", names[size], left.text, right.text)
        found.append(_Register(text, places))
    return found


def product(left: str, right: str, lanes: int) -> str:
    """Return the expression of a product of vectors of float32.

    TVM fails to tell the range of a variable that is the product of a clamped value.
    """
    zero = f"T.broadcast(T.float32(-0.0), {lanes})"
    return intrinsic(f"float32x{lanes}", f"llvm.fmuladd.v{lanes}f32", left, right, zero)
