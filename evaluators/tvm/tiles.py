"""Tiles of convolution kernels, ordered by a model of their cost.

A tile of output channels, rows and columns is kept in registers. The model counts, for one step of
a tile, the vector instructions and the loads; whichever is more decides, unless the sums are so
few that each waits for the one before. To that comes the end of a tile (scale, round, store), and
what is computed twice where tiles overlap at the edges. It only orders what is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil

from .kernels.conv import Knobs

_ROWS = (1, 2, 3, 4, 5, 7)
_COLUMNS = (*range(1, 9), 10, 12, 14)
_VECTORS = (1, 2, 3, 4)
_PER_CYCLE = 2  # vector instructions, and loads
_LATENCY = 4  # cycles from one sum to the next
_LOAD_SHARE = 0.25  # of the time of loads that arithmetic does not hide
_NEAR_BYTES = 24 << 10  # of weights that stay in the first cache beside the input
_TILE_CYCLES, _STORE_CYCLES = 12, 6  # of a tile, and of each of its vectors


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a form costs.

    Attributes:
        instructions: Vector instructions for one step of one vector of sums.
        spare: Registers beside sums and weights.
        sums: Vectors of sums per vector of channels.
    """

    instructions: float
    spare: int = 2
    sums: int = 1


_COSTS = {
    "f32": _Cost(1, spare=1),
    "dot": _Cost(1, spare=1),
    "pair1": _Cost(3),
    "pair2": _Cost(2.5),
    "pair4": _Cost(2.25),
    "rolled": _Cost(2),
    "wide": _Cost(2, sums=2),
    "plain": _Cost(6, spare=6),
}


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of a layer that decide which tile is good.

    Attributes:
        channels: Output channels, a multiple of eight.
        height, width: Of the output.
        steps: Steps of one output number: segments times steps of a segment.
    """

    channels: int
    height: int
    width: int
    steps: int


def tiles(form: str, extent: Extent, *, has_512: bool, count: int) -> list[Knobs]:
    """Return the tiles that should be fastest, the best first.

    Args:
        form: Name of the form, see `kernels.conv.FORMS`.
        extent: Sizes of the layer.
        has_512: Whether registers are 32 of 512 bits, not 16 of 256.
        count: How many are wanted.
    """
    fitting = [
        knobs
        for knobs in _shapes(form, has_512)
        if knobs.ocb <= extent.channels and knobs.th <= extent.height and knobs.tw <= extent.width
    ]
    fitting.sort(key=lambda knobs: _cycles(knobs, extent))
    found: dict[tuple[int, int, int], Knobs] = {}
    for knobs in fitting:  # as many pixels in another arrangement tell little more
        found.setdefault((knobs.lanes, knobs.ocb, knobs.th * knobs.tw), knobs)
    return list(found.values())[:count]


@cache
def _shapes(form: str, has_512: bool) -> tuple[Knobs, ...]:
    """Return all tiles of a form whose sums stay in registers."""
    cost = _COSTS[form]
    found = []
    for lanes in (16, 8) if has_512 and form != "wide" else (8,):
        for vectors, th, tw in product(_VECTORS, _ROWS, _COLUMNS):
            held = vectors * cost.sums
            registers = 32 if has_512 else 16
            if (th > 1 and tw == 1) or held * (th * tw + 1) + cost.spare > registers:
                continue
            if lanes == 8 and has_512 and vectors % 2 == 0:
                continue  # the same channels fill registers of 16 lanes
            found.append(Knobs(form, lanes, vectors * lanes, th, tw))
    return tuple(found)


def _cycles(knobs: Knobs, extent: Extent) -> float:
    """Return the cycles that a layer should take."""
    cost = _COSTS[knobs.form]
    pixels, vectors = knobs.th * knobs.tw, knobs.ocb // knobs.lanes * cost.sums
    arithmetic = pixels * vectors * cost.instructions / _PER_CYCLE
    loads = (pixels + vectors) / _PER_CYCLE
    step = max(arithmetic, loads, _LATENCY) + _LOAD_SHARE * loads
    if knobs.ocb * cost.sums * extent.steps * 4 > _NEAR_BYTES:
        step += vectors  # the weights of a block come from farther away for every tile
    end = _TILE_CYCLES + _STORE_CYCLES * pixels * vectors
    n_tiles = (
        ceil(extent.channels / knobs.ocb)
        * ceil(extent.height / knobs.th)
        * ceil(extent.width / knobs.tw)
    )
    return n_tiles * (extent.steps * step + end)
