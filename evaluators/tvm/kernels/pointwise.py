"""Kernels that mix no pixels: sums, changes of scale or layout, concatenation.

They compute what the file says in its own order of rounding (dequantize, add, clamp, divide by the
step, round). Only a product and the sum behind it may be fused by the CPU.
"""

from __future__ import annotations

from . import activation, x86
from .activation import activate
from .script import Kernel, fill_border, local_buffer, nest, parallel, shuffle

_OUTPUT = ("n", "ho", "wo", "dns", "drs", "dcs", "doff", "db", "zo")
_CLAMP = ("flo", "fhi", "step", "qlo", "qhi")
_SIGNS = {"add": "+", "mul": "*"}


def real_numbers(buffer: str, dtype: str, at: str, operand: int, lanes: int = 8) -> str:
    """Real value of a vector; scale `f<k>` and zero point `z<k>` where its numbers are uint8."""
    if dtype == "float32":
        return f"{buffer}[{at}]"
    steps = f"T.Cast('int32x{lanes}', {buffer}[{at}]) - T.broadcast(z{operand}, {lanes})"
    return f"T.Cast('float32x{lanes}', {steps}) * T.broadcast(f{operand}, {lanes})"


def _stored(value: str, output: str, lanes: int = 8) -> str:
    """Clamp a real value; quantize it with `step` and `zo` where the output is uint8."""

    def wide(name: str) -> str:
        return f"T.broadcast({name}, {lanes})" if lanes > 1 else name

    value = f"T.max(T.min({value}, {wide('fhi')}), {wide('flo')})"
    if output == "float32":
        return value
    suffix = f"x{lanes}" if lanes > 1 else ""
    steps = f"T.max(T.min(T.nearbyint({value} / {wide('step')}), {wide('qhi')}), {wide('qlo')})"
    return f"T.Cast('uint8{suffix}', T.Cast('int32{suffix}', {steps}) + {wide('zo')})"


def _zero(output: str) -> str:
    return "T.Cast('uint8', zo)" if output == "uint8" else "T.float32(0)"


def _border(output: str) -> list[str]:
    return fill_border("D", "zo" if output == "uint8" else "T.float32(0)", output)


def elementwise_kernel(
    operands: tuple[str, ...],
    output: str,
    threads: int,
    how: str = "add",
    function: str = "",
    *,
    is_gated: bool = False,
) -> Kernel:
    """Return the kernel that adds or multiplies one or two images, activates, clamps and stores.

    With one operand it changes scale or type. Strides of 0 spread an operand over rows or columns.

    Args:
        operands: dtypes of `A0` (and `A1`).
        output: dtype of `D`.
        threads: Number of threads of the network.
        how: `add` or `mul`.
        function: Name of an activation, or an empty string.
        is_gated: Whether the last operand has one number for all channels of a pixel.
    """
    names = [f"A{k}" for k in range(len(operands))]
    pixel = "b * a{0}ns + y * a{0}rs + x * a{0}cs + a{0}off"
    values = [
        real_numbers(name, dtype, f"T.ramp({pixel.format(k)} + c * 8, 1, 8)", k)
        for k, (name, dtype) in enumerate(zip(names, operands, strict=True))
    ]
    if is_gated:
        last = len(operands) - 1
        values[last] = (
            f"T.broadcast({_single(names[last], operands[last], pixel.format(last), last)}, 8)"
        )
    loops = [
        f"for y in {parallel('ho', threads)}:",
        *("for b in range(n):", "for x in range(wo):", "for c in range(dcs // 8):"),
    ]
    to = "T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)"
    joined = f" {_SIGNS[how]} ".join(f"({value})" for value in values)
    lines, result = activate(function, joined, 8)
    store = f"D[{to}] = {_stored(result, output)}"
    per_operand = [f"a{k}{s}" for k in range(len(operands)) for s in ("ns", "rs", "cs", "off")]
    name = how + "_gate" * is_gated + f"_{function}" * bool(function)
    return Kernel(
        kind=f"{name}_{'_'.join(operands)}_{output}",
        buffers=(*zip(names, operands, strict=True), ("D", output)),
        ints=(*_OUTPUT, *per_operand, *(f"z{k}" for k in range(len(operands)))),
        floats=(*_CLAMP, *activation.FLOATS, *(f"f{k}" for k in range(len(operands)))),
        body=(*_border(output), *nest(loops, [*lines, store])),
    )


