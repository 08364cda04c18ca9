"""Depthwise layers: the forms that are exact for their weights, and the weights in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...hw_profiles.isa import ISAS
from .kernels.conv import Knobs
from .kernels.depthwise import FORMS, DepthwiseForm
from .kernels.neon import LANES

# Most output columns of a tile by form: their sums stay in registers. AVX-512 has twice as many.
_WIDEST = {
    **{"dw_f32": 7, "dw_plain": 4, "dw_taps": 7},
    **{"dw_pairs": 4, "dw_quads": 3, "dw_runs": 2, "dw_dot": 3},
}
_WIDEST_NEON = {
    **{"dw_f32": 5, "dw_words": 3, "dw_row": 3, "dw_all": 4},
    **{"dw_sdot": 4, "dw_usdot": 4},
}
_WIDEST_512 = {"dw_f32": 8, "dw_taps": 8, "dw_pairs": 7, "dw_runs": 3, "dw_dot": 7}
_TIMED = 3  # tiles per form
_SHARING = (2, 3)  # columns of tiles of several rows
_MAX_ROWS = 2  # four rows of tiles took as long as one, with kernels of five rows
_TILE_COLUMNS = 2  # what a tile costs beside its columns, in columns
_MAX_COLUMNS = 9  # wider kernels would unroll to very long text: they take the plain tile of one


def options(
    weights: NDArray[np.generic],
    data_max: int,
    pitch: int,
    height: int,
    width: int,
    isa: str,
    *,
    can_fold: bool,
    can_share_rows: bool,
) -> list[Knobs]:
    """Return the settings worth timing for a depthwise layer, the most promising first.

    Args:
        weights: Shape `(channels, 1, kh, kw)`, int8 or float32.
        data_max: Largest value of a uint8 input.
        pitch: Channel pitch of the images.
        height: Rows of the output.
        width: Columns of the output.
        isa: Kernel family of the profile.
        can_fold: Whether neighbouring columns may be taken as one; a block of more channels than
            the pitch means that they are.
        can_share_rows: Whether rows of the output may share rows of the input.
    """
    has_512 = isa.startswith("avx512")
    widest, lanes = (_WIDEST_512, 16) if has_512 else (_WIDEST, 8)
    if isa.startswith("neon"):
        widest, lanes = _WIDEST_NEON, LANES

    def folded(name: str) -> int:
        """How many columns make one."""
        if not can_fold or isa.startswith("neon"):
            return 1
        room = FORMS[name].rows * lanes // pitch
        return next(fold for fold in (8, 4, 2, 1) if fold <= max(room, 1) and width % fold == 0)

    found = []
    kernel_rows, kernel_columns = weights.shape[2:]
    for name in _forms(weights, data_max, pitch * folded("dw_pairs"), isa):
        fold = folded(name)
        block = _blocks(name, pitch * fold, has_512)[0]
        th = 1 + -kernel_rows % FORMS[name].rows if can_share_rows else 1
        if th > min(height, _MAX_ROWS) or not _fits(name, weights, data_max, th):
            th = 1
        tiles = [(1, t) for t in _tiles(width // fold, widest[name])]
        if th > 1:
            tiles = [*((th, t) for t in _SHARING if t <= width // fold), *tiles]
        tiles = [(1, 1)] if kernel_columns > _MAX_COLUMNS else tiles[:_TIMED]
        found += [Knobs(name, min(block, lanes), block, *tile) for tile in tiles]
    return found


def fold_of(knobs: Knobs, pitch: int) -> int:
    """Return how many columns a setting takes as one."""
    return max(1, knobs.ocb // pitch)


def _tiles(width: int, widest: int) -> list[int]:
    """Return widths of tiles that should be fast, the best first: few, and little overlap."""
    counts = range(1, min(width, widest) + 1)
    return sorted(counts, key=lambda t: -(-width // t) * (t + _TILE_COLUMNS))[:_TIMED]


def _forms(weights: NDArray[np.generic], data_max: int, pitch: int, isa: str) -> list[str]:
    """Return the forms that are exact for the layer's weights, and worth a try."""
    if weights.dtype != np.int8:
        return ["dw_f32"]
    if isa == "portable":
        return ["dw_plain"]
    if isa.startswith("neon"):
        return _neon_forms(weights, data_max, pitch, isa)
    if pitch < 16:
        return ["dw_taps"]
    if ISAS[isa].has_byte_dots:
        return ["dw_dot", "dw_pairs"]
    if _fits("dw_runs", weights, data_max):
        return ["dw_runs", "dw_pairs"]
    # Exact at any width, and often the fastest: its data need fewer steps of interleaving.
    has_quads = isa == "avx2" and _fits("dw_quads", weights, data_max)
    return ["dw_pairs", *(["dw_quads"] if has_quads else [])]


