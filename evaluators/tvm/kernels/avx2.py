"""Rounding to uint8 with instructions of AVX2 that saturate as they narrow."""

from __future__ import annotations

from .script import intrinsic, shuffle


def store_u8(to: str, steps: str, lanes: int, *, is_shifted: bool = False) -> list[str]:
    """Return the lines that store a vector of float32 in output steps as uint8.

    `cvtps2dq` rounds half to even; it makes what is too large negative, so the upper bound comes
    before it. All that follows saturates, so the lower bound can wait for the bytes.

    Args:
        to: Where it is stored.
        steps: The vector.
        lanes: Its length, 8 or 16.
        is_shifted: Whether the zero point has been added already.
    """
    high = "qhi + T.Cast('float32', zo)" if is_shifted else "qhi"
    bound = f"T.min({steps}, T.broadcast({high}, {lanes}))"
    lines = [f"ready_{lanes}: T.let[T.float32x{lanes}] = {bound}"]
    eights = [shuffle([f"ready_{lanes}"], range(at, at + 8)) for at in range(0, lanes, 8)]
    words = [intrinsic("int32x8", "llvm.x86.avx.cvt.ps2dq.256", eight) for eight in eights]
    if lanes == 16:
        shorts = intrinsic("int16x16", "llvm.x86.avx2.packssdw", *words)
        order = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]  # lanes of 128 bits
    else:
        lines.append(f"words: T.let[T.int32x8] = {words[0]}")
        fours = (shuffle(["words"], half) for half in (range(4), range(4, 8)))
        shorts, order = intrinsic("int16x8", "llvm.x86.sse2.packssdw.128", *fours), [*range(8)]
    if not is_shifted:
        zero = f"T.broadcast(T.Cast('int16', zo), {lanes})"
        shorts = intrinsic(f"int16x{lanes}", f"llvm.sadd.sat.v{lanes}i16", shorts, zero)
    lines.append(f"shorts_{lanes}: T.let[T.int16x{lanes}] = {shorts}")
    halves = [shuffle([f"shorts_{lanes}"], range(at, at + 8)) for at in range(0, lanes, 8)]
    packed = intrinsic("int8x16", "llvm.x86.sse2.packuswb.128", halves[0], halves[-1])
    stored = f"T.reinterpret('uint8x{lanes}', {shuffle([packed], order)})"
    low = f"T.broadcast(T.Cast('uint8', T.Cast('int32', qlo) + zo), {lanes})"
    return [*lines, f"{to} = T.max({stored}, {low})"]


def product(left: str, right: str, lanes: int) -> str:
    """Return the expression of a product of vectors of float32.

    TVM fails to tell the range of a variable that is the product of a clamped value.
    """
    zero = f"T.broadcast(T.float32(-0.0), {lanes})"
    return intrinsic(f"float32x{lanes}", f"llvm.fmuladd.v{lanes}f32", left, right, zero)
