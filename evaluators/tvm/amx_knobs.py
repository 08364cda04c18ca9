"""Settings of convolution kernels for AMX."""

from __future__ import annotations

from math import ceil

from .kernels.amx import SIDE
from .kernels.conv import Knobs
from .layers import ConvLayer

# Channels, rows, and groups of 16 columns of a tile.
_SHAPES = ((32, 2, 1), (64, 1, 1), (32, 1, 2), (32, 1, 1), (16, 4, 1), (16, 2, 1), (16, 1, 1))
_OPTIONS = 3
_FEWEST = 4  # columns; tiles of fewer would be almost empty


def options(layer: ConvLayer) -> list[Knobs]:
    """Return the settings worth timing for an integer layer, the most promising first."""
    found = []
    height, width = layer.grid
    for ocb, th, parts in _SHAPES:
        tw = SIDE * parts if parts > 1 else ceil(width / ceil(width / SIDE))
        fits = ocb <= layer.geometry.ocp and th <= height and _FEWEST <= tw <= width
        if not (fits and layer.allows(ocb)):
            continue
        waste = 1.0
        for size, part in ((layer.geometry.ocp, ocb), (height, th), (width, tw)):
            waste *= ceil(size / part) * part / size
        sums = ocb // SIDE * th * parts
        # Fewer than four chains of sums wait for each other; every load takes eight cycles.
        loads = 8 * (ocb // SIDE + th * parts)
        cost = waste * max(16 * sums, loads, 56) / (ocb * th * tw)
        found.append((cost, Knobs("amx", 16, ocb, th, tw)))
    return [knobs for _, knobs in sorted(found)[:_OPTIONS]]
