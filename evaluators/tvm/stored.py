"""Weights as a library stores them: without a bit more than they need."""

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
        data: Bytes of numbers of `bits` bits each, lowest bits first, and one more byte.
        size: How many numbers come out.
        kernel: Takes `data` and its two parameter tensors.
        ints: The integer parameters.
    """

    data: NDArray[np.uint8]
    size: int
    kernel: Kernel
    ints: NDArray[np.int32]

    @property
    def dtype(self) -> str:
        """Type of the numbers that come out."""
        return self.kernel.buffers[-1][1]


def store(values: NDArray[Any], blocks: int, length: int, skip: int) -> StoredWeights:
    """Return integers as a library stores them.

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
    bits = _bits(kept)
    given = {"bits": bits, "blocks": blocks, "rows": rows, "length": length, "skip": skip}
    return StoredWeights(
        data=np.append(pack_bits(kept, bits), np.uint8(0)),
        size=values.size,
        kernel=unpack_kernel(str(values.dtype)),
        ints=np.array([given[name] for name in INTS], np.int32),
    )


def _bits(values: NDArray[Any]) -> int:
    """Return the bits of the smallest two's complement that holds all values, at most 8."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return 1 + max((-low - 1).bit_length() if low < 0 else 0, high.bit_length())


def pack_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return integers as bytes, `bits` bits each in two's complement, the lowest bits first."""
    fields = (values.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint8)
    columns = np.unpackbits(fields[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(columns.reshape(-1), bitorder="little")
