"""The kernel that brings weights from the bits they are stored in to the numbers kernels read."""

from __future__ import annotations

from .script import Kernel, nest

INTS = ("bits", "blocks", "rows", "length", "skip")


def unpack_kernel(dtype: str) -> Kernel:
    """Return the kernel that unpacks weights of `bits` bits each, lowest bits first.

    The numbers lie in `blocks` blocks of `rows` rows of `length` numbers. Of the last block, the
    first `skip` numbers of each row are not stored: they are the last ones of the block before.

    Buffers: `Q` bytes, with one more behind the last that is used, or float16 numbers as uint16;
    `D` numbers.

    Args:
        dtype: Type of `D`: one of integers, or float32.
    """
    value = _half() if dtype == "float32" else _integer(dtype)
    whole = nest(
        ["for at in range((blocks - 1) * rows * length):"],
        [f"D[at] = {value}"],
    )
    last = [
        "base: T.let[T.int32] = (blocks - 1) * rows * length",
        *nest(
            ["for r in range(rows):"],
            [
                "for i in range(skip):",
                "  D[base + r * length + i] = D[base + (r - rows + 1) * length - skip + i]",
                *nest(
                    ["for i in range(length - skip):"],
                    [
                        "at: T.let[T.int32] = base + r * (length - skip) + i",
                        f"D[base + r * length + skip + i] = {value}",
                    ],
                ),
            ],
        ),
    ]
    return Kernel(
        kind=f"unpack_{dtype}",
        buffers=(("Q", "uint16" if dtype == "float32" else "uint8"), ("D", dtype)),
        ints=INTS,
        floats=(),
        body=(*whole, *last),
    )


def _integer(dtype: str) -> str:
    """Expression of the integer at `at`."""
    bit = "(at * bits)"
    both = f"T.Cast('int32', Q[{bit} // 8]) + T.Cast('int32', Q[{bit} // 8 + 1]) * 256"
    field = f"T.bitwise_and(T.shift_right({both}, {bit} % 8), T.shift_left(1, bits) - 1)"
    half = "T.shift_left(1, bits - 1)"
    return f"T.Cast('{dtype}', T.bitwise_xor({field}, {half}) - {half})"


def _half() -> str:
    """Expression of the finite float16 number at `at`, in steps that every CPU has.

    Exponent and fraction move to their places in a float32, whose exponent counts from 112 lower;
    the product is exact, also for numbers below the normal ones.
    """
    number = "T.Cast('int32', Q[at])"
    size = f"T.shift_left(T.bitwise_and({number}, 32767), 13)"
    sign = f"T.shift_left(T.shift_right({number}, 15), 31)"
    scaled = f"T.reinterpret('float32', {size}) * T.float32({2.0**112})"
    bits = f"T.bitwise_or(T.reinterpret('int32', {scaled}), {sign})"
    return f"T.reinterpret('float32', {bits})"
