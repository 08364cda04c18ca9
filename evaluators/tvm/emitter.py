"""Kernel calls in a Relax function, and the ways between the forms of a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from ...hw_profiles.isa import ISAS
from .image import Image
from .kernels.pointwise import (
    concat_kernel,
    elementwise_kernel,
    from_nchw_kernel,
    to_nchw_kernel,
    widen_kernel,
)
from .kernels.pool import average_pool_kernel, max_pool_kernel
from .kernels.script import Kernel, worth_threads
from .layers import parameter_arrays
from .sink import Sink
from .stored import StoredWeights


class Emitter:
    """Emits kernel calls and remembers their kernels.

    Args:
        builder: Builds the function.
        threads: Threads of the network.
        isa: Kernel family of the device.
    """

    def __init__(self, builder: relax.BlockBuilder, threads: int, isa: str) -> None:
        self.builder, self.threads, self._isa = builder, threads, isa
        self.kernels: dict[str, Kernel] = {}
        self._widened: dict[relax.Var, relax.Var] = {}
        self.weights: dict[relax.Var, StoredWeights] = {}  # further parameters of the network

    def call(self, kernel: Kernel, arguments: Sequence[Any], size: int, dtype: str) -> Any:
        """Emit a call of a kernel; arrays become constants. Returns the flat output."""
        self.kernels[kernel.symbol] = kernel
        values = [relax.const(a) if isinstance(a, np.ndarray) else a for a in arguments]
        call = relax.call_dps_packed(kernel.symbol, values, _flat(size, dtype))
        return self.builder.emit(call)

    def unpacked(self, weights: StoredWeights) -> relax.Var:
        """Return the parameter of the network that brings unpacked weights."""
        # Every run would check the shape and dtype of a parameter that is known as a tensor.
        var = relax.Var(f"weights{len(self.weights)}", relax.AnyType())
        self.weights[var] = weights
        return var

    def image(self, kernel: Kernel, arguments: Sequence[Any], output: Image) -> Image:
        """Emit a call of a kernel that writes an image."""
        return replace(output, var=self.call(kernel, arguments, output.size, output.dtype))

    def widened(self, image: Image) -> relax.Var:
        """Return the numbers of a uint8 image as int16; layers that read the same share them."""
        if image.var not in self._widened:
            kernel = widen_kernel(worth_threads(self.threads, image.size))
            arguments = [image.var, *parameter_arrays(kernel, {"size": image.size})]
            self._widened[image.var] = self.call(kernel, arguments, image.size, "int16")
        return self._widened[image.var]

    def store(self, operands: Sequence[Image], sink: Sink, how: str = "add") -> Image:
        """Add or multiply one or two images and store the result.

        The first has the size of the result; the second has it, too, or one pixel per image, or
        one channel. A single image that already is what the sink asks for is returned as it is.

        Args:
            operands: The images.
            sink: What is stored.
            how: `add` or `mul`.
        """
        first = operands[0]
        if len(operands) == 1 and sink.leaves(first):
            return first
        output = sink.image(first.n, first.h, first.w, first.c)
        var = self._elementwise(operands, output, sink, how)
        return replace(output, var=var)

    def part(self, image: Image, h: int, w: int, sink: Sink) -> Image:
        """Copy the first rows and columns of an image that is stored in the sink's numbers."""
        sink = Sink(sink.border, sink.dtype, sink.scale, sink.zero_point)
        output = replace(sink.image(image.n, h, w, image.c), data_max=image.data_max)
        return replace(output, var=self._elementwise([image], output, sink, "add"))

    def _elementwise(
        self, operands: Sequence[Image], output: Image, sink: Sink, how: str, size: int = 0
    ) -> Any:
        """Emit an elementwise kernel; `size` is the length of its output if not the image's."""
        first, is_gated = operands[0], operands[-1].c < operands[0].c
        kept = operands[-1:] if is_gated else []
        whole = operands[: len(operands) - len(kept)]
        operands = [*(self.with_pitch(i, output.cp) for i in whole), *kept]
        kernel = elementwise_kernel(
            tuple(i.dtype for i in operands),
            sink.dtype,
            worth_threads(self.threads, output.size),
            how,
            sink.activation.name,
            is_gated=is_gated,
        )
        values = {**output.as_output(), **sink.parameters()}
        for k, operand in enumerate(operands):
            values |= operand.as_source(str(k))
            if (operand.h, operand.w) != (first.h, first.w):
                values |= {f"a{k}rs": 0, f"a{k}cs": 0}
            values |= {f"z{k}": operand.zero_point, f"f{k}": operand.scale}
        arguments = [*(i.var for i in operands), *parameter_arrays(kernel, values)]
        return self.call(kernel, arguments, size or output.size, output.dtype)

    def from_plain(self, var: Any, shape: Sequence[int], sink: Sink) -> Image:
        """Turn a plain float tensor into an image.

        Four dimensions are NCHW; of any other shape, the last dimension becomes the channels of
        a row of pixels.
        """
        if len(shape) == 4:
            n, c, h, w = shape
            output = sink.image(n, h, w, c)
            if c < 8:
                output = replace(output, cp=self.few_channels(c))
        else:
            output = sink.image(1, 1, math.prod(shape[:-1]), shape[-1] if shape else 1)
            if output.cp == output.c:  # rows lie as they should
                rows = [self.rows(var, shape)]
                return replace(output, var=self._elementwise(rows, output, sink, "add"))
        return self._from_plain(var, output, sink, is_row=len(shape) != 4)

    def few_channels(self, channels: int) -> int:
        """Return the pitch of the pixels that a first layer reads; they are dense."""
        return channels

    def rows(self, var: Any, shape: Sequence[int]) -> Image:
        """Return a plain float tensor as it lies: its last dimension becomes the channels.

        What is behind the last number must not be read.
        """
        flat = self.builder.emit(relax.op.reshape(var, (math.prod(shape),)))
        return Image(flat, "float32", 1, 1, math.prod(shape[:-1]), shape[-1], shape[-1])

    def to_plain(self, image: Image, shape: Sequence[int], *, is_rows: bool = False) -> Any:
        """Turn an image into a plain float tensor of a shape as in `from_plain`.

        With `is_rows` the image is a row of pixels, whatever the shape.
        """
        size = math.prod(shape)
        if (len(shape) != 4 or is_rows) and image.cp == image.c:
            output = replace(image, dtype="float32", border=0)
            flat = self._elementwise([image], output, Sink(0), "add", size)
            return self.builder.emit(relax.op.reshape(flat, tuple(shape)))
        kernel = to_nchw_kernel(image.dtype, worth_threads(self.threads, image.size))
        values: dict[str, float] = {"n": image.n, "h": image.h, "w": image.w, "c": image.c}
        values |= {**image.as_source(), "z0": image.zero_point, "f0": image.scale}
        if len(shape) != 4 or is_rows:  # every pixel of the row is an image of one pixel
            values |= {"n": image.w, "w": 1, "ans": image.cp}
        arguments = [image.var, *parameter_arrays(kernel, values)]
        flat = self.call(kernel, arguments, size, "float32")
        return self.builder.emit(relax.op.reshape(flat, tuple(shape)))

    def _from_plain(self, var: Any, output: Image, sink: Sink, *, is_row: bool) -> Image:
        dense = output.c if output.cp == output.c < 8 and not is_row else 0
        threads = worth_threads(self.threads, output.size)
        register = 0
        if dense and sink.dtype == "uint8" and self._isa.startswith("avx"):
            # Four rows are packed at once, and nothing may leave the range of float32.
            if dense <= 4 and 1e-20 < sink.scale < 1e20:
                largest = ISAS[self._isa].vector_bits // 32
                sink, register = sink.within_steps(), largest if output.w >= largest else 8
        kernel = from_nchw_kernel(sink.dtype, threads, dense, register)
        inverse = float(np.float32(1) / np.float32(sink.scale))
        values = {**output.as_output(), **sink.parameters(inverse), "c": output.c}
        if is_row:
            values |= {"n": output.w, "wo": 1, "dns": output.cp}
        size = output.n * output.h * output.w * output.c
        flat = self.builder.emit(relax.op.reshape(var, (size,)))
        return self.image(kernel, [flat, *parameter_arrays(kernel, values)], output)

    def with_pitch(self, image: Image, pitch: int) -> Image:
        """Return an image whose pixels are `pitch` apart; only a first layer's input has less."""
        if image.cp == pitch:
            return image
        plain = self.to_plain(image, (image.n, image.c, image.h, image.w))
        sink = Sink(image.border, image.dtype, image.scale, image.zero_point)
        output = replace(image, cp=pitch)
        return self._from_plain(plain, output, sink, is_row=False)

    # ---- what needs no weights

    def max_pool(self, source: Image, output: Image, window: Mapping[str, float]) -> Image:
        """Emit max pooling; the output has the scale and zero point of the input.

        Args:
            source: What is pooled.
            output: The result.
            window: The kernel's parameters `hi` to `pl`, and those of the output that are not its
                image's.
        """
        lanes = next(
            size
            for size in (32, 16, 8)
            if output.cp % size == 0 and (size == 8 or source.dtype == "uint8")
        )
        kernel = max_pool_kernel(source.dtype, lanes, worth_threads(self.threads, source.size))
        values = {**output.as_output(), **source.as_source(), **window}
        return self.image(kernel, [source.var, *parameter_arrays(kernel, values)], output)

    def average_pool(
        self, source: Image, output: Image, sink: Sink, window: Mapping[str, float]
    ) -> Image:
        """Emit average pooling, with arguments as `max_pool`; floats are not yet clamped."""
        threads = worth_threads(self.threads, source.size)
        kernel = average_pool_kernel(source.dtype, sink.dtype, threads)
        values = {**output.as_output(), **sink.parameters(), **source.as_source(), **window}
        values |= {"za": source.zero_point, "f": source.scale / sink.scale}
        return self.image(kernel, [source.var, *parameter_arrays(kernel, values)], output)

    def concat(self, sources: Sequence[Image], output: Image, sink: Sink) -> Image:
        """Emit the concatenation of images along the channels."""
        kernel = concat_kernel(
            tuple(s.dtype for s in sources), sink.dtype, worth_threads(self.threads, output.size)
        )
        values = {**output.as_output(), **sink.parameters()}
        place = 0
        for k, source in enumerate(sources):
            values |= {**source.as_source(str(k)), f"z{k}": source.zero_point}
            values |= {f"f{k}": source.scale, f"c{k}": source.c, f"co{k}": place}
            place += source.c
        arguments = [*(s.var for s in sources), *parameter_arrays(kernel, values)]
        return self.image(kernel, arguments, output)


def _flat(size: int, dtype: str) -> relax.TensorType:
    return relax.TensorType((size,), dtype)
