"""Kernels that mix no pixels: sums, changes of scale or layout, concatenation.

They compute what the file says in its own order of rounding (dequantize, add, clamp, divide by the
step, round). Only a product and the sum behind it may be fused by the CPU.
"""

from __future__ import annotations

from . import activation
from .activation import activate
from .script import Kernel, fill_border, nest, parallel

_OUTPUT = ("n", "ho", "wo", "dns", "drs", "dcs", "doff", "db", "zo")
_CLAMP = ("flo", "fhi", "step", "qlo", "qhi")
_SIGNS = {"add": "+", "mul": "*"}


def _real(buffer: str, dtype: str, at: str, operand: int) -> str:
    """Real value of eight numbers; scale `f<k>` and zero point `z<k>` where they are uint8."""
    if dtype == "float32":
        return f"{buffer}[{at}]"
    steps = f"T.Cast('int32x8', {buffer}[{at}]) - T.broadcast(z{operand}, 8)"
    return f"T.Cast('float32x8', {steps}) * T.broadcast(f{operand}, 8)"


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
    operands: tuple[str, ...], output: str, threads: int, how: str = "add", function: str = ""
) -> Kernel:
    """Return the kernel that adds or multiplies one or two images, activates, clamps and stores.

    With one operand it changes scale or type. Strides of 0 spread an operand over rows or columns.

    Args:
        operands: dtypes of `A0` (and `A1`).
        output: dtype of `D`.
        threads: Number of threads of the network.
        how: `add` or `mul`.
        function: Name of an activation, or an empty string.
    """
    names = [f"A{k}" for k in range(len(operands))]
    at = "T.ramp(b * a{0}ns + y * a{0}rs + x * a{0}cs + a{0}off + c * 8, 1, 8)"
    values = [
        _real(name, dtype, at.format(k), k)
        for k, (name, dtype) in enumerate(zip(names, operands, strict=True))
    ]
    loops = [
        f"for y in {parallel('ho', threads)}:",
        *("for b in range(n):", "for x in range(wo):", "for c in range(dcs // 8):"),
    ]
    to = "T.ramp(b * dns + y * drs + x * dcs + doff + c * 8, 1, 8)"
    joined = f" {_SIGNS[how]} ".join(f"({value})" for value in values)
    lines, result = activate(function, joined, 8)
    store = f"D[{to}] = {_stored(result, output)}"
    per_operand = [f"a{k}{s}" for k in range(len(operands)) for s in ("ns", "rs", "cs", "off")]
    return Kernel(
        kind=f"{how}{f'_{function}' * bool(function)}_{'_'.join(operands)}_{output}",
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
        vector = _real(f"A{k}", dtype, f"T.ramp(from{k} + c * 8, 1, 8)", k)
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


def from_nchw_kernel(output: str, threads: int, dense: int = 0) -> Kernel:
    """Return the kernel that turns a float NCHW tensor `A` into an image `D`.

    `c` channels are copied; the channel pitch of the image may be larger.

    Args:
        output: dtype of `D`.
        threads: Threads of the network.
        dense: The number of channels where it is small and the pitch of the image as well: rows
            are then read in vectors and their numbers interleaved. 0 serves any number.
    """
    loops = [f"for y in {parallel('ho', threads)}:", "for b in range(n):"]
    n_singles, vectors = "wo", list[str]()
    if dense:
        n_singles = f"T.if_then_else(wo < {_ROW}, wo, 0)"
        n_vectors = f"T.if_then_else(wo < {_ROW}, 0, (wo + {_ROW - 1}) // {_ROW})"
        vectors = nest([f"for t in range({n_vectors}):"], _interleaved(output, dense))
    value = _stored("A[((b * c + k) * ho + y) * wo + x]", output, 1)
    store = f"D[b * dns + y * drs + x * dcs + doff + k] = {value}"
    # Channels outermost reads rows as they lie; the border's channels come in whole pixels of
    # `dcs`.
    singles = nest(["for k in range(c):", f"for x in range({n_singles}):"], [store])
    return Kernel(
        kind=f"from_nchw{dense or ''}_{output}",
        buffers=(("A", "float32"), ("D", output)),
        ints=(*_OUTPUT, "c"),
        floats=_CLAMP,
        body=(*_fill_any(output), *nest(loops, [*vectors, *singles])),
    )


_ROW = 16  # numbers of a row that are converted at once


def _interleaved(output: str, channels: int) -> list[str]:
    """Lines that convert `_ROW` pixels of `channels` channels; the last ones are moved back."""
    at = f"T.ramp(((b * {channels} + {{}}) * ho + y) * wo + x, 1, {_ROW})"
    rows = [_stored(f"A[{at.format(k)}]", output, _ROW) for k in range(channels)]
    order = ", ".join(str(k * _ROW + i) for i in range(_ROW) for k in range(channels))
    pixels = rows[0] if channels == 1 else f"T.Shuffle([{', '.join(rows)}], [{order}])"
    to = f"T.ramp(b * dns + y * drs + x * {channels} + doff, 1, {_ROW * channels})"
    return [f"x: T.let[T.int32] = T.min(t * {_ROW}, wo - {_ROW})", f"D[{to}] = {pixels}"]


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
