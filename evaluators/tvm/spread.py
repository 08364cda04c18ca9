"""Transposed depthwise convolutions: tables of what reaches each row and column of the output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..onnx_graph.transposed import Axis
from .image import Image
from .kernels.script import worth_threads
from .kernels.spread import spread_depthwise_kernel
from .layers import parameter_arrays
from .lowering import Lowering
from .sink import Sink
from .transposed import phase_weights


def spread_depthwise(
    low: Lowering,
    source: Image,
    axes: tuple[Axis, Axis],
    weights: NDArray[np.generic],
    factor: NDArray[np.generic],
    bias: NDArray[np.generic],
    sink: Sink,
) -> Image:
    """Emit a transposed convolution with one group per channel.

    Sums of integers are exact in float32: so few products never reach 2^24.

    Args:
        low: The network.
        source: Input image; its border holds what the phases read (`Axis.border`).
        axes: Rows and columns.
        weights: Shape `(channels, 1, kh, kw)`, integers where the input is in steps.
        factor: What sums are multiplied by; shape `(channels,)`.
        bias: What is added then, in real numbers; shape `(channels,)`.
        sink: What is stored.
    """
    output = sink.image(source.n, axes[0].out, axes[1].out, source.c)
    values, phases = phase_weights(weights, axes)
    n_phases, taps = len(phases.shifts), values.shape[2:]
    by_phase = values.reshape(n_phases, phases.channels, -1).transpose(0, 2, 1)
    lanes = 16 if low.isa.startswith("avx512") and output.cp % 16 == 0 else 8
    work = by_phase[0].size / 4 * output.n * output.h * output.w
    kernel = spread_depthwise_kernel(
        source.dtype, sink.epilogue, lanes, worth_threads(low.threads, work)
    )
    pitches, strides = (source.row, source.cp), (phases.stride[1], 1)
    places, starts = [], []
    for axis, pitch, stride in zip(axes, pitches, strides, strict=True):
        pixel, phase = np.divmod(np.arange(axis.out), axis.stride)
        shifts = np.array([axis.shift(p) for p in range(axis.stride)])
        places.append((pixel + shifts[phase]) * pitch)
        starts.append(phase * stride * by_phase[0].size)
    places[0] += source.origin
    channels = [np.pad(v.astype(np.float32), (0, output.cp - source.c)) for v in (bias, factor)]
    table = np.concatenate([*places, *starts]).astype(np.int32)
    given = {**output.as_output(), **sink.parameters(1.0 / sink.scale), **source.as_source("0")}
    given |= {"kh": taps[0], "kw": taps[1], "z0": source.zero_point, "f0": 1.0}
    given |= {"down": axes[0].step * source.row, "across": axes[1].step * source.cp}
    arguments = [by_phase.astype(np.float32).reshape(-1), *channels, table]
    parameters = parameter_arrays(kernel, given)
    return low.emit.image(kernel, [source.var, *arguments, *parameters], output)
