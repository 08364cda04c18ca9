"""Softmax over rows."""

from __future__ import annotations

from . import epilogue
from .activation import power_of_two
from .epilogue import Epilogue, Place
from .script import Kernel, local_buffer, nest, parallel, reduced

INTS = (
    *("rows", "per", "width", "acs", "aoff", "dcs", "doff", "behind"),
    *("m", "inner", "ms0", "ms1", "ms2", "moff"),
    *epilogue.INTS,
)
_LEAST = "T.float32(-3e38)"


def softmax_kernel(stores: Epilogue, lanes: int, threads: int, *, has_mask: bool) -> Kernel:
    """Return the kernel of a softmax over the channels of the float pixels `A`.

    The largest number of a row is taken off first, so nothing overflows. `rate` turns what is left
    into a power of two: `log2(e)`, times the positive number that scales the scores where no mask
    is added. A mask `M` is added to scores scaled by `factor`; it has strides `ms0`, `ms1` and
    `ms2` along batches, heads and rows, and is contiguous in a row. Rows are taken `per` at a
    time; a uint8 output has room for the floats of one row of each such part from `behind` on.

    Args:
        stores: What is stored, without a residual.
        lanes: Of a vector; 16 only where it divides the number of channels.
        threads: Number of threads of the network.
        has_mask: Whether there is a mask.
    """
    at = f"T.ramp({{}} + c * {lanes}, 1, {lanes})"
    hold = _Hold(stores.output, lanes)
    number = f"A[{at.format('source')}]"
    if has_mask:
        mask = f"M[{at.format('mask')}]"
        number = f"{number} * T.broadcast(factor, {lanes}) + {mask}"
    if lanes == 8:
        inside = f"T.ramp(c * {lanes}, 1, {lanes}) < T.broadcast(width, {lanes})"
        number = f"T.Select({inside}, {number}, T.broadcast({_LEAST}, {lanes}))"
    below = f"({hold.load() if has_mask else number} - T.broadcast(top, {lanes}))"
    each = f"for c in range((width + {lanes - 1}) // {lanes}):"
    acc = f"acc[0, T.ramp(0, 1, {lanes})]"
    lines, power = power_of_two(f"{below} * T.broadcast(rate, {lanes})", lanes)
    lines += [hold.store(power), f"{acc} = {acc} + {power}"]
    result = f"{hold.load()} * T.broadcast(share, {lanes})"
    largest = [hold.store(number), f"{acc} = T.max({acc}, {hold.load()})"]
    body = [
        "source: T.let[T.int32] = x * acs + aoff",
        "target: T.let[T.int32] = x * dcs + doff",
        f"held: T.let[T.int32] = behind + p * ((width + {lanes - 1}) // {lanes}) * {4 * lanes}",
        *(_mask_place() if has_mask else []),
        local_buffer("acc", "float32", 1, lanes),
        f"{acc} = T.broadcast({_LEAST}, {lanes})",
        *nest([each], largest if has_mask else [f"{acc} = T.max({acc}, {number})"]),
        *reduced("top", acc, lanes, "T.max({}, {})"),
        f"{acc} = T.broadcast(T.float32(0), {lanes})",
        *nest([each], lines),
        *reduced("total", acc, lanes, "{} + {}"),
        "share: T.let[T.float32] = T.float32(1) / total",
        *nest([each], stores.real(Place(lanes, "", f"D[{at.format('target')}]"), result)),
    ]
    loops = [
        f"for p in {parallel('(rows + per - 1) // per', threads)}:",
        "for r in range(T.min(per, rows - p * per)):",
        "x: T.let[T.int32] = p * per + r",
    ]
    return Kernel(
        kind=f"softmax{'_masked' * has_mask}_{stores.tag}",
        buffers=(
            ("A", "float32"),
            *((("M", "float32"),) if has_mask else ()),
            ("D", stores.output),
        ),
        ints=INTS,
        floats=(*epilogue.FLOATS, "factor", "rate"),
        body=tuple(nest(loops, body)),
    )


class _Hold:
    """Where a row's powers wait for their sum.

    That is where they will stay if they are stored as floats, otherwise behind the output.
    """

    def __init__(self, output: str, lanes: int) -> None:
        self.is_stored, self.lanes = output == "float32", lanes
        self.bytes = f"D[T.ramp(held + c * {4 * lanes}, 1, {4 * lanes})]"
        self.numbers = f"D[T.ramp(target + c * {lanes}, 1, {lanes})]"

    def load(self) -> str:
        """Return the expression of a vector that waits."""
        if self.is_stored:
            return self.numbers
        return f"T.reinterpret('float32x{self.lanes}', {self.bytes})"

    def store(self, value: str) -> str:
        """Return the line that puts a vector down."""
        if self.is_stored:
            return f"{self.numbers} = {value}"
        return f"{self.bytes} = T.reinterpret('uint8x{4 * self.lanes}', {value})"


def _mask_place() -> list[str]:
    heads = "x // m % inner * ms1"
    return [
        f"mask: T.let[T.int32] = x // (m * inner) * ms0 + {heads} + x % m * ms2 + moff",
    ]
