"""Kernels that look across the channels of every pixel: largest, mean, local response."""

from __future__ import annotations

from . import epilogue
from .epilogue import Epilogue, Place
from .pointwise import real_numbers
from .script import Kernel, fill_border, local_buffer, nest, parallel, reduced

_SOURCE = ("a0ns", "a0rs", "a0cs", "a0off", "z0", "width")
_LEAST = "T.float32('-inf')"
_PLACE = "a0: T.let[T.int32] = b * a0ns + y * a0rs + x * a0cs + a0off"
_LOOPS = ["for b in range(n):", "for x in range(wo):"]
_EACH = "for c in range((width + 7) // 8):"
_INSIDE = "T.ramp(c * 8, 1, 8) < T.broadcast(width, 8)"


def _numbers(data: str, otherwise: str) -> str:
    """Eight channels of a pixel; what is behind the last one is replaced."""
    numbers = real_numbers("A0", data, "T.ramp(a0 + c * 8, 1, 8)", 0)
    return f"T.Select({_INSIDE}, {numbers}, T.broadcast({otherwise}, 8))"


def across_kernel(data: str, how: str, stores: Epilogue, threads: int) -> Kernel:
    """Return the kernel of an image `D` of one channel: `share` times what joins those of `A0`.

    Args:
        data: dtype of `A0`.
        how: `max` or `sum`.
        stores: What is stored, without a residual.
        threads: Number of threads of the network.
    """
    join, least = ("T.max({}, {})", _LEAST) if how == "max" else ("{} + {}", "T.float32(0)")
    acc = "acc[0, T.ramp(0, 1, 8)]"
    to = "D[T.ramp(b * dns + y * drs + x * dcs + doff, 1, 8)]"
    body = [
        _PLACE,
        local_buffer("acc", "float32", 1, 8),
        f"{acc} = T.broadcast({least}, 8)",
        *nest([_EACH], [f"{acc} = {join.format(acc, _numbers(data, least))}"]),
        *reduced("joined", acc, 8, join),
        *stores.real(Place(8, "", to), "T.broadcast(joined * share, 8)"),
    ]
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    loops = [f"for y in {parallel('ho', threads)}:", *_LOOPS]
    return Kernel(
        kind=f"{how}_across_{data}_{stores.tag}",
        buffers=(("A0", data), ("D", stores.output)),
        ints=("n", "ho", "wo", "dns", "drs", "dcs", "doff", "db", *_SOURCE, *epilogue.INTS),
        floats=(*epilogue.FLOATS, "f0", "share"),
        body=(*fill_border("D", border, stores.output), *nest(loops, body)),
    )


# What one over the sum of squares is taken to the power of, as products of square roots.
POWERS = {0.5: "root", 0.75: "root * T.sqrt(root)", 1.0: "total"}


def response_kernel(stores: Epilogue, beta: float, threads: int) -> Kernel:
    """Return the kernel of a local response normalization of the float image `A0`.

    Every number is divided by `offset` plus `rate` times the sum of the squares of the `size`
    channels from `before` channels in front of it on, to the power of `beta`. The image has a
    border, so that what is in front of the first pixel may be read.

    Args:
        stores: What is stored, without a residual.
        beta: A key of `POWERS`.
        threads: Number of threads of the network.
    """
    acc = "acc[0, T.ramp(0, 1, 8)]"
    near = "A0[T.ramp(a0 + c * 8 + k - before, 1, 8)]"
    channel = "T.ramp(c * 8 + k - before, 1, 8)"
    inside = f"T.And({channel} >= T.broadcast(0, 8), {channel} < T.broadcast(width, 8))"
    other = f"T.Select({inside}, {near}, T.broadcast(T.float32(0), 8))"
    to = "D[T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)]"
    tap = [f"near: T.let[T.float32x8] = {other}", f"{acc} = {acc} + near * near"]
    body = [
        local_buffer("acc", "float32", 1, 8),
        f"{acc} = T.broadcast(T.float32(0), 8)",
        *nest(["for k in range(size):"], tap),
        f"total: T.let[T.float32x8] = {acc} * T.broadcast(rate, 8) + T.broadcast(offset, 8)",
        *(["root: T.let[T.float32x8] = T.sqrt(total)"] if beta != 1.0 else []),
        *stores.real(Place(8, "", to), f"A0[T.ramp(a0 + c * 8, 1, 8)] / ({POWERS[beta]})"),
    ]
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    loops = [f"for y in {parallel('ho', threads)}:", *_LOOPS, _PLACE, "for c in range(dcs // 8):"]
    return Kernel(
        kind=f"response_{stores.tag}",
        buffers=(("A0", "float32"), ("D", stores.output)),
        ints=(
            *("n", "ho", "wo", "dns", "drs", "dcs", "doff", "db"),
            *(*_SOURCE, "size", "before", *epilogue.INTS),
        ),
        floats=(*epilogue.FLOATS, "rate", "offset"),
        body=(*fill_border("D", border, stores.output), *nest(loops, body)),
    )
