"""Convolution and linear layers, and the arguments of a kernel that computes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import depthwise
from .image import Image
from .kernels import amx
from .kernels.conv import FORMS, X86_FORMS, Form, Knobs, conv_kernel
from .kernels.depthwise import FORMS as DEPTHWISE_FORMS
from .kernels.depthwise import X86_FORMS as X86_DEPTHWISE_FORMS
from .kernels.depthwise import DepthwiseForm, Window, depthwise_kernel, is_woven
from .kernels.epilogue import Epilogue, Narrows
from .kernels.neon import LANES as NEON_LANES
from .kernels.neon import SUMMED
from .kernels.script import Kernel
from .packing import ConvGeometry, pack, proved_runs, segment
from .sink import Sink
from .stored import StoredWeights, store
from .transposed import Phases

_FAR_BYTES = 1 << 17  # weights of a layer that have left the near caches when it runs again
_HEAVY = 4  # weights of so many times the images' bytes are not read twice; 2 to 8 gave the same

Arguments = list[NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A kernel with its constant arguments, in the order of its buffers after the input image.

    The first constant is the weights; `weights` is how a library stores them if that is smaller.
    """

    kernel: Kernel
    constants: Arguments
    output: Image
    weights: StoredWeights | None = None

    @property
    def reads_words(self) -> bool:
        """Whether the kernel reads the input image in int16, as `widen_kernel` makes it."""
        return self.kernel.buffers[0][1] == "int16"


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
        threads: Threads that share the work.
        fraction: What the rounded bias of an integer layer leaves, in units of the scaled sum.
        name: Name of the graph's node.
        phases: Of a transposed convolution, whose output channels are those of all phases.
        is_half: Whether the weights are float32 that hold float16 numbers.
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
    name: str = ""
    phases: Phases | None = None
    is_half: bool = False
    _runs: dict[tuple[int, bool], NDArray[np.int32]] = field(default_factory=dict)

    @property
    def is_integer(self) -> bool:
        """Whether sums are integers."""
        return self.weights.dtype == np.int8

    def runs(self, ocb: int, *, is_shifted: bool = False) -> NDArray[np.int32]:
        """Return the proved s16 run of each block of `ocb` channels, of data as stored or s8."""
        key = ocb, is_shifted
        if key not in self._runs:
            values = segment(self.weights, self.geometry, ocb).values
            shift = self.shift if is_shifted else None
            self._runs[key] = proved_runs(values, self.source.data_max, shift)
        return self._runs[key]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of output pixels that the kernel walks over."""
        down, across = self.phases.stride if self.phases else (1, 1)
        return -(-self.output.h // down), -(-self.output.w // across)

    def allows(self, ocb: int) -> bool:
        """Whether output channels may be taken in blocks of `ocb`; each belongs to one phase."""
        return self.phases is None or self.phases.channels % ocb == 0

    @property
    def shift(self) -> int:
        """What NEON takes off the data: that puts as much of their range below as above 0."""
        return (self.source.data_max + 1) // 2

    def _shifted(self, form: Form | DepthwiseForm) -> tuple[int, ConvLayer]:
        """Return what a form takes off the data, and the layer whose bias makes up for it."""
        if not form.is_shifted:
            return 0, self
        lost = self.weights.astype(np.int64).sum((1, 2, 3)) * self.shift
        return self.shift, replace(self, bias=(self.bias + lost).astype(np.int32))

    def _stores(self, knobs: Knobs) -> Epilogue:
        narrows: Narrows = "neon" if knobs.lanes == NEON_LANES else ""
        if knobs.form in (*X86_FORMS, *X86_DEPTHWISE_FORMS) and self._fits_int32:
            narrows = "x86"
        has_fraction = self.fraction is not None
        return replace(self.sink.epilogue, has_fraction=has_fraction, narrows=narrows)

    @property
    def _fits_int32(self) -> bool:
        """Whether scaled sums surely do: only absurd scales leave it."""
        sums = np.abs(self.weights.astype(np.int64)).sum((1, 2, 3)) * self.source.data_max
        sums += np.abs(self.bias.astype(np.int64))
        fraction = 0.0 if self.fraction is None else np.abs(self.fraction)
        return bool((sums * np.abs(self.factor).astype(np.float64) + fraction < 2.0**30).all())

    def _constants(
        self,
        weights: NDArray[Any],
        table: NDArray[Any],
        ordered: Callable[[NDArray[np.generic]], NDArray[np.generic]],
    ) -> Arguments:
        """Return the arguments between the input image and the residual.

        Args:
            weights: As they are packed.
            table: Of offsets.
            ordered: Puts a number of each channel into the order of the kernel.
        """
        scales = [ordered(self.factor)] if self.is_integer else []
        fraction = [] if self.fraction is None else [ordered(self.fraction)]
        return [weights, ordered(self.bias), *scales, table.astype(np.int32), *fraction]

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
        shift, layer = self._shifted(form)
        is_spread = self.phases is not None
        cut = segment(self.weights, self.geometry, knobs.ocb)
        kt = self._steps_at_once(cut.values.shape[-1]) if form.name == "amx" else 0
        packed, steps = pack(cut, replace(form, unroll=kt) if kt else form)
        prefetches = not form.is_neon and packed.nbytes >= _FAR_BYTES
        kernel = conv_kernel(
            knobs,
            self._stores(knobs),
            self.threads,
            is_spread=is_spread,
            prefetches=prefetches,
        )
        offsets = self.geometry.segment_offsets(self.source.row) + self.source.offset(*self.pads)
        reads, writes = self._places(cut.starts)
        table = [offsets, cut.channel_offsets + reads]
        if form.name == "rolled":
            table.append(np.maximum(self.runs(knobs.ocb), 1))
        if is_spread:
            table.append(writes)
        cfg = sum(part.size for part in table)
        if kt:
            table.append(amx.configuration(knobs.th, knobs.tw, knobs.ocb, kt))
        values = {
            **self._values(),
            **{"blocks": len(cut.starts), "segments": len(offsets), "steps": steps},
            **self._tasks(len(cut.starts), -(-self.grid[0] // knobs.th), packed.nbytes),
            **{"shift": shift, "kt": kt, "cfg": cfg},
        }
        constants = layer._constants(packed, np.concatenate(table), self._channels)
        constants += parameter_arrays(kernel, values)
        if not self._has_spare_bits(form.weights):
            return Call(kernel, constants, self.output)
        # With groups a repeated channel meets other input channels, so it is not the same; and
        # where channels hold 16 numbers in turn, they do not end with those that are repeated.
        is_repeated = self.geometry.groups == 1 and form.name not in SUMMED
        repeated = is_repeated * (len(cut.starts) * knobs.ocb - self.geometry.ocp)
        stored = store(packed, len(cut.starts), knobs.ocb * form.group, repeated * form.group)
        return Call(kernel, constants, self.output, stored.or_none(packed))

    def _steps_at_once(self, length: int) -> int:
        """Return how many steps of four numbers AMX is to multiply at once: few stay empty."""
        steps = -(-length // 4)
        return -(-steps // -(-steps // amx.SIDE))

    def _has_spare_bits(self, dtype: str) -> bool:
        """Whether weights in the dtype that a kernel reads can be stored in fewer bits."""
        return self.is_integer or (self.is_half and dtype == "float32")

    def _tasks(self, blocks: int, rows: int, weights_bytes: int) -> dict[str, int]:
        """Return into how many chunks `rows` of tiles are cut, and how tasks are counted.

        Each thread takes tasks that follow each other, as many as the others. Counted through the
        blocks first, they are rows of the image: a thread then reads what it has written in the
        layer before, and few cache lines are written by two. Counted through the chunks first,
        they are channels: no thread reads the weights of another.
        """
        rows *= self.output.n
        images_bytes = (self.source.size + self.output.size) * (1 if self.is_integer else 4)
        if 1 < self.threads <= rows and weights_bytes < _HEAVY * images_bytes:
            chunks = self.threads if rows % self.threads == 0 else rows
            return {"chunks": chunks, "bs": 1, "cs": blocks}
        chunks = min(self.threads // math.gcd(blocks, self.threads), rows)
        return {"chunks": chunks, "bs": chunks, "cs": 1}

    # ---- depthwise

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has a kernel of its own, in images of one channel pitch."""
        g = self.geometry
        is_own = self.phases is None and g.groups == g.ic == g.oc
        return is_own and g.groups > 1 and self.source.cp == g.ocp

    @property
    def can_fold(self) -> bool:
        """Whether neighbouring pixels of the output read neighbouring pixels of the input."""
        return self.geometry.stride[1] == 1 and self.sink.residual is None

    @property
    def can_share_rows(self) -> bool:
        """Whether neighbouring rows of the output read almost the same rows of the input."""
        return self.geometry.stride[0] == 1 and self.geometry.dilation[0] == 1

    def _depthwise_call(self, knobs: Knobs) -> Call:
        g, source, form = self.geometry, self.source, DEPTHWISE_FORMS[knobs.form]
        fold = depthwise.fold_of(knobs, g.ocp)
        blocks = depthwise.blocks_of(knobs, g.ocp)
        groups = depthwise.row_groups(form, g.kernel[0] + knobs.th - 1)
        stride = fold if fold > 1 else g.stride[1]
        sizes = (len(groups), g.kernel[1], stride, g.dilation[1])
        window = Window(*sizes, blocks, knobs.th, knobs.tw)
        stores = self._stores(knobs)
        kernel = depthwise_kernel(form, window, stores, self.threads)
        table = groups.reshape(-1) * g.dilation[0] * source.row + source.offset(*self.pads)
        shift, layer = self._shifted(form)

        def folded(values: NDArray[np.generic]) -> NDArray[np.generic]:
            rest = [(0, 0)] * (values.ndim - 1)
            padded = np.pad(values, [(0, g.ocp - len(values)), *rest])
            return np.concatenate([padded] * fold)

        def ordered(values: NDArray[np.generic]) -> NDArray[np.generic]:
            values = folded(values)
            return depthwise.weave(values, form, blocks) if is_woven(form, stores) else values

        weights = depthwise.pack(folded(self.weights), form, blocks, knobs.th)
        constants = layer._constants(weights, table, ordered)
        values = {**self._values(), "px": source.cp, "shift": shift}
        values |= {"wf": self.output.w // fold, "cf": self.output.cp * fold}
        is_smaller = self._has_spare_bits(form.weights)
        stored = store(weights, 1, weights.size, 0).or_none(weights) if is_smaller else None
        constants += parameter_arrays(kernel, values)
        return Call(kernel, constants, self.output, stored)
