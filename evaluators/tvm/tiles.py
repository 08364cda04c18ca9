"""Tiles of convolution kernels, ordered by a model of their cost.

A tile of output channels, rows and columns is kept in registers. The model counts, for one step of
a tile, the cycles of its arithmetic and of its loads; the larger decides, unless the sums are so
few that each waits for the one before. To that come the start of every segment, the end of a tile
(scale, round, store), and what is computed twice where tiles overlap at the edges. Constants are
fitted to some hundred timed layers (Zen 5, one thread). With AVX-512 the tile that the model puts
first takes 2 to 4 % more than the best in the geometric mean, the best of the first three less
than 1 %. With AVX2 that is 0.3 to 3 % by form, and up to 2 % for the best of the first four; of 11
layers that were not in the fit, though one constant of `f32` was chosen with them in sight, the
first takes 1.1 % more in float and 0.3 % in `wide`.
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
_PIXELS = 24  # more addresses than there are registers for
_LOAD_CYCLES = 0.55
_TILE_CYCLES = 5.0
_SEGMENT_CYCLES = 0.85  # of every pixel at the start of a segment


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a form costs.

    Attributes:
        step: Cycles for one step of one vector of sums.
        store: Cycles for the end of one vector of sums.
        spare: Registers beside sums and weights.
        per_pixel: Registers for the data of a pixel.
        sums: Vectors of sums per vector of channels.
        widening: Cycles for one step that turn the data of a pixel into what is multiplied.
        latency: Cycles from one sum to the next.
    """

    step: float
    store: float = 3.0
    spare: float = 2.0
    per_pixel: float = 0.0
    sums: int = 1
    widening: float = 0.0
    latency: float = 4.0


_COSTS = {
    "f32": _Cost(0.5, store=2.0, spare=1.0, latency=4.3),
    "f16": _Cost(0.5, store=2.0, spare=1.0, latency=4.3),
    "dot": _Cost(0.5, spare=1.0, per_pixel=0.5),
    "pair1": _Cost(1.1),
    "pair2": _Cost(0.85),
    "pair4": _Cost(0.7),
    "rolled": _Cost(0.6),
    "wide": _Cost(0.55, sums=2, widening=0.5, latency=3.0),
    "words": _Cost(0.53, latency=1.0),
    "plain": _Cost(3.0, spare=6.0),
}


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of a layer that decide which tile is good.

    Attributes:
        channels: Output channels, a multiple of eight.
        height, width: Of the output.
        segments: Contiguous runs of input numbers for one output number.
        steps: Steps of the form in a segment.
        unit: Channels that a block may not leave; a block either divides them, or they are all.
    """

    channels: int
    height: int
    width: int
    segments: int
    steps: int
    unit: int


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
        if extent.unit in (extent.channels, extent.unit // knobs.ocb * knobs.ocb)
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
    registers = 32 if has_512 else 16
    found = []
    for lanes in (16, 8) if has_512 and form != "wide" else (8,):
        for vectors, th, tw in product(_VECTORS, _ROWS, _COLUMNS):
            pixels, held = th * tw, vectors * cost.sums
            used = held * (pixels + 1) + cost.per_pixel * pixels + cost.spare
            if used > registers or pixels > _PIXELS or (th > 1 and tw == 1):
                continue
            if lanes == 8 and has_512 and vectors % 2 == 0:
                continue  # the same channels fill registers of 16 lanes
            found.append(Knobs(form, lanes, vectors * lanes, th, tw))
    return tuple(found)


def _cycles(knobs: Knobs, extent: Extent) -> float:
    """Return the cycles that a layer should take."""
    cost = _COSTS[knobs.form]
    pixels, vectors = knobs.th * knobs.tw, knobs.ocb // knobs.lanes * cost.sums
    loads = _LOAD_CYCLES * (pixels + vectors)
    arithmetic = cost.step * pixels * vectors + cost.widening * pixels
    step = max(arithmetic, loads, cost.latency) + 0.1 * vectors
    segment = extent.steps * step + _SEGMENT_CYCLES * pixels
    tile = extent.segments * segment + _TILE_CYCLES + cost.store * pixels * vectors
    n_tiles = (
        ceil(extent.channels / knobs.ocb)
        * ceil(extent.height / knobs.th)
        * ceil(extent.width / knobs.tw)
    )
    return n_tiles * tile
