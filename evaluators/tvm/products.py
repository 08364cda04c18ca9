"""A product of two activations, and the parameters of the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...hw_profiles.isa import ISAS
from .kernels.conv import FORMS, Knobs
from .kernels.matmul import matmul_kernel, pack_kernel, packed_dtype, panel_size
from .kernels.script import Kernel
from .sink import Sink
from .views import View

PARTS_PER_THREAD = 4  # of parallel loops whose steps are small

# Tiles (columns, rows), the fastest first.
_TILES = {
    "f32": ((16, 6), (8, 8), (16, 4), (8, 4), (16, 2), (8, 2), (16, 1), (8, 1)),
    "dot": ((16, 4), (8, 8), (16, 2), (8, 4), (8, 2), (16, 1), (8, 1)),
    "wide": ((16, 2), (8, 4), (8, 2), (16, 1), (8, 1)),
    "plain": ((8, 4), (8, 2), (8, 1)),
}
_TILES_512 = (
    *((32, 8), (64, 4), (32, 6), (48, 4), (16, 12), (16, 8), (32, 4), (16, 4)),
    *((8, 8), (8, 4), (32, 2), (16, 2), (8, 2), (64, 1), (32, 1), (16, 1), (8, 1)),
)


def choose_knobs(isa: str, n: int, m: int, *, is_integer: bool) -> Knobs:
    """Return the settings of a product with `m` rows and `n` columns.

    The cost of a tile is what it computes twice; small tiles load more for each product.
    """
    form, has_512 = "f32", isa.startswith("avx512")
    if is_integer:
        is_plain = isa == "portable" or isa.startswith("neon")
        form = "plain" if is_plain else "dot" if ISAS[isa].has_byte_dots else "wide"
    has_512 = has_512 and form != "wide"
    tiles = [t for t in (_TILES_512 if has_512 else _TILES[form]) if t[1] <= m]
    tiles = [t for t in tiles if t[0] <= n] or [t for t in tiles if t[0] == 8]

    def cost(tile: tuple[int, int]) -> float:
        columns, rows = tile
        loads = 1 / columns + 1 / (rows * (16 if has_512 else 8))
        return -(-n // columns) * columns * -(-m // rows) * rows * (1 + 4 * loads)

    columns, rows = min(tiles, key=cost)
    return Knobs(form, 16 if has_512 and columns % 16 == 0 else 8, columns, 1, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product in batches.

    Attributes:
        left, right, output: The matrices.
        batches: Two dimensions: size, and strides of the three matrices.
        sink: What is stored, without a residual.
        knobs: Settings.
        threads: Threads of the network.
    """

    left: View
    right: View
    output: View
    batches: tuple[tuple[int, ...], tuple[int, ...]]
    sink: Sink
    knobs: Knobs
    threads: int

    def pack_kernel(self) -> Kernel:
        """Return the kernel that packs the right operand."""
        return pack_kernel(self.knobs, self._order, self.threads)

    def kernel(self) -> Kernel:
        """Return the kernel that multiplies."""
        return matmul_kernel(
            self.knobs,
            self.sink.epilogue,
            self.threads,
            is_shifted=bool(self._sizes["shift"]),
            is_narrow=self.right.shape[-1] < 8,
        )

    @property
    def packed_dtype(self) -> str:
        """The dtype of the packed operand."""
        return packed_dtype(FORMS[self.knobs.form])

    @property
    def packed_size(self) -> int:
        """Length of the packed operand."""
        sizes = self._sizes
        return sizes["batch"] * sizes["blocks"] * sizes["panel"]

    @property
    def _sizes(self) -> dict[str, int]:
        """Parameters that both kernels read."""
        form, ocb = FORMS[self.knobs.form], self.knobs.ocb
        depth, n = self.right.shape[-2:]
        right = self.right.image
        return {
            **{"batch": self.batches[0][0] * self.batches[1][0], "inner": self.batches[1][0]},
            **{"depth": depth, "n": n, "steps": -(-depth // form.group)},
            **{"blocks": -(-n // ocb), "panel": panel_size(form, ocb, depth)},
            **{"za": self.left.image.zero_point, "zb": right.zero_point},
            **{"shift": 128 - right.zero_point if form.name == "dot" else 0},
        }

    def packing(self) -> dict[str, float]:
        """Parameters of the kernel that packs the right operand."""
        view = self.right
        strides = {f"bs{k}": self.batches[k][2] for k in (0, 1)}
        strides |= {"bsk": view.strides[-2], "bsn": view.strides[-1], "boff": view.offset}
        return {**self._sizes, **strides}

    def multiplying(self) -> dict[str, float]:
        """Parameters of the kernel that multiplies."""
        sizes, image, threads = self._sizes, self.output.image, self.threads
        m = self.left.shape[-2]
        tiles = -(-m // self.knobs.tw)
        chunks = min(tiles, -(-PARTS_PER_THREAD * threads // sizes["batch"]))
        chunks = chunks if threads > 1 else 1
        is_done = self.knobs.form != "f32" and self.sink.accumulates_in_steps
        factor = 1.0 if is_done or self.sink.dtype == "float32" else 1.0 / self.sink.scale
        steps = [side.strides[-2] for side in (self.left, self.output)]
        return {
            **self.sink.parameters(factor),
            **sizes,
            **{"m": m, "chunks": chunks, "per": -(-tiles // chunks)},
            **{"fill": image.size if image.cp != image.c else 0},
            **{f"as{k}": self.batches[k][1] for k in (0, 1)},
            **{f"ds{k}": self.batches[k][3] for k in (0, 1)},
            **{"acs": steps[0], "aoff": self.left.offset},
            **{"dcs": steps[1], "doff": self.output.offset},
        }

    def constants(self) -> list[NDArray[np.generic]]:
        """Scale of each column, and the ones that add up a row, for integer forms."""
        if self.knobs.form == "f32":
            return []
        unit = np.float32(self.left.image.scale * self.right.image.scale)
        factor = unit / np.float32(self.sink.scale if self.sink.accumulates_in_steps else 1.0)
        depth, n = self.right.shape[-2:]
        found: list[NDArray[np.generic]] = [np.full(max(n, 8), factor, np.float32)]
        if self._sizes["shift"]:
            found.append(np.pad(np.ones(depth, np.int8), (0, -depth % 4)))
        return found

    @property
    def _order(self) -> str:
        """Which numbers of the right operand lie side by side."""
        if self.right.shape[-1] < self.knobs.ocb:
            return "any"
        if self.right.strides[-1] == 1:
            return "row"
        return "column" if self.right.strides[-2] == 1 or self.knobs.form == "f32" else "any"
