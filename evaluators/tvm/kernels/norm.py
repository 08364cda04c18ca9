"""Layer normalization: every pixel of an image over its channels."""

from __future__ import annotations

from . import epilogue
from .epilogue import Epilogue
from .script import Kernel, fill_border, nest, parallel

INTS = (
    *("n", "ho", "wo", "ans", "ars", "acs", "aoff"),
    *("dns", "drs", "dcs", "doff", "db"),
    *epilogue.INTS,
)


def layer_norm_kernel(stores: Epilogue, threads: int) -> Kernel:
    """Return the kernel that normalizes float pixels `A` over their channels, a multiple of eight.

    Deviations are squared after the mean is taken off, so nothing cancels. `eps` is added to the
    variance, `share` is one over the number of channels; `W` and `B` scale and shift each channel.

    Args:
        stores: What is stored, without a residual.
        threads: Number of threads of the network.
    """
    at = "T.ramp({} + c * 8, 1, 8)"
    each, total = "for c in range(dcs // 8):", "acc[0, T.ramp(0, 1, 8)]"
    lanes = " + ".join(f"acc[0, {i}]" for i in range(8))
    apart = f"(A[{at.format('source')}] - T.broadcast(mean, 8))"
    result = f"{apart} * T.broadcast(inverse, 8) * W[T.ramp(c * 8, 1, 8)] + B[T.ramp(c * 8, 1, 8)]"
    body = [
        "source: T.let[T.int32] = b * ans + y * ars + x * acs + aoff",
        "target: T.let[T.int32] = b * dns + y * drs + x * dcs + doff",
        "acc = T.alloc_buffer((1, 8), 'float32', scope='local')",
        f"{total} = T.broadcast(T.float32(0), 8)",
        *nest([each], [f"{total} = {total} + A[{at.format('source')}]"]),
        f"mean: T.let[T.float32] = ({lanes}) * share",
        f"{total} = T.broadcast(T.float32(0), 8)",
        *nest([each], [f"{total} = {total} + {apart} * {apart}"]),
        f"inverse: T.let[T.float32] = T.float32(1) / T.sqrt(({lanes}) * share + eps)",
        *nest([each], stores.real(f"D[{at.format('target')}]", result, "")),
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
