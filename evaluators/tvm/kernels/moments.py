"""Mean and variance of groups of channels over the pixels of an image."""

from __future__ import annotations

from .pointwise import real_numbers
from .script import Kernel, local_buffer, nest, parallel

_SUMS = 4  # partial sums, so that no addition waits for the one before it


def moments_kernel(data: str, lanes: int, threads: int) -> Kernel:
    """Return the kernel that turns a normalization into a scale and a shift of every channel.

    `D` holds for each of the `n` images `pitch` scales, then as many shifts; those behind the last
    channel are 0. Groups are of `per` channels, `share` is one over their numbers. Deviations are
    squared after the mean is taken off, so nothing cancels. `W` and `B` are the scale and the
    shift of what is normalized.

    Args:
        data: dtype of the image `A0`.
        lanes: Of a vector; divides `pitch`.
        threads: Number of threads of the network.
    """
    number = real_numbers("A0", data, f"T.ramp(from_ + x * a0cs, 1, {lanes})", 0, lanes)
    mean = f"D[T.ramp(b * 2 * pitch + c * {lanes}, 1, {lanes})]"
    at, behind = "b * 2 * pitch + g * per + k", "b * 2 * pitch + pitch + g * per + k"
    inverse = "T.float32(1) / T.sqrt(total[0] * share + eps)"
    scaled = [
        f"mean: T.let[T.float32] = D[{at}]",
        f"D[{at}] = W[g * per + k] * inverse",
        f"D[{behind}] = B[g * per + k] - mean * D[{at}]",
    ]
    rest = nest(
        ["for k in range(pitch - groups * per):"],
        [f"D[b * 2 * pitch + {half}groups * per + k] = T.float32(0)" for half in ("", "pitch + ")],
    )
    return Kernel(
        kind=f"moments_{data}",
        buffers=(("A0", data), ("W", "float32"), ("B", "float32"), ("D", "float32")),
        ints=(
            *("n", "h", "w", "pitch", "groups", "per"),
            *("a0ns", "a0rs", "a0cs", "a0off", "z0"),
        ),
        floats=("f0", "share", "eps"),
        body=tuple(
            nest(
                ["for b in range(n):"],
                [
                    *_sums("0", number, lanes, threads),
                    *_of_groups(
                        at, "mean: T.let[T.float32] = total[0] * share", f"D[{at}] = mean"
                    ),
                    *_sums("pitch", f"({number} - {mean})", lanes, threads, is_squared=True),
                    *_of_groups(behind, f"inverse: T.let[T.float32] = {inverse}", *scaled),
                    *rest,
                ],
            )
        ),
    )


def _sums(
    place: str, number: str, lanes: int, threads: int, *, is_squared: bool = False
) -> list[str]:
    """Lines that put the sums of every channel over all pixels at `place` of an image's part.

    A row is summed apart, which keeps the rounding small.
    """

    def term(x: str) -> str:
        value = number.replace(" x * ", f" {x} * ")
        return f"({value}) * ({value})" if is_squared else value

    sums = [f"acc[{k}, T.ramp(0, 1, {lanes})]" for k in range(_SUMS)]
    total = f"acc[{_SUMS}, T.ramp(0, 1, {lanes})]"
    zero = f"T.broadcast(T.float32(0), {lanes})"
    each = [f"{one} = {one} + {term(f'(q * {_SUMS} + {k})')}" for k, one in enumerate(sums)]
    last = f"{sums[0]} = {sums[0]} + {term(f'(w // {_SUMS} * {_SUMS} + q)')}"
    row = [
        f"from_: T.let[T.int32] = b * a0ns + y * a0rs + a0off + c * {lanes}",
        *(f"{one} = {zero}" for one in sums),
        *nest([f"for q in range(w // {_SUMS}):"], each),
        *nest([f"for q in range(w % {_SUMS}):"], [last]),
        f"{total} = {total} + ({' + '.join(sums)})",
    ]
    channel = [
        local_buffer("acc", "float32", _SUMS + 1, lanes),
        f"{total} = {zero}",
        *nest(["for y in range(h):"], row),
        f"D[T.ramp(b * 2 * pitch + {place} + c * {lanes}, 1, {lanes})] = {total}",
    ]
    return nest([f"for c in {parallel(f'pitch // {lanes}', threads)}:"], channel)


def _of_groups(at: str, then: str, *lines: str) -> list[str]:
    """Lines that add up the channels of every group, then do something for each of them."""
    group = [
        local_buffer("total", "float32", 1),
        "total[0] = T.float32(0)",
        *nest(["for k in range(per):"], [f"total[0] = total[0] + D[{at}]"]),
        then,
        *nest(["for k in range(per):"], lines),
    ]
    return nest(["for g in range(groups):"], group)
