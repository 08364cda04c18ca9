"""Weights as a library stores them: without a bit more than they need.

Integers take the bits of the largest, floats 16 bits where all of them are float16 numbers. Where
a convolution or linear layer has many of those, kernels for x86 with F16C read them in place (form
`f16`); others are unpacked when the library is loaded. Against float32 weights, on one thread of
Zen 5 (AVX2 and AVX-512, medians of 12 interleaved rounds), reading in place takes 0.53 to 0.66 of
the time in linear layers of 0.5 to 2 million weights and one row, whether or not the caches were
emptied between the calls, 0.8 with eight rows and 0.86 to 1.03 in late convolutions, both with
emptied caches, and 0.96 to 1.02 where arithmetic decides. It was not timed on Arm, so there
halves are unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels.script import Kernel
from .kernels.unpack import INTS, unpack_kernel


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeights:
    """Packed weights of a layer and the kernel that unpacks them when the library is loaded.

    Attributes:
        data: Bytes of integers of `bits` bits each, lowest bits first, and one more byte; or
            float16 numbers, as they lie in memory.
        size: How many numbers come out.
        kernel: Takes `data` and its two parameter tensors.
        ints: The integer parameters.
    """

    data: NDArray[np.uint8] | NDArray[np.uint16]
    size: int
    kernel: Kernel
    ints: NDArray[np.int32]

    @property
    def dtype(self) -> str:
        """Type of the numbers that come out."""
        return self.kernel.buffers[-1][1]

    def or_none(self, values: NDArray[Any]) -> StoredWeights | None:
        """Return this if it is smaller than what comes out, which else is stored as it is."""
        return self if self.data.nbytes < values.nbytes else None


def store(values: NDArray[Any], blocks: int, length: int, skip: int) -> StoredWeights:
    """Return integers, or floats that are float16 numbers, as a library stores them.

    Args:
        values: In the order kernels read them: blocks of rows of `length` numbers, flat.
        blocks: Number of blocks.
        length: Numbers of a row.
        skip: How many numbers at the start of each row of the last block repeat the end of a row
            of the block before.
    """
    rows = values.size // (blocks * length)
    last = values.reshape(blocks, rows, length)[-1, :, skip:].reshape(-1)
    kept = np.concatenate([values[: (blocks - 1) * rows * length], last])
    is_float = values.dtype == np.float32
    bits = 16 if is_float else _bits(kept)
    given = {"bits": bits, "blocks": blocks, "rows": rows, "length": length, "skip": skip}
    return StoredWeights(
        data=(
            kept.astype(np.float16).view(np.uint16)
            if is_float
            else np.append(pack_bits(kept, bits), np.uint8(0))
        ),
        size=values.size,
        kernel=unpack_kernel(str(values.dtype)),
        ints=np.array([given[name] for name in INTS], np.int32),
    )


def are_halves(values: NDArray[Any]) -> bool:
    """Return whether all of some floats are finite float16 numbers."""
    flat = values.reshape(-1)
    for part in (flat[:1000], flat):  # most other weights show it at once
        with np.errstate(over="ignore"):
            halves = part.astype(np.float16)
        if not np.isfinite(halves).all() or not np.array_equal(halves, part):
            return False
    return True


def _bits(values: NDArray[Any]) -> int:
    """Return the bits of the smallest two's complement that holds all values, at most 8."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return 1 + max((-low - 1).bit_length() if low < 0 else 0, high.bit_length())


def pack_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return integers as bytes, `bits` bits each in two's complement, the lowest bits first."""
    fields = (values.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint8)
    columns = np.unpackbits(fields[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(columns.reshape(-1), bitorder="little")