def concat_kernel(operands: tuple[str, ...], output: str, threads: int) -> Kernel:
    """Return the kernel that joins images along the channels, each brought to the output's scale.

    Channel counts are free. `c<k>` is the number of channels of operand `k`, `co<k>` its place in
    the output.
    """
    lines: list[str] = []
    for k, dtype in enumerate(operands):
        vector = real_numbers(f"A{k}", dtype, f"T.ramp(from{k} + c * 8, 1, 8)", k)
        single = _single(f"A{k}", dtype, f"from{k} + c{k} // 8 * 8 + t", k)
        pixel = [
            f"from{k}: T.let[T.int32] = b * a{k}ns + y * a{k}rs + x * a{k}cs + a{k}off",
            f"to{k}: T.let[T.int32] = b * dns + y * drs + x * dcs + doff + co{k}",
            f"for c in range(c{k} // 8):",
            f"  D[T.ramp(to{k} + c * 8, 1, 8)] = {_stored(vector, output)}",
            f"for t in range(c{k} % 8):",
            f"  D[to{k} + c{k} // 8 * 8 + t] = {_stored(single, output, 1)}",
        ]
        if k == len(operands) - 1:  # a pixel holds eights, and all of it must be finite
            pixel += [
                f"for t in range(dcs - co{k} - c{k}):",
                f"  D[to{k} + c{k} + t] = {_zero(output)}",
            ]
        lines += nest(["for b in range(n):", "for x in range(wo):"], pixel)
    ints = [f"a{k}{s}" for k in range(len(operands)) for s in ("ns", "rs", "cs", "off")]
    ints += [f"{name}{k}" for k in range(len(operands)) for name in ("z", "c", "co")]
    return Kernel(
        kind=f"concat{len(operands)}_{output}",
        buffers=(*((f"A{k}", dtype) for k, dtype in enumerate(operands)), ("D", output)),
        ints=(*_OUTPUT, *ints),
        floats=(*_CLAMP, *(f"f{k}" for k in range(len(operands)))),
        body=(*_border(output), *nest([f"for y in {parallel('ho', threads)}:"], lines)),
    )


def _single(buffer: str, dtype: str, at: str, operand: int) -> str:
    """Real value of one number of an operand."""
    if dtype == "float32":
        return f"{buffer}[{at}]"
    return f"T.Cast('float32', T.Cast('int32', {buffer}[{at}]) - z{operand}) * f{operand}"


def widen_kernel(threads: int) -> Kernel:
    """Return the kernel that copies the bytes of an image into words; a few behind it may miss."""
    at = "T.ramp(i * 16, 1, 16)"
    loop = f"for i in {parallel('size // 16', threads)}:"
    body = nest([loop], [f"D[{at}] = T.Cast('int16x16', A[{at}])"])
    return Kernel("widen", (("A", "uint8"), ("D", "int16")), ("size",), (), tuple(body))


def from_nchw_kernel(output: str, threads: int, dense: int = 0, register: int = 0) -> Kernel:
    """Return the kernel that turns a float NCHW tensor `A` into an image `D`.

    `c` channels are copied; the channel pitch of the image may be larger. `inv` is 1 / `step`.

    Args:
        output: dtype of `D`.
        threads: Threads of the network.
        dense: The number of channels where it is small and the pitch of the image as well: rows
            are then read in vectors and their numbers interleaved. 0 serves any number.
        register: How many numbers a register of x86 holds, 8 or 16, with fused products: for up
            to 4 dense channels that go to uint8, where `flo` and `fhi` leave nothing to `qlo` and
            `qhi`. 0 serves any CPU.
    """
    loops = [f"for y in {parallel('ho', threads)}:", "for b in range(n):"]
    n_singles, vectors, row = "wo", list[str](), register or _ROW
    if dense:
        n_singles = f"T.if_then_else(wo < {row}, wo, 0)"
        n_vectors = f"T.if_then_else(wo < {row}, 0, (wo + {row - 1}) // {row})"
        lines = _interleaved(output, dense, row, is_x86=register > 0)
        vectors = nest([f"for t in range({n_vectors}):"], lines)
    value = _stored("A[((b * c + k) * ho + y) * wo + x]", output, 1)
    store = f"D[b * dns + y * drs + x * dcs + doff + k] = {value}"
    # Channels outermost reads rows as they lie; the border's channels come in whole pixels of
    # `dcs`.
    singles = nest(["for k in range(c):", f"for x in range({n_singles}):"], [store])
    return Kernel(
        kind=f"from_nchw{dense or ''}_{output}{'_x86' * (register > 0)}",
        buffers=(("A", "float32"), ("D", output)),
        ints=(*_OUTPUT, "c"),
        floats=(*_CLAMP, *(("inv",) if register else ())),
        body=(*_fill_any(output), *nest(loops, [*vectors, *singles])),
    )


_ROW = 16  # numbers of a row that any CPU converts at once


