"""Convolution and linear layers, and the arguments of a kernel that computes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import depthwise
from .image import Image
from .kernels.conv import FORMS, Knobs, conv_kernel
from .kernels.depthwise import FORMS as DEPTHWISE_FORMS
from .kernels.depthwise import Window, depthwise_kernel
from .kernels.epilogue import Epilogue
from .kernels.script import Kernel
from .packing import ConvGeometry, pack, proved_runs, segment
from .sink import Sink
from .transposed import Phases

Arguments = list[NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A kernel with its constant arguments, in the order of its buffers after the input image."""

    kernel: Kernel
    constants: Arguments
    output: Image


def parameter_arrays(kernel: Kernel, values: Mapping[str, float]) -> Arguments:
    """Return the int32 and float32 parameter tensors of a kernel; other values are left out."""
    ints = np.array([values.get(name, 0) for name in kernel.ints] or [0], np.int32)
    floats = np.array([values.get(name, 0.0) for name in kernel.floats] or [0], np.float32)
    return [ints, floats]


@dataclass(frozen=True, slots=True, eq=False)
class ConvLayer:
    """A convolution or linear layer.

    Attributes:
        geometry: Sizes.
        weights: OIHW, int8 or float32.
        bias: int32 in units of input step times weight step (integer layers) or float32; shape
            `(oc,)`.
        factor: Real value (float sink) or output steps (uint8 sink) of one unit of the sum; shape
            `(oc,)`.
        source: Input image.
        pads: Top and left padding.
        output: Output image without variable.
        sink: What is stored.
        threads: Threads of the network.
        fraction: What the rounded bias of an integer layer leaves, in units of the scaled sum.
        phases: Of a transposed convolution, whose output channels are those of all phases.
    """

    geometry: ConvGeometry
    weights: NDArray[np.generic]
    bias: NDArray[np.generic]
    factor: NDArray[np.float32]
    source: Image
    pads: tuple[int, int]
    output: Image
    sink: Sink
    threads: int
    fraction: NDArray[np.float32] | None = None
    phases: Phases | None = None
    _runs: dict[int, NDArray[np.int32]] = field(default_factory=dict)

    @property
    def is_integer(self) -> bool:
        """Whether sums are integers."""
        return self.weights.dtype == np.int8

    def runs(self, ocb: int) -> NDArray[np.int32]:
        """Return the proved s16 run of each block of `ocb` channels."""
        if ocb not in self._runs:
            values = segment(self.weights, self.geometry, ocb).values
            self._runs[ocb] = proved_runs(values, self.source.data_max)
        return self._runs[ocb]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of output pixels that the kernel walks over."""
        down, across = self.phases.stride if self.phases else (1, 1)
        return -(-self.output.h // down), -(-self.output.w // across)

    def allows(self, ocb: int) -> bool:
        """Whether output channels may be taken in blocks of `ocb`; each belongs to one phase."""
        return self.phases is None or self.phases.channels % ocb == 0

    @property
    def _stores(self) -> Epilogue:
        return replace(self.sink.epilogue, has_fraction=self.fraction is not None)

    def _constants(self, weights: NDArray[Any], table: NDArray[Any]) -> Arguments:
        """Return the arguments between the input image and the residual."""
        scales = [self._channels(self.factor)] if self.is_integer else []
        fraction = [] if self.fraction is None else [self._channels(self.fraction)]
        table = table.astype(np.int32)
        return [weights, self._channels(self.bias), *scales, table, *fraction]

    def _channels(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.pad(values, (0, self.geometry.ocp - self.geometry.oc))

    def _values(self) -> dict[str, float]:
        source = self.source
        stride = self.geometry.stride
        is_done = self.is_integer and self.sink.accumulates_in_steps
        factor = 1.0 if is_done or self.sink.dtype == "float32" else 1.0 / self.sink.scale
        return {
            **self._output_values(),
            **self.sink.parameters(factor),
            **{"oc": self.geometry.ocp, "ans": source.plane},
            **{"ars": source.row * stride[0], "acs": source.cp * stride[1]},
        }

    def _output_values(self) -> dict[str, int]:
        values = self.output.as_output()
        if self.phases is not None:
            (values["ho"], values["wo"]), (down, across) = self.grid, self.phases.stride
            values |= {"fh": self.output.h, "fw": self.output.w}
            values |= {"frs": values["drs"], "fcs": values["dcs"]}
            values |= {"drs": values["drs"] * down, "dcs": values["dcs"] * across}
        return values

    def _places(self, starts: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return for blocks of channels where they read, and where they write."""
        if self.phases is None:
            return np.zeros_like(starts), starts
        phase, channel = np.divmod(starts, self.phases.channels)
        source, output = self.source, self.output
        reads = self.phases.shifts[phase] @ np.array([source.row, source.cp], np.int32)
        down, across = np.divmod(phase, self.phases.stride[1])
        return reads, down * output.row + across * output.cp + channel

    def call(self, knobs: Knobs) -> Call:
        """Return the kernel and its constants for the given settings."""
        if self.is_depthwise:
            return self._depthwise_call(knobs)
        form = FORMS[knobs.form]
        is_spread = self.phases is not None
        kernel = conv_kernel(knobs, self._stores, self.threads, is_spread=is_spread)
        cut = segment(self.weights, self.geometry, knobs.ocb)
        packed, steps = pack(cut, form)
        offsets = self.geometry.segment_offsets(self.source.row) + self.source.offset(*self.pads)
        reads, writes = self._places(cut.starts)
        table = [offsets, cut.channel_offsets + reads]
        if form.name == "rolled":
            table.append(np.maximum(self.runs(knobs.ocb), 1))
        if is_spread:
            table.append(writes)
        values = {
            **self._values(),
            **{"blocks": len(cut.starts), "segments": len(offsets), "steps": steps},
        }
        constants = self._constants(packed, np.concatenate(table))
        return Call(kernel, [*constants, *parameter_arrays(kernel, values)], self.output)

    # ---- depthwise

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has a kernel of its own, in images of one channel pitch."""
        g = self.geometry
        return g.groups == g.ic == g.oc and g.groups > 1 and self.source.cp == g.ocp

    def _depthwise_call(self, knobs: Knobs) -> Call:
        g, source, form = self.geometry, self.source, DEPTHWISE_FORMS[knobs.form]
        blocks = depthwise.blocks_of(knobs, g.ocp)
        groups = depthwise.row_groups(form, g.kernel[0])
        window = Window(*(len(groups), g.kernel[1], g.stride[1], g.dilation[1]), blocks, knobs.tw)
        kernel = depthwise_kernel(form, window, self._stores, self.threads)
        table = groups.reshape(-1) * g.dilation[0] * source.row + source.offset(*self.pads)
        weights = depthwise.pack(self.weights, form, g.ocp, blocks)
        constants = self._constants(weights, table)
        values = {**self._values(), "px": source.cp}
        return Call(kernel, [*constants, *parameter_arrays(kernel, values)], self.output)
