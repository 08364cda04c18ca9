"""Settings of convolution kernels for NEON, ranked by the instructions that they take.

An Arm device is seldom the machine that compiles, so nothing can be timed and the first setting
counts: it is the one whose inner loop has the fewest instructions per product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .kernels.conv import Knobs
from .kernels.neon import LANES, SUMMED
from .layers import ConvLayer

_REGISTERS = 32
_OPTIONS = 6
_BLOCKS = (8, 16, 24, 32, 48, 64)


def options(layer: ConvLayer, isa: str) -> list[Knobs]:
    """Return the settings worth timing for a layer without depthwise kernels, the best first.

    The list is empty where weights are too large for the s16 sums of `neon`.
    """
    found = [
        (_cost(layer, form, (ocb, th, tw)), th, Knobs(form, LANES, ocb, th, tw))
        for ocb, th, tw in _tiles(layer)
        for form in _forms(layer, isa, ocb)
        if _registers(form, ocb, th * tw) <= _REGISTERS
        and (form != "neon_mmla" or th * tw % 2 == 0)
    ]
    return [knobs for *_, knobs in sorted(found)[:_OPTIONS]]


def _tiles(layer: ConvLayer) -> Iterator[tuple[int, int, int]]:
    """All tiles in channels, rows and columns that the output has room for."""
    height, width = layer.grid
    for ocb in (b for b in _BLOCKS if b <= layer.geometry.ocp and layer.allows(b)):
        for th in range(1, min(3, height) + 1):
            for tw in range(1, min(12, width) + 1):
                yield ocb, th, tw


def _forms(layer: ConvLayer, isa: str, ocb: int) -> list[str]:
    """Return the forms that are exact for a layer's weights, and worth a try."""
    if not layer.is_integer:
        return ["neon_f32"]
    if isa == "neon_dotprod":
        return ["neon_dot"]
    if isa == "neon_i8mm":
        return ["neon_mmla", "neon_usdot"]
    # Without groups the segments of a channel do not depend on the block it is in.
    run = int(layer.runs(ocb if layer.geometry.groups > 1 else 8, is_shifted=True).min())
    return [form for form, n in SUMMED.items() if n <= run]


def _registers(form: str, ocb: int, pixels: int) -> int:
    """Registers of the inner loop: sums, data, weights, products of LLVM's schedule."""
    if form in SUMMED:
        return ocb * pixels + (pixels + 1) * SUMMED[form] + 6
    return ocb * pixels // 4 + pixels + 2


def _cost(layer: ConvLayer, form: str, tile: tuple[int, int, int]) -> float:
    """Instructions per sixteen products (four in float), repeated work of tiles included."""
    ocb, th, tw = tile
    sizes = zip((layer.geometry.ocp, *layer.grid), tile, strict=True)
    waste = math.prod(-(-size // part) * part / size for size, part in sizes)
    products = {"neon_mmla": 0.5}.get(form, 1.0)
    if form in SUMMED:
        products = 2 + _widenings(layer, SUMMED[form])
    # One load and what makes the data fit: a subtraction, or bringing two pixels side by side.
    loads = 1 if form in ("neon_f32", "neon_usdot") else 2
    return waste * (products + (loads * th * tw + ocb) / (ocb * th * tw))


def _widenings(layer: ConvLayer, depth: int) -> float:
    """Instructions per sixteen products that add sums in s16 to those in s32."""
    geometry = layer.geometry
    length = geometry.icp * (geometry.kernel[1] if geometry.rows_are_whole else 1)
    sixteens = max(length // 16, 1)
    return (sixteens // depth + sixteens % depth) / sixteens