def _interleaved(output: str, channels: int, row: int, *, is_x86: bool) -> list[str]:
    """Lines that convert `row` pixels of `channels` channels; the last ones are moved back."""
    at = f"T.ramp(((b * {channels} + {{}}) * ho + y) * wo + x, 1, {row})"
    inputs = [f"A[{at.format(k)}]" for k in range(channels)]
    lines = [f"x: T.let[T.int32] = T.min(t * {row}, wo - {row})"]
    if is_x86:
        for k, real in enumerate(inputs):
            bounded = f"T.max(T.min({real}, T.broadcast(fhi, {row})), T.broadcast(flo, {row}))"
            lines.append(f"real{k}: T.let[T.float32x{row}] = {bounded}")
        steps = [x86.quotient(f"real{k}", "step", "inv", row) for k in range(channels)]
        pixels = x86.interleaved_u8(steps, row)
    else:
        rows = [_stored(real, output, row) for real in inputs]
        order = [k * row + i for i in range(row) for k in range(channels)]
        pixels = rows[0] if channels == 1 else shuffle(rows, order)
    to = f"T.ramp(b * dns + y * drs + x * {channels} + doff, 1, {row * channels})"
    return [*lines, f"D[{to}] = {pixels}"]


def _fill_any(output: str) -> list[str]:
    """Lines that fill a whole image of any channel pitch, unless all of it is written anyway."""
    extent = "T.if_then_else(db > 0 or dcs > c, n * dns, 0)"
    return nest([f"for i in range({extent}):"], [f"D[i] = {_zero(output)}"])


def to_nchw_kernel(data: str, threads: int) -> Kernel:
    """Return the kernel that turns an image into a float NCHW tensor."""
    value = "A[b * ans + y * ars + x * acs + aoff + k]"
    if data == "uint8":
        value = f"T.Cast('float32', T.Cast('int32', {value}) - z0) * f0"
    loops = [
        f"for y in {parallel('h', threads)}:",
        "for b in range(n):",
        "for k in range(c):",
        "for x in range(w):",
    ]
    return Kernel(
        kind=f"to_nchw_{data}",
        buffers=(("A", data), ("D", "float32")),
        ints=("n", "h", "w", "c", "ans", "ars", "acs", "aoff", "z0"),
        floats=("f0",),
        body=tuple(nest(loops, [f"D[((b * c + k) * h + y) * w + x] = {value}"])),
    )


def move_kernel(dtype: str, channels: str, lanes: int, threads: int) -> Kernel:
    """Return the kernel that fetches every pixel of image `D` from another place in image `A`.

    Table `G` holds for every batch, row and column of the output what it adds to the place
    `base`; the pixel is filled with `fill`, in stored form, where the sum is below -2^27.

    Args:
        dtype: Of both images.
        channels: How the channels of a pixel lie in `A`: `run` (`count` numbers in a row, to stand
            behind `ahead` filled ones), `weave2` to `weave4` (so many runs of `count` numbers,
            `apart` apart, that each give a number in turn), `table` (`count` entries of `G`).
        lanes: Numbers per vector.
        threads: Number of threads of the network.
    """
    ways = int(channels.removeprefix("weave")) if channels.startswith("weave") else 1
    width = lanes * ways
    if channels == "table":
        entry, rest = "G[T.ramp(n + ho + wo + c * 8, 1, 8)]", "G[n + ho + wo + done + t]"
        vector, single = f"A[T.broadcast(from_, 8) + {entry}]", f"A[from_ + {rest}]"
    elif channels == "run":
        vector, single = f"A[T.ramp(from_ + c * {lanes}, 1, {lanes})]", "A[from_ + done + t]"
    else:
        parts = [f"A[T.ramp(from_ + {k} * apart + c * 8, 1, 8)]" for k in range(ways)]
        order = [k * 8 + i for i in range(8) for k in range(ways)]
        vector = f"T.Shuffle([{', '.join(parts)}], {order})"
        single = f"A[from_ + t % {ways} * apart + done // {ways} + t // {ways}]"
    pixel = [
        "part: T.let[T.int32] = G[b] + G[n + y] + G[n + ho + x]",
        "from_: T.let[T.int32] = base + part",
        "to: T.let[T.int32] = b * dns + y * drs + x * dcs + doff",
        "if part < -(1 << 27):",
        "  for c in range(dcs // 8):",
        "    D[T.ramp(to + c * 8, 1, 8)] = T.broadcast(filled, 8)",
        "else:",
        *("  for t in range(ahead):", "    D[to + t] = filled"),
        f"  for c in range(count // {lanes}):",
        f"    D[T.ramp(to + ahead + c * {width}, 1, {width})] = {vector}",
        f"  done: T.let[T.int32] = count // {lanes} * {width}",
        f"  for t in range(count * {ways} - done):",
        f"    D[to + ahead + done + t] = {single}",
        f"  for t in range(dcs - ahead - count * {ways}):",
        f"    D[to + ahead + count * {ways} + t] = filled",
    ]
    loops = [f"for y in {parallel('ho', threads)}:", "for b in range(n):", "for x in range(wo):"]
    filled = "T.Cast('uint8', T.Cast('int32', fill))" if dtype == "uint8" else "fill"
    return Kernel(
        kind=f"move_{channels}_{dtype}",
        buffers=(("A", dtype), ("G", "int32"), ("D", dtype)),
        ints=(*_OUTPUT, "base", "count", "ahead", "apart"),
        floats=("fill",),
        body=(f"filled: T.let[T.{dtype}] = {filled}", *_border(dtype), *nest(loops, pixel)),
    )


