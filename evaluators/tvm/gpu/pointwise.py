"""Kernels that mix no pixels, and pooling: a thread for four channels of a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..image import Image
from ..kernels.script import nest
from ..sink import Sink
from .epilogue import reals4, store_reals
from .script import Buffer, GpuKernel, add, all4, at4, each, mul, real, steps_to_u8

_JOINS = {"add": add, "mul": mul}


def _where(image: Image) -> list[str]:
    """Lines that name the pixel and the first channel of thread `i`."""
    return [
        f"pixel: T.let[T.int32] = i // {image.cp // 4}",
        f"channel: T.let[T.int32] = i % {image.cp // 4} * 4",
    ]


def _count(image: Image) -> int:
    return image.n * image.h * image.w * image.cp // 4


def _buffer(name: str, image: Image) -> Buffer:
    return name, image.dtype, (image.size,)


def elementwise_kernel(
    operands: Sequence[Image], output: Image, sink: Sink, how: str, size: int
) -> GpuKernel:
    """Return the kernel that adds or multiplies one or two images, activates, clamps and stores.

    Args:
        operands: The first has the size of the output. The second has it, or one pixel per image,
            or one channel.
        output: The result.
        sink: What is stored.
        how: `add` or `mul`.
        size: Length of the output.
    """
    values = []
    for k, image in enumerate(operands):
        pixel = f"pixel // {output.h * output.w}" if _is_pixel(image, output) else "pixel"
        if image.c < output.c:  # a gate for each pixel
            values.append(all4(_real1(f"A{k}", image, f"{pixel} * {image.cp}")))
        else:
            values.append(reals4(f"A{k}", image, f"{pixel} * {image.cp} + channel"))
    value = values[0] if len(values) == 1 else _JOINS[how](*values)
    divisor = real(sink.scale)
    body = [*_where(output), *store_reals(sink, value, "i * 4", divisor)]
    buffers = [_buffer(f"A{k}", image) for k, image in enumerate(operands)]
    return each(how, [*buffers, ("D", output.dtype, (size,))], _count(output), body)


def _is_pixel(image: Image, output: Image) -> bool:
    return (image.h, image.w) != (output.h, output.w)


def _real1(buffer: str, image: Image, place: str) -> str:
    """Return one number of an image as a real."""
    value = f"{buffer}[{place}]"
    if image.dtype == "float32":
        return value
    steps = f"T.Cast('float32', T.Cast('int32', {value}) - {image.zero_point})"
    return f"{steps} * {real(image.scale)}"


def from_plain_kernel(
    output: Image, shape: Sequence[int], sink: Sink, *, is_row: bool
) -> GpuKernel:
    """Return the kernel that turns a float tensor into an image.

    Args:
        output: The image; its channel pitch may be larger than that of the tensor.
        shape: Of the tensor.
        sink: What is stored.
        is_row: Whether the tensor has its channels last, else it is NCHW.
    """
    pixels = output.h * output.w
    first = f"pixel // {pixels} * {output.c * pixels} + pixel % {pixels}"
    place = f"pixel * {output.c} + {{}}" if is_row else f"{first} + {{}} * {pixels}"
    body = [*_where(output), "four = T.alloc_buffer((4,), 'float32', scope='local')"]
    for k in range(4):
        value = f"A[{place.format(f'(channel + {k})')}]"
        if output.c % 4:
            value = f"T.if_then_else(channel + {k} < {output.c}, {value}, T.float32(0))"
        body.append(f"four[{k}] = {value}")
    body += store_reals(sink, "four[T.ramp(0, 1, 4)]", "i * 4", real(sink.scale))
    buffers = [("A", "float32", tuple(shape)), _buffer("D", output)]
    return each("from_plain", buffers, _count(output), body)


def to_plain_kernel(image: Image, shape: Sequence[int], *, is_row: bool) -> GpuKernel:
    """Return the kernel that makes a float tensor of an image: with channels last, or NCHW."""
    pixels, channels = image.h * image.w, image.c
    pixel, channel = f"i // {channels}", f"i % {channels}"
    if not is_row:
        pixel = f"i // {channels * pixels} * {pixels} + i % {pixels}"
        channel = f"i // {pixels} % {channels}"
    body = [f"D[i] = {_real1('A', image, f'({pixel}) * {image.cp} + {channel}')}"]
    size = image.n * pixels * channels
    return each("to_plain", [_buffer("A", image), ("D", "float32", tuple(shape))], size, body)


def concat_kernel(images: Sequence[Image], output: Image, sink: Sink) -> GpuKernel:
    """Return the kernel that joins images along the channels; only the last may leave gaps."""
    lines, place = [], 0
    for k, image in enumerate(images):
        value = reals4(f"A{k}", image, f"pixel * {image.cp} + channel - {place}")
        keyword = "if" if k == 0 else "elif"
        test = f"{keyword} channel < {place + image.cp}:" if k < len(images) - 1 else "else:"
        lines += nest([test], store_reals(sink, value, "i * 4", real(sink.scale)))
        place += image.c
    buffers = [_buffer(f"A{k}", image) for k, image in enumerate(images)]
    body = [*_where(output), *lines]
    return each(f"concat{len(images)}", [*buffers, _buffer("D", output)], _count(output), body)


def _window(
    image: Image, output: Image, window: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """Lines that name the part of a pooling window inside the image; the loops over it."""
    h, w = image.h, image.w
    sh, sw, kh, kw = (int(window[name]) for name in ("sh", "sw", "kh", "kw"))
    top, left = int(window.get("pt", 0)), int(window.get("pl", 0))
    # Where images become rows of pixels, each window makes a whole image.
    ho, wo = output.h, int(window.get("wo", output.w))
    lines = [
        f"b0: T.let[T.int32] = pixel // {ho * wo}",
        f"yw: T.let[T.int32] = pixel % {ho * wo} // {wo} * {sh} - {top}",
        f"xw: T.let[T.int32] = pixel % {wo} * {sw} - {left}",
        "y0: T.let[T.int32] = T.max(yw, 0)",
        f"y1: T.let[T.int32] = T.min(yw + {kh}, {h})",
        "x0: T.let[T.int32] = T.max(xw, 0)",
        f"x1: T.let[T.int32] = T.min(xw + {kw}, {w})",
    ]
    return lines, ["for v in range(y1 - y0):", "for u in range(x1 - x0):"]


def _tap(image: Image) -> str:
    h, w, cp = image.h, image.w, image.cp
    return f"A[{at4(f'((b0 * {h} + y0 + v) * {w} + x0 + u) * {cp} + channel')}]"


def max_pool_kernel(source: Image, output: Image, window: Mapping[str, float]) -> GpuKernel:
    """Return the kernel of max pooling, in the steps of its input."""
    dtype = source.dtype
    lowest = {"uint8": "T.uint8(0)", "float32": "T.float32('-inf')"}[dtype]
    inside, loops = _window(source, output, window)
    top = "top[T.ramp(0, 1, 4)]"
    body = [
        *_where(output),
        *inside,
        f"top = T.alloc_buffer((4,), '{dtype}', scope='local')",
        f"{top} = {all4(lowest)}",
        *nest(loops, [f"{top} = T.max({top}, {_tap(source)})"]),
        f"D[{at4('i * 4')}] = {top}",
    ]
    return each("max_pool", [_buffer("A", source), _buffer("D", output)], _count(output), body)


def average_pool_kernel(
    source: Image, output: Image, sink: Sink, window: Mapping[str, float]
) -> GpuKernel:
    """Return the kernel of average pooling; integer sums are exact."""
    is_integer, whole = source.dtype == "uint8", int(window.get("whole", 0))
    dtype, zero = ("int32", "T.int32(0)") if is_integer else ("float32", "T.float32(0)")
    inside, loops = _window(source, output, window)
    acc = "acc[T.ramp(0, 1, 4)]"
    value = f"T.Cast('int32x4', {_tap(source)})" if is_integer else _tap(source)
    mean = acc
    if is_integer:
        mean = f"T.Cast('float32x4', {acc} - {all4(f'{source.zero_point} * count')})"
    divisor = f"T.float32({whole})" if whole else "T.Cast('float32', count)"
    mean = mul(mean, all4(f"({real(source.scale / sink.scale)} / {divisor})"))
    stored = mean
    if sink.dtype == "uint8":
        stored = steps_to_u8(mean, *sink.steps, sink.zero_point)
    body = [
        *_where(output),
        *inside,
        "count: T.let[T.int32] = (y1 - y0) * (x1 - x0)",
        f"acc = T.alloc_buffer((4,), '{dtype}', scope='local')",
        f"{acc} = {all4(zero)}",
        *nest(loops, [f"{acc} = {acc} + {value}"]),
        f"D[{at4('i * 4')}] = {stored}",
    ]
    return each("average_pool", [_buffer("A", source), _buffer("D", output)], _count(output), body)
