"""Inner products of convolutions on AMX: eight tiles of 16 rows of 64 bytes.

`tdpbusd` adds to 16 x 16 sums the products of 16 pixels and 16 channels, 64 numbers of each: 16384
products in 16 cycles. A tile of data takes its rows right from the image, one pixel after the
other; weights are packed as for `vpdpbusd`, so a tile of them has 16 steps of four numbers, or
fewer where that fills segments better (`kt`). Sums go through memory, from where the end of the
kernel takes them as vectors.

How many rows and columns tiles have is in the table `G`: 16 words from `cfg` on, as `ldtilecfg`
reads them. Linux lets a process use tiles when it has asked for them; see `permission.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .script import LINE_BYTES, local_buffer, nest, prefetch

if TYPE_CHECKING:
    from .conv import Tile

_PASSES_AHEAD = 4  # 1, 2 and 8 to 32 gained about half as much
SIDE = 16  # rows of a tile, and sums of a row
_TILES = 8


class Tiles:
    """Which tile holds what: sums first, then data and weights.

    One of these two is kept while the others pass through the tiles that are left: at least one,
    with four tiles of sums or fewer.
    """

    def __init__(self, th: int, tw: int, ocb: int) -> None:
        self.starts = [(i, j) for i in range(th) for j in range(0, tw, SIDE)]  # first pixels
        self.pixels, self.channels = len(self.starts), ocb // SIDE
        self.sums = self.pixels * self.channels
        self.keeps_data = self.pixels <= self.channels
        self.kept = min(self.pixels, self.channels)
        self.free = _TILES - self.sums - self.kept

    def data(self, m: int) -> int:
        """Tile of the data of group `m` of pixels."""
        return self.sums + (m if self.keeps_data else self.kept + m % self.free)

    def weights(self, n: int) -> int:
        """Tile of the weights of group `n` of channels."""
        return self.sums + (self.kept + n % self.free if self.keeps_data else n)


def configuration(th: int, tw: int, ocb: int, kt: int) -> NDArray[np.int32]:
    """Return what `ldtilecfg` reads.

    Args:
        th: Rows of a tile of the output.
        tw: Columns of it: at most 16, or a multiple.
        ocb: Channels of it.
        kt: Steps of four numbers that are multiplied at once, at most 16.
    """
    tiles, rows = Tiles(th, tw, ocb), min(tw, SIDE)
    columns_bytes, rows_of = np.zeros(16, np.uint16), np.zeros(16, np.uint8)
    columns_bytes[:_TILES], rows_of[:_TILES] = 64, rows
    for n in range(tiles.channels):
        rows_of[tiles.weights(n)] = kt
    for m in range(tiles.pixels):
        columns_bytes[tiles.data(m)] = 4 * kt
    start = np.zeros(16, np.uint8)
    start[0] = 1  # the palette
    return np.concatenate([start, columns_bytes.view(np.uint8), rows_of]).view(np.int32)


def instruction(name: str, *arguments: int | str) -> str:
    """Return the line with an instruction; integers are numbers of tiles."""
    values = [f"T.int8({a})" if isinstance(a, int) else a for a in arguments]
    call = ", ".join(["'void'", f"'llvm.x86.{name}'", *values])
    return f"T.evaluate(T.call_llvm_intrin({call}))"


BEGIN = instruction("ldtilecfg", "T.address_of(G[cfg])")
END = instruction("tilerelease")


def clear(tile: Tile) -> list[str]:
    """Lines that clear the sums."""
    return [instruction("tilezero", t) for t in range(_tiles(tile).sums)]


def accumulate(tile: Tile) -> list[str]:
    """Lines that add one segment to the sums."""
    tiles, ocb = _tiles(tile), tile.knobs.ocb

    def data(m: int) -> str:
        i, j = tiles.starts[m]
        place = f"A[d0 + T.Cast('int64', {i} * ars + {j} * acs) + T.Cast('int64', c * kt * 4)]"
        return instruction("tileloadd64", tiles.data(m), f"T.address_of({place})", "pixel")

    def weights(n: int) -> str:
        place = f"W[w0 + T.Cast('int64', c * kt * {4 * ocb} + {64 * n})]"
        pitch = f"T.int64({4 * ocb})"
        return instruction("tileloadd64", tiles.weights(n), f"T.address_of({place})", pitch)

    def multiply_add(m: int, n: int) -> list[str]:
        place = m * tiles.channels + n
        product = instruction("tdpbusd", place, tiles.data(m), tiles.weights(n))
        return [product, *ahead[place :: tiles.sums]]

    ahead = _prefetch(tile)
    ms, ns = range(tiles.pixels), range(tiles.channels)
    body: list[str] = []
    if tiles.keeps_data:
        body += [data(m) for m in ms]
        for n in ns:
            body += [weights(n), *(line for m in ms for line in multiply_add(m, n))]
    else:
        body += [weights(n) for n in ns]
        for m in ms:
            body += [data(m), *(line for n in ns for line in multiply_add(m, n))]
    return [
        "pixel: T.let[T.int64] = T.Cast('int64', acs)",
        "d0: T.let[T.int64] = T.Cast('int64', ab)",
        f"w0: T.let[T.int64] = T.Cast('int64', (o * segments + g) * steps * {4 * ocb})",
        *nest(["for c in range(steps // kt):"], body),
    ]


def _prefetch(tile: Tile) -> list[str]:
    """Lines that prefetch the weights of a later pass of the loop, a cache line each."""
    if not tile.prefetches:
        return []
    ocb = tile.knobs.ocb
    first = f"w0 + T.Cast('int64', (c + {_PASSES_AHEAD}) * kt * {4 * ocb}"
    return [prefetch(f"W[{first} + {LINE_BYTES * line})]") for line in range(ocb)]


def sums_buffer(tile: Tile) -> str:
    """Return the line that makes `acc`, whose elements are vectors.

    TVM aligns a buffer of vectors to their size, one of numbers to 16 bytes; it makes the one
    of the other only where no address is taken. With sums across cache lines, and across pages
    where the random beginning of the stack has it so, a ResNet-18 took 12 % longer.
    """
    return local_buffer("acc", f"int32x{SIDE}", tile.size)


def spill(tile: Tile) -> list[str]:
    """Lines that store the sums in `acc`."""
    tiles, tw = _tiles(tile), tile.knobs.tw
    return [
        instruction(
            "tilestored64",
            m * tiles.channels + n,
            f"T.address_of(acc[{(i * tw + j) * tiles.channels + n}])",
            f"T.int64({64 * tiles.channels})",
        )
        for m, (i, j) in enumerate(tiles.starts)
        for n in range(tiles.channels)
    ]


def _tiles(tile: Tile) -> Tiles:
    return Tiles(tile.knobs.th, tile.knobs.tw, tile.knobs.ocb)
