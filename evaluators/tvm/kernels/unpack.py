"""The kernel that brings weights from the bits they are stored in to the numbers kernels read."""

from __future__ import annotations

from .script import Kernel, nest

INTS = ("bits", "blocks", "rows", "length", "skip")


def unpack_kernel(dtype: str) -> Kernel:
    """Return the kernel that unpacks integers of `bits` bits each, lowest bits first.

    The numbers lie in `blocks` blocks of `rows` rows of `length` numbers. Of the last block, the
    first `skip` numbers of each row are not stored: they are the last ones of the block before.

    Buffers: `Q` bytes, with one more behind the last that is used; `D` numbers.

    Args:
        dtype: Integer type of `D`.
    """
    bit = "(at * bits)"
    both = f"T.Cast('int32', Q[{bit} // 8]) + T.Cast('int32', Q[{bit} // 8 + 1]) * 256"
    field = f"T.bitwise_and(T.shift_right({both}, {bit} % 8), T.shift_left(1, bits) - 1)"
    half = "T.shift_left(1, bits - 1)"
    value = f"T.Cast('{dtype}', T.bitwise_xor({field}, {half}) - {half})"
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
        buffers=(("Q", "uint8"), ("D", dtype)),
        ints=INTS,
        floats=(),
        body=(*whole, *last),
    )
