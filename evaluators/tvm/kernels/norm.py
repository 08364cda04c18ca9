"""Layer normalization: every pixel of an image over its channels."""

from __future__ import annotations

from collections.abc import Callable

from . import epilogue
from .epilogue import Epilogue, Place
from .script import Kernel, fill_border, local_buffer, nest, parallel, reduced

INTS = (
    *("n", "ho", "wo", "ans", "ars", "acs", "aoff"),
    *("dns", "drs", "dcs", "doff", "db"),
    *epilogue.INTS,
)


_SUMS = 4  # partial sums, so that no addition waits for the one before it


def layer_norm_kernel(stores: Epilogue, lanes: int, threads: int) -> Kernel:
    """Return the kernel that normalizes float pixels `A` over their channels.

    Deviations are squared after the mean is taken off, so nothing cancels. `eps` is added to the
    variance, `share` is one over the number of channels; `W` and `B` scale and shift each channel.

    Args:
        stores: What is stored, without a residual.
        lanes: Of a vector; divides the number of channels.
        threads: Number of threads of the network.
    """

    def number(c: str) -> str:
        return f"A[T.ramp(source + {c} * {lanes}, 1, {lanes})]"

    def apart(c: str) -> str:
        return f"({number(c)} - T.broadcast(mean, {lanes}))"

    channel = f"T.ramp(c * {lanes}, 1, {lanes})"
    result = f"{apart('c')} * T.broadcast(inverse, {lanes}) * W[{channel}] + B[{channel}]"
    body = [
        "source: T.let[T.int32] = b * ans + y * ars + x * acs + aoff",
        "target: T.let[T.int32] = b * dns + y * drs + x * dcs + doff",
        local_buffer("acc", "float32", _SUMS, lanes),
        *_sum("total", number, lanes),
        "mean: T.let[T.float32] = total * share",
        *_sum("squares", lambda c: f"{apart(c)} * {apart(c)}", lanes),
        "inverse: T.let[T.float32] = T.float32(1) / T.sqrt(squares * share + eps)",
        *nest(
            [f"for c in range(dcs // {lanes}):"],
            stores.real(Place(lanes, "", f"D[T.ramp(target + c * {lanes}, 1, {lanes})]"), result),
        ),
    ]
    loops = [f"for x in {parallel('wo', threads)}:", "for b in range(n):", "for y in range(ho):"]
    border = "zo" if stores.output == "uint8" else "T.float32(0)"
    return Kernel(
        kind=f"layer_norm_{stores.tag}",
        buffers=(("A", "float32"), ("W", "float32"), ("B", "float32"), ("D", stores.output)),
        ints=INTS,
        floats=(*epilogue.FLOATS, "eps", "share"),
        body=(*fill_border("D", border, stores.output), *nest(loops, body)),
    )


def _sum(name: str, term: Callable[[str], str], lanes: int) -> list[str]:
    """Lines that define `name` as the sum of a term over the channels of a pixel."""
    sums = [f"acc[{k}, T.ramp(0, 1, {lanes})]" for k in range(_SUMS)]
    whole = f"dcs // {lanes} // {_SUMS}"
    each = [f"{total} = {total} + {term(f'(c * {_SUMS} + {k})')}" for k, total in enumerate(sums)]
    rest = f"{sums[0]} = {sums[0]} + {term(f'({whole} * {_SUMS} + c)')}"
    joined = " + ".join(sums)
    return [
        *(f"{total} = T.broadcast(T.float32(0), {lanes})" for total in sums),
        *nest([f"for c in range({whole}):"], each),
        *nest([f"for c in range(dcs // {lanes} % {_SUMS}):"], [rest]),
        *reduced(name, f"({joined})", lanes, "{} + {}"),
    ]