def _neon_forms(weights: NDArray[np.generic], data_max: int, pitch: int, isa: str) -> list[str]:
    """Return the forms for NEON in the order of the instructions that they take.

    Products of bytes are summed in s16 as far as no sum can overflow, each product taken with the
    smallest and with the largest input.
    """
    shift = (data_max + 1) // 2
    taps = weights[:, 0].astype(np.int32)
    ends = (taps * -shift, taps * (data_max - shift))
    sides = (np.maximum(*ends), -np.minimum(*ends))
    form = "dw_words"
    if all(side.sum((1, 2)).max() <= 32767 for side in sides):
        form = "dw_all"
    elif all(side.sum(2).max() <= 32767 for side in sides):
        form = "dw_row"
    dot = {"neon_dotprod": "dw_sdot", "neon_i8mm": "dw_usdot"}.get(isa)
    if dot is None or pitch < 16:
        return [form]
    return [dot, form] if form == "dw_words" else [form, dot]


def _fits(form: str, weights: NDArray[np.generic], data_max: int, th: int = 1) -> bool:
    """Return whether all that a form sums in s16 fits, for every row of a tile.

    Every partial sum lies between that of the negative and that of the positive products, each
    taken with the largest input. `dw_quads` sums the products of two rows, `dw_runs` those of all
    columns.
    """
    if form not in ("dw_quads", "dw_runs"):
        return True
    largest = max(data_max, 1)
    limits = (32767 // largest, 32768 // largest)
    for first in range(min(th, 2)):  # which rows make a pair
        taps = np.pad(weights, [(0, 0), (0, 0), (first, 0), (0, 0)])
        pairs = _in_groups(taps, 2).astype(np.int32)  # (channels, groups, 2, columns)
        sides = [np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2)]
        if form == "dw_runs":
            sides = [side.sum(2) for side in sides]
        if any(side.max() > limit for side, limit in zip(sides, limits, strict=True)):
            return False
    return True


def blocks_of(knobs: Knobs, pitch: int) -> tuple[int, ...]:
    """Return the widths of channel blocks of a setting, as `Window.blocks` has them."""
    return _blocks(knobs.form, pitch * fold_of(knobs, pitch), knobs.lanes == 16)


def _blocks(form: str, pitch: int, has_512: bool) -> tuple[int, ...]:
    rows = FORMS[form].rows
    if form in ("dw_sdot", "dw_usdot"):
        return (16,)
    if form in ("dw_words", "dw_row", "dw_all"):
        return (16, 8) if pitch >= 16 else (8,)
    if rows == 1:
        return (16, 8) if has_512 and pitch >= 16 else (8,)
    widest = 16 * rows if has_512 else 8 * rows
    if pitch >= widest:
        return (widest, widest // 2) if widest > 16 else (widest,)
    return next((size,) for size in (32, 16) if size <= pitch)


def row_groups(form: DepthwiseForm, rows: int) -> NDArray[np.int64]:
    """Return the input row of each place in each group; the last row fills its group up."""
    places = np.arange(-(-rows // form.rows) * form.rows)
    return np.minimum(places, rows - 1).reshape(-1, form.rows)


def _in_groups(weights: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """Return the weights as `(channels, groups, rows, columns)`, groups filled up with zeros."""
    channels, _, kh, kw = weights.shape
    padded = np.pad(weights[:, 0], [(0, 0), (0, -kh % rows), (0, 0)])
    return padded.reshape(channels, -1, rows, kw)


def pack(
    weights: NDArray[np.generic], form: DepthwiseForm, blocks: tuple[int, ...], th: int
) -> NDArray[np.generic]:
    """Order weights for a kernel.

    The order is block, group of rows, column, row of the tile, then as the bytes of the rows
    interleave.

    Args:
        weights: Shape `(channels, 1, kh, kw)`, with those that fill the pitch.
        form: How they are multiplied.
        blocks: Widths of channel blocks.
        th: Rows of a tile.
    """
    rows = [np.pad(weights, [(0, 0), (0, 0), (i, th - 1 - i), (0, 0)]) for i in range(th)]
    taps = np.stack(rows, axis=-1).reshape(*rows[0].shape[:3], -1)
    grouped = _in_groups(taps, form.rows)
    packed = [_interleaved(block, form.rows) for block in _in_blocks(grouped, blocks)]
    return np.concatenate(packed).astype(form.weights)


def weave(
    values: NDArray[np.generic], form: DepthwiseForm, blocks: tuple[int, ...]
) -> NDArray[np.generic]:
    """Order a number of each channel as the sums of each block lie; arguments as of `pack`."""
    rows = form.rows
    return np.concatenate(
        [
            block.reshape(-1, rows, 16 // rows).transpose(1, 0, 2).reshape(-1)
            for block in _in_blocks(values, blocks)
        ]
    )


def _in_blocks(
    values: NDArray[np.generic], blocks: tuple[int, ...]
) -> Iterator[NDArray[np.generic]]:
    """Yield what belongs to the channels of each block, the first axis being channels."""
    done, channels = 0, len(values)
    for width in blocks:
        while done < channels if width == blocks[-1] else done + width <= channels:
            start = min(done, channels - width)
            yield values[start : start + width]
            done += width


def _interleaved(block: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """Order a block: column by column, the channels as unpacking bytes in lanes of 16 leaves."""
    width, groups, _, columns = block.shape
    if rows == 1:
        return block.transpose(1, 3, 2, 0).reshape(-1)
    lanes = block.reshape(width // 16, rows, 16 // rows, groups, rows, columns)
    return lanes.transpose(3, 5, 1, 0, 2, 4).reshape(-1)
