"""Calls of kernels for GPUs in a Relax function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from ..emitter import Emitter
from ..image import Image
from ..kernels.parsing import parse
from ..sink import Sink
from .pointwise import (
    average_pool_kernel,
    concat_kernel,
    elementwise_kernel,
    from_plain_kernel,
    max_pool_kernel,
    to_plain_kernel,
)
from .script import GpuKernel


class GpuEmitter(Emitter):
    """Emits kernels of a GPU where `Emitter` emits those of a CPU; its images have no border.

    Args:
        builder: Builds the function.
        threads: Threads of the network on the CPU.
        isa: Kernel family of the device.
    """

    def __init__(self, builder: relax.BlockBuilder, threads: int, isa: str) -> None:
        super().__init__(builder, threads, isa)
        self._functions: dict[str, Any] = {}

    def launch(self, kernel: GpuKernel, arguments: Sequence[Any]) -> Any:
        """Emit a call of a kernel; arrays become constants. Returns the flat output."""
        symbol = kernel.symbol
        if symbol not in self._functions:
            function = parse(kernel.text("main"))
            self._functions[symbol] = self.builder.add_func(
                function.without_attr("global_symbol"), symbol
            )
        values = [relax.const(a) if isinstance(a, np.ndarray) else a for a in arguments]
        _, dtype, shape = kernel.buffers[-1]
        kind = relax.TensorType(shape, dtype)
        return self.builder.emit(relax.call_tir(self._functions[symbol], values, kind))

    def few_channels(self, channels: int) -> int:
        """Return the pitch of the pixels that a first layer reads: whole words."""
        return -(-channels // 4) * 4

    def to_plain(self, image: Image, shape: Sequence[int], *, is_rows: bool = False) -> Any:
        """Turn an image into a plain float tensor of a shape as in `from_plain`."""
        kernel = to_plain_kernel(image, shape, is_row=len(shape) != 4 or is_rows)
        return self.launch(kernel, [image.var])

    def max_pool(self, source: Image, output: Image, window: Mapping[str, float]) -> Image:
        """Emit max pooling."""
        return self._image(max_pool_kernel(source, output, window), [source.var], output)

    def average_pool(
        self, source: Image, output: Image, sink: Sink, window: Mapping[str, float]
    ) -> Image:
        """Emit average pooling."""
        kernel = average_pool_kernel(source, output, sink, window)
        return self._image(kernel, [source.var], output)

    def concat(self, sources: Sequence[Image], output: Image, sink: Sink) -> Image:
        """Emit the concatenation of images along the channels."""
        kernel = concat_kernel(sources, output, sink)
        return self._image(kernel, [s.var for s in sources], output)

    def _elementwise(
        self, operands: Sequence[Image], output: Image, sink: Sink, how: str, size: int = 0
    ) -> Any:
        pitched = [i if i.c < output.c else self.with_pitch(i, output.cp) for i in operands]
        kernel = elementwise_kernel(pitched, output, sink, how, size or output.size)
        return self.launch(kernel, [image.var for image in pitched])

    def _from_plain(self, var: Any, output: Image, sink: Sink, *, is_row: bool) -> Image:
        shape = [int(size) for size in var.ty.shape]
        kernel = from_plain_kernel(output, shape, sink, is_row=is_row)
        return self._image(kernel, [var], output)

    def _image(self, kernel: GpuKernel, arguments: Sequence[Any], output: Image) -> Image:
        return replace(output, var=self.launch(kernel, arguments))