def resample_kernel(data: str, output: str, taps: tuple[int, int], threads: int) -> Kernel:
    """Return the kernel whose pixels are weighted sums of pixels, rows and columns apart.

    `Y` and `X` hold the places of the rows and columns that each output row and column is made
    of; `V` and `W` their weights.

    Args:
        data: dtype of `A`.
        output: dtype of `D`.
        taps: Rows and columns of a sum; 0 for a number that is read at run time (`kh`, `kw`).
        threads: Number of threads of the network.
    """
    acc = "acc[0, T.ramp(0, 1, 8)]"
    down, across = (
        f"T.unroll({n})" if n else f"range({name})"
        for n, name in zip(taps, ("kh", "kw"), strict=True)
    )
    kh, kw = (str(n) if n else name for n, name in zip(taps, ("kh", "kw"), strict=True))
    place = f"A[T.ramp(b * ans + base + Y[y * {kh} + i] + X[x * {kw} + j] + c * 8, 1, 8)]"
    weight = f"T.broadcast(V[y * {kh} + i] * W[x * {kw} + j], 8)"
    value = place
    if data == "uint8":  # the zero point and the scale come once, behind the sum
        value = f"T.Cast('float32x8', T.Cast('int32x8', {place}))"
    total = f"({acc} - T.broadcast(T.Cast('float32', z0), 8)) * T.broadcast(f0, 8)"
    body = [
        local_buffer("acc", "float32", 1, 8),
        f"{acc} = T.broadcast(T.float32(0), 8)",
        *nest(
            [f"for i in {down}:", f"for j in {across}:"], [f"{acc} = {acc} + {weight} * {value}"]
        ),
        "D[T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)] = "
        + _stored(total if data == "uint8" else acc, output),
    ]
    loops = [
        f"for y in {parallel('ho', threads)}:",
        *("for b in range(n):", "for x in range(wo):", "for c in range(dcs // 8):"),
    ]
    places = (("Y", "int32"), ("X", "int32"), ("V", "float32"), ("W", "float32"))
    return Kernel(
        kind=f"resample{taps[0]}x{taps[1]}_{data}_{output}",
        buffers=(("A", data), *places, ("D", output)),
        ints=(*_OUTPUT, "ans", "base", "kh", "kw", "z0"),
        floats=(*_CLAMP, "f0"),
        body=(*_border(output), *nest(loops, body)),
    )


def channel_kernel(data: str, output: str, how: str, function: str, threads: int) -> Kernel:
    """Return the kernel that changes every channel by numbers of its own, activates and stores.

    `S` and, from `bo` on, `B` hold them, for each image `sns` further on (0 where all images share
    them).

    Args:
        data: dtype of `A0`.
        output: dtype of `D`.
        how: `scale` (times `S`, plus `B`) or `slope` (times `S` where it is negative).
        function: Name of an activation, or an empty string.
        threads: Number of threads of the network.
    """
    at = "T.ramp(b * a0ns + y * a0rs + x * a0cs + a0off + c * 8, 1, 8)"
    first, second = "S[T.ramp(b * sns + c * 8, 1, 8)]", "B[T.ramp(b * sns + bo + c * 8, 1, 8)]"
    value, zero = real_numbers("A0", data, at, 0), "T.broadcast(T.float32(0), 8)"
    changed = f"({value}) * {first} + {second}"
    if how == "slope":
        changed = f"T.max({value}, {zero}) + T.min({value}, {zero}) * {first} + {second}"
    lines, result = activate(function, changed, 8)
    loops = [
        f"for y in {parallel('ho', threads)}:",
        *("for b in range(n):", "for x in range(wo):", "for c in range(dcs // 8):"),
    ]
    to = "T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)"
    return Kernel(
        kind=f"{how}{f'_{function}' * bool(function)}_{data}_{output}",
        buffers=(("A0", data), ("S", "float32"), ("B", "float32"), ("D", output)),
        ints=(*_OUTPUT, "a0ns", "a0rs", "a0cs", "a0off", "z0", "sns", "bo"),
        floats=(*_CLAMP, *activation.FLOATS, "f0"),
        body=(*_border(output), *nest(loops, [*lines, f"D[{to}] = {_stored(result, output)}"])),
    )
