"""Pooling kernels: windows are cut at the image's edge, so the border's value never counts."""

from __future__ import annotations

from .script import Kernel, fill_border, local_buffer, nest, parallel

_SIZES = ("n", "ho", "wo", "hi", "wi", "kh", "kw", "sh", "sw", "pt", "pl")
_STRIDES = ("ans", "ars", "acs", "aoff", "dns", "drs", "dcs", "doff", "db")
INTS = (*_SIZES, *_STRIDES, "za", "zo", "whole")
FLOATS = ("f", "qlo", "qhi")

_WINDOW = [
    "y0: T.let[T.int32] = T.max(y * sh - pt, 0)",
    "y1: T.let[T.int32] = T.min(y * sh - pt + kh, hi)",
    "x0: T.let[T.int32] = T.max(x * sw - pl, 0)",
    "x1: T.let[T.int32] = T.min(x * sw - pl + kw, wi)",
]
_LOOPS = ["for b in range(n):", "for x in range(wo):"]
_TAPS = ["for i in range(y1 - y0):", "for j in range(x1 - x0):"]


def max_pool_kernel(dtype: str, lanes: int, threads: int) -> Kernel:
    """Return the kernel of max pooling; the output has the scale and zero point of the input.

    Args:
        dtype: `uint8` or `float32`, of input `A` and output `D`.
        lanes: Channels per vector; divides the channel pitch of both images.
        threads: Number of threads of the network.
    """
    low = {"uint8": "T.uint8(0)", "float32": "T.float32('-inf')"}[dtype]
    top = f"top[0, T.ramp(0, 1, {lanes})]"
    at = "b * ans + (y0 + i) * ars + (x0 + j) * acs + aoff"
    body = [
        *_WINDOW,
        *nest(
            [f"for c in range(dcs // {lanes}):"],
            [
                local_buffer("top", dtype, 1, lanes),
                f"{top} = T.broadcast({low}, {lanes})",
                *nest(_TAPS, [f"{top} = T.max({top}, A[T.ramp({at} + c * {lanes}, 1, {lanes})])"]),
                f"D[T.ramp(b * dns + y * drs + x * dcs + doff + c * {lanes}, 1, {lanes})] = {top}",
            ],
        ),
    ]
    return _pool(f"max_{dtype}", dtype, dtype, body, threads)


def average_pool_kernel(data: str, output: str, threads: int) -> Kernel:
    """Return the kernel of average pooling, global pooling included.

    Integer sums are exact; `f` is the input's scale, over the output's where that is quantized
    too, and `za` the input's zero point. `whole` is the divisor where padding counts, or 0 to
    divide by the numbers inside the image.

    Args:
        data: dtype of the input `A`.
        output: dtype of the output `D`.
        threads: Number of threads of the network.
    """
    total = "int32" if data == "uint8" else "float32"
    acc = "acc[0, T.ramp(0, 1, 8)]"
    at = "T.ramp(b * ans + (y0 + i) * ars + (x0 + j) * acs + aoff + c * 8, 1, 8)"
    value = f"T.Cast('int32x8', A[{at}])" if data == "uint8" else f"A[{at}]"
    zero = "T.broadcast(0, 8)" if data == "uint8" else "T.broadcast(T.float32(0), 8)"
    mean = f"T.Cast('float32x8', {acc} - T.broadcast(za * inside, 8))" if data == "uint8" else acc
    mean = f"{mean} * T.broadcast(f / T.Cast('float32', divisor), 8)"
    if output == "uint8":
        mean = f"T.max(T.min(T.nearbyint({mean}), T.broadcast(qhi, 8)), T.broadcast(qlo, 8))"
        mean = f"T.Cast('uint8x8', T.Cast('int32x8', {mean}) + T.broadcast(zo, 8))"
    body = [
        *_WINDOW,
        "inside: T.let[T.int32] = (y1 - y0) * (x1 - x0)",
        "divisor: T.let[T.int32] = T.if_then_else(whole > 0, whole, inside)",
        *nest(
            ["for c in range(dcs // 8):"],
            [
                local_buffer("acc", total, 1, 8),
                f"{acc} = {zero}",
                *nest(_TAPS, [f"{acc} = {acc} + {value}"]),
                f"D[T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)] = {mean}",
            ],
        ),
    ]
    return _pool(f"average_{data}_{output}", data, output, body, threads)


def _pool(kind: str, data: str, output: str, body: list[str], threads: int) -> Kernel:
    border = "zo" if output == "uint8" else "T.float32(0)"
    loops = [f"for y in {parallel('ho', threads)}:", *_LOOPS]
    return Kernel(
        kind=f"pool_{kind}",
        buffers=(("A", data), ("D", output)),
        ints=INTS,
        floats=FLOATS,
        body=(*fill_border("D", border, output), *nest(loops, body)),
    )
