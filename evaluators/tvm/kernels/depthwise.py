"""Depthwise convolution: every channel has its own kernel, so vectors run over channels."""

from __future__ import annotations

from . import epilogue
from .epilogue import Epilogue
from .script import Kernel, fill_border, nest, parallel

INTS = (
    *("n", "ho", "wo", "taps"),
    *("ans", "ars", "acs", "dns", "drs", "dcs", "doff", "db"),
    *epilogue.INTS,
)


def depthwise_kernel(data: str, isa: str, columns: int, stores: Epilogue, threads: int) -> Kernel:
    """Return the kernel of a depthwise convolution with one output per input channel.

    Buffers: `A` input image, `W` weights `(taps, channels)` as int32 or float32, `B` bias, `S`
    scale (integer only), `G` offset of each tap, what the epilogue adds, `D` output image.

    Args:
        data: dtype of the input, `uint8` or `float32`.
        isa: Kernel family of the profile.
        columns: Output columns per tile.
        stores: What is stored.
        threads: Number of threads of the network.
    """
    is_integer = data == "uint8"
    weights = "int32" if is_integer else "float32"
    buffers = [("A", data), ("W", weights), ("B", weights)]
    buffers += [("S", "float32")] if is_integer else []
    buffers += [("G", "int32"), *stores.buffers, ("D", stores.output)]
    loops = [
        f"for y in {parallel('ho', threads)}:",
        "for b in range(n):",
        f"for wt in range((wo + {columns - 1}) // {columns}):",
        "for c in range(dcs // 8):",
    ]
    body = _tile(is_integer, isa, columns, stores)
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    return Kernel(
        kind=f"depthwise_{'u8' if is_integer else 'f32'}_{stores.tag}",
        buffers=tuple(buffers),
        ints=INTS,
        floats=epilogue.FLOATS,
        body=(*fill_border("D", border, stores.output), *nest(loops, body)),
    )


def _tile(is_integer: bool, isa: str, columns: int, stores: Epilogue) -> list[str]:
    """Lines that compute eight channels of a tile."""
    acc, channel = "acc[j, T.ramp(0, 1, 8)]", "T.ramp(c * 8, 1, 8)"
    value = "A[T.ramp(ab + j * acs + G[g], 1, 8)]"
    total = _multiply_add(value, "W[T.ramp(g * dcs + c * 8, 1, 8)]", acc, is_integer, isa)
    residual = "T.ramp(b * rns + y * rrs + (wb + j) * rcs + roff + c * 8, 1, 8)"
    if is_integer:
        start, dtype = "T.broadcast(0, 8)", "int32"
        stored = stores.integer(f"({acc} + B[{channel}])", channel, residual)
    else:
        start, dtype = f"B[{channel}]", "float32"
        stored = stores.real(acc, residual)
    at = "T.ramp(b * dns + y * drs + (wb + j) * dcs + doff + c * 8, 1, 8)"
    each = f"for j in T.unroll({columns}):"
    return [
        f"wb: T.let[T.int32] = T.min(wt * {columns}, wo - {columns})",
        "ab: T.let[T.int32] = b * ans + y * ars + wb * acs + c * 8",
        f"acc = T.alloc_buffer(({columns}, 8), '{dtype}', scope='local')",
        *nest([each], [f"{acc} = {start}"]),
        *nest(["for g in range(taps):", each], [f"{acc} = {total}"]),
        *nest([each], [f"D[{at}] = {stored}"]),
    ]


def _multiply_add(value: str, weight: str, acc: str, is_integer: bool, isa: str) -> str:
    if not is_integer:
        return (
            f"T.call_llvm_pure_intrin('float32x8', 'llvm.fmuladd.v8f32', {value}, {weight}, {acc})"
        )
    value = f"T.Cast('int32x8', {value})"
    if isa == "portable":
        return f"{acc} + {value} * {weight}"
    # The upper half of each lane of data is zero, so `pmaddwd` is a full product of small numbers
    # at half the cost.
    halves = f"T.reinterpret('int16x16', {value}), T.reinterpret('int16x16', {weight})"
    return f"{acc} + T.call_llvm_pure_intrin('int32x8', 'llvm.x86.avx2.pmadd.wd', {halves})"
