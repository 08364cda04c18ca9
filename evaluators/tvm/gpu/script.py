"""TVMScript text of a kernel for GPUs: sizes built in, its threads named in the text.

A kernel belongs to one form and size of layer, as all of a network's code is compiled anew anyway.
Images are those of the CPU's kernels without a border: channels last, four of them to a word.
Products and sums of floats are rounded one by one (`mul`, `add`), or once where the CPU's kernels
do so (`fma`): a compiler that joins them as it likes would make results differ between GPUs, and
from what the file says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..kernels.script import indent

Buffer = tuple[str, str, tuple[int, ...]]
BLOCK = 256  # threads of a block where they have nothing to do with each other


@dataclass(frozen=True, slots=True)
class GpuKernel:
    """One kernel as text.

    Attributes:
        kind: Short name, such as `conv_u8`.
        buffers: Name, dtype and shape of each tensor argument; the last one is the output. The
            body sees all as flat ones.
        blocks: Blocks of threads.
        threads: Threads of a block.
        body: Lines of TVMScript for one thread, `tx` of the block `bx`. An argument `X` of uint8
            is also at hand in words of four as `X4`.
    """

    kind: str
    buffers: tuple[Buffer, ...]
    blocks: int
    threads: int
    body: tuple[str, ...]

    @property
    def symbol(self) -> str:
        """Name of the function, with a hash of the text: equal kernels are one."""
        return f"pd_{self.kind}_{hashlib.sha256(self.text('main').encode()).hexdigest()[:12]}"

    def text(self, symbol: str) -> str:
        """Return the TVMScript function that is the kernel, called `symbol`."""
        lines = [
            f"def {symbol}({', '.join(f'h_{name}: T.handle' for name, _, _ in self.buffers)}):",
            # Threads are named already, and 8 says that nothing can be fused with the kernel.
            "  T.func_attr({'tirx.noalias': True, 'tirx.is_scheduled': True, 'op_pattern': 8})",
        ]
        lines += [
            f"  h{name} = T.match_buffer(h_{name}, {shape}, '{dtype}')"
            for name, dtype, shape in self.buffers
        ]
        for name, dtype, shape in self.buffers:
            size = math.prod(shape)
            lines.append(f"  {name} = T.decl_buffer(({size},), '{dtype}', data=h{name}.data)")
            if dtype == "uint8":
                lines.append(
                    f"  {name}4 = T.decl_buffer(({size // 4},), 'int32', data=h{name}.data)"
                )
        lines += [
            "  with T.sblock('root'):",  # TVM looks for one
            "    T.reads()",
            "    T.writes()",
            f"    for bx in T.thread_binding({self.blocks}, thread='blockIdx.x'):",
            f"      for tx in T.thread_binding({self.threads}, thread='threadIdx.x'):",
            *indent(4, self.body),
        ]
        return "\n".join(lines)


def each(kind: str, buffers: Iterable[Buffer], count: int, body: list[str]) -> GpuKernel:
    """Return the kernel that runs `body` for each `i` below `count`, a thread for each."""
    threads = min(BLOCK, -(-count // 32) * 32)
    lines = [f"i: T.let[T.int32] = bx * {threads} + tx"]
    if count % threads:
        lines += [f"if i < {count}:", *indent(1, body)]
    else:
        lines += body
    return GpuKernel(kind, tuple(buffers), -(-count // threads), threads, tuple(lines))


def real(number: float) -> str:
    """Return a float32 constant."""
    number = float(np.float32(number))
    return f"T.float32({number!r})" if math.isfinite(number) else f"T.float32('{number}')"


def let_reals(values: Mapping[str, float]) -> list[str]:
    """Lines that name float32 constants."""
    return [f"{name}: T.let[T.float32] = {real(value)}" for name, value in values.items()]


def all4(scalar: str) -> str:
    """Return a scalar in four lanes."""
    return f"T.broadcast({scalar}, 4)"


def at4(place: str) -> str:
    """Return the index of four neighbours."""
    return f"T.ramp({place}, 1, 4)"


def mul(left: str, right: str) -> str:
    """Return the product of two vectors of four floats, rounded."""
    return f"T.call_pure_extern('float32x4', '__fmul_rn', {left}, {right})"


def add(left: str, right: str) -> str:
    """Return the sum of two vectors of four floats, rounded."""
    return f"T.call_pure_extern('float32x4', '__fadd_rn', {left}, {right})"


def fma(left: str, right: str, addend: str) -> str:
    """Return the product of two vectors of four floats plus a third, rounded once."""
    return f"T.call_pure_extern('float32x4', '__fmaf_rn', {left}, {right}, {addend})"


def clamp(value: str, low: float, high: float) -> str:
    """Return a vector of four floats kept between two numbers."""
    if math.isfinite(high):
        value = f"T.min({value}, {all4(real(high))})"
    if math.isfinite(low):
        value = f"T.max({value}, {all4(real(low))})"
    return value


def steps_to_u8(steps: str, low: int, high: int, zero_point: int) -> str:
    """Return four uint8 of floats in steps: rounded half to even, between two bounds."""
    whole = f"T.Cast('int32x4', {clamp(f'T.nearbyint({steps})', low, high)})"
    return f"T.Cast('uint8x4', {whole} + {all4(str(zero_point))})"
