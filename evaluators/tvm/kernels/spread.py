"""Transposed depthwise convolution: every output pixel gathers the few inputs that reach it."""

from __future__ import annotations

from . import epilogue
from .epilogue import Epilogue, Place
from .pointwise import real_numbers
from .script import Kernel, fill_border, local_buffer, nest, parallel


def spread_depthwise_kernel(data: str, stores: Epilogue, lanes: int, threads: int) -> Kernel:
    """Return the kernel of a transposed convolution whose channels do not mix.

    Each sum of products of `A0`, as it is stored but for the zero point, is multiplied by `S`, and
    `B` is added. `G` holds for every row of the output, then for every column, where its first
    input is, and behind them its phase's place in the weights `W`. Those are in the order phase of
    rows, phase of columns, tap of `kh` and `kw`, channel.

    Args:
        data: dtype of `A0`.
        stores: What is stored, without a residual.
        lanes: Of a vector; divides the channel pitch of both images.
        threads: Number of threads of the network.
    """
    acc = f"acc[0, T.ramp(0, 1, {lanes})]"
    channel = f"T.ramp(c * {lanes}, 1, {lanes})"
    to = f"D[T.ramp(b * dns + y * drs + x * dcs + doff + c * {lanes}, 1, {lanes})]"
    at = f"T.ramp(from_ + i * down + j * across + c * {lanes}, 1, {lanes})"
    weight = f"W[T.ramp(phase + (i * kw + j) * dcs + c * {lanes}, 1, {lanes})]"
    each = [f"{acc} = {acc} + {real_numbers('A0', data, at, 0, lanes)} * {weight}"]
    body = [
        "from_: T.let[T.int32] = b * a0ns + G[y] + G[ho + x]",
        "phase: T.let[T.int32] = G[ho + wo + y] + G[ho + wo + ho + x]",
        *nest(
            [f"for c in range(dcs // {lanes}):"],
            [
                local_buffer("acc", "float32", 1, lanes),
                f"{acc} = T.broadcast(T.float32(0), {lanes})",
                *nest(["for i in range(kh):", "for j in range(kw):"], each),
                *stores.real(Place(lanes, channel, to), f"{acc} * S[{channel}] + B[{channel}]"),
            ],
        ),
    ]
    tables = (("W", "float32"), ("B", "float32"), ("S", "float32"), ("G", "int32"))
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    loops = [f"for y in {parallel('ho', threads)}:", "for b in range(n):", "for x in range(wo):"]
    return Kernel(
        kind=f"spread_depthwise_{data}_{stores.tag}",
        buffers=(("A0", data), *tables, ("D", stores.output)),
        ints=(
            *("n", "ho", "wo", "dns", "drs", "dcs", "doff", "db", "a0ns"),
            *("kh", "kw", "down", "across", "z0", *epilogue.INTS),
        ),
        floats=(*epilogue.FLOATS, "f0"),
        body=(*fill_border("D", border, stores.output), *nest(loops, body)),
    )
