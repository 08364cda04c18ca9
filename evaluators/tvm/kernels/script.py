"""TVMScript text of a kernel: flat buffers, sizes at run time.

Every kernel works on flat one-dimensional buffers and reads its sizes, strides and constants from
two small parameter tensors. So one compiled kernel serves every layer of its kind, whatever its
channel counts and image size, and a new candidate of a study compiles nothing. On AVX2 that costs
1 to 5 % against kernels with all sizes built in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

# Numbers behind every image: loads of the last pixel may read, but never use, what is there.
SLACK = 64
LINE_BYTES = 64  # of a cache line
_PARALLEL_NUMBERS = 16_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel as text, and the names of what it takes.

    Attributes:
        kind: Short name for messages and symbol names, such as `conv_u8`.
        buffers: Name and dtype of each tensor argument; the last one is the output. One of dtype
            `handle` may have any dtype and shape: the body sees its `DLTensor`, `h_` and its name.
        ints: Names of the entries of the int32 parameter tensor `P`.
        floats: Names of the entries of the float32 parameter tensor `F`.
        body: Lines of TVMScript.
    """

    kind: str
    buffers: tuple[tuple[str, str], ...]
    ints: tuple[str, ...]
    floats: tuple[str, ...]
    body: tuple[str, ...]

    @property
    def symbol(self) -> str:
        """Name of the compiled function, with a hash of the text: equal kernels are one."""
        return f"pd_{self.kind}_{hashlib.sha256(self.text('main').encode()).hexdigest()[:16]}"

    def text(self, symbol: str) -> str:
        """Return the TVMScript function that is the kernel, called `symbol`."""
        *inputs, output = self.buffers
        arguments = [*inputs, ("P", "int32"), ("F", "float32"), output]
        matched = [(name, dtype) for name, dtype in arguments if dtype != "handle"]
        lines = [
            f"def {symbol}({', '.join(f'h_{name}: T.handle' for name, _ in arguments)}):",
            "  T.func_attr({'tirx.noalias': True})",
            *(f"  n_{name} = T.int32()" for name, _ in matched),
            *(
                f"  {name} = T.match_buffer(h_{name}, (n_{name},), '{dtype}')"
                for name, dtype in matched
            ),
            *(f"  {name}: T.let[T.int32] = P[{i}]" for i, name in enumerate(self.ints)),
            *(f"  {name}: T.let[T.float32] = F[{i}]" for i, name in enumerate(self.floats)),
            *indent(1, self.body),
        ]
        return "\n".join(lines)


def indent(depth: int, lines: Iterable[str]) -> list[str]:
    """Return the lines moved right by `depth` levels of two blanks."""
    return ["  " * depth + line for line in lines]


def nest(loops: Iterable[str], body: Iterable[str]) -> list[str]:
    """Return `body` inside the loops, outermost first.

    A line without a colon at its end stands before what follows and opens no level.
    """
    lines, depth = [], 0
    for loop in loops:
        lines.append("  " * depth + loop)
        depth += loop.endswith(":")
    return lines + indent(depth, body)


def in_groups(items: Sequence[Item], sizes: Sequence[int]) -> list[Sequence[Item]]:
    """Return items in groups of the given sizes, the first as often as it fits, and so on."""
    found, at = [], 0
    for size in sizes:
        while len(items) - at >= size:
            found.append(items[at : at + size])
            at += size
    return found


def parallel(extent: str, threads: int) -> str:
    """Return the iterator of a loop, spread over the threads if there are several."""
    return f"T.parallel({extent})" if threads > 1 else f"range({extent})"


def local_buffer(name: str, dtype: str, *shape: int) -> str:
    """Return the line that makes a buffer of the kernel's own, for LLVM to keep in registers.

    TVM takes memory for it from a pool unless it is told not to. LLVM does not keep all of that
    in registers: networks took up to 10 % longer. In the function that TVM makes of a parallel
    loop it cannot even tell it from the buffers, and prefetching made it store sums every step.
    """
    return (
        f"{name} = T.alloc_buffer({shape}, '{dtype}', scope='local', "
        "annotations={'disable_lower_builtin': True})"
    )


def prefetch(place: str) -> str:
    """Return the line that asks for the cache line of a number, to be read soon."""
    call = f"'void', 'llvm.prefetch', T.address_of({place}), 0, 3, 1"
    return f"T.evaluate(T.call_llvm_intrin({call}))"


def worth_threads(threads: int, numbers: float) -> int:
    """Return the threads for a kernel: all, or one where starting the others costs more.

    Args:
        threads: Threads of the network.
        numbers: Work in numbers that are read, changed and written once; a core does one to four
            of them in a nanosecond, and the start of a parallel loop takes one to four
            microseconds.
    """
    return threads if numbers >= _PARALLEL_NUMBERS else 1


def fill_border(
    buffer: str,
    value: str,
    dtype: str,
    sizes: tuple[str, str, str, str] = ("ho", "wo", "drs", "dcs"),
) -> list[str]:
    """Lines that write the border of an output image.

    Uses the integers `n`, `dns` (stride of images), `db` (border width) and `sizes`: height,
    width, strides of rows and pixels. Channels come in eights.
    """
    if dtype == "uint8":
        value = f"T.Cast('uint8', {value})"
    height, width, row, pixel = sizes
    at = f"T.ramp(b * dns + {{}} * {row} + {{}} * {pixel} + c * 8, 1, 8)"
    store = f"{buffer}[{at}] = T.broadcast({value}, 8)"
    each = f"for c in range({pixel} // 8):"
    rows = nest(
        ["for y in range(2 * db):", f"for x in range({width} + 2 * db):", each],
        [store.format(f"T.if_then_else(y < db, y, y + {height})", "x")],
    )
    columns = nest(
        [f"for y in range({height}):", "for x in range(2 * db):", each],
        [store.format("(y + db)", f"T.if_then_else(x < db, x, x + {width})")],
    )
    return ["for b in range(n):", *indent(1, rows), *indent(1, columns)]


def reduced(name: str, vector: str, lanes: int, join: str) -> list[str]:
    """Lines that define the scalar `name` as the lanes of a float32 vector joined in pairs."""
    lines = []
    while lanes > 4:
        lanes //= 2
        halves = (f"T.Shuffle([{vector}], {[*range(k, k + lanes)]})" for k in (0, lanes))
        vector, total = f"{name}{lanes}", join.format(*halves)
        lines.append(f"{vector}: T.let[T.float32x{lanes}] = {total}")
    pairs = (
        join.format(*(f"T.Shuffle([{vector}], [{k}])" for k in pair)) for pair in ((0, 1), (2, 3))
    )
    lines.append(f"{name}: T.let[T.float32] = {join.format(*pairs)}")
    return lines


def intrinsic(dtype: str, name: str, *arguments: str) -> str:
    """Return the expression that calls an intrinsic of LLVM."""
    return f"T.call_llvm_pure_intrin('{dtype}', '{name}', {', '.join(arguments)})"


def shuffle(vectors: Sequence[str], index: Sequence[int]) -> str:
    """Return the expression of a vector of the lanes of others, counted through all of them."""
    return f"T.Shuffle([{', '.join(vectors)}], {list(index)})"
