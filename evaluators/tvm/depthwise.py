"""Depthwise layers: the forms that are exact for their weights, and the weights in order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
_TILE_COLUMNS = 2  # what a tile costs beside its columns, in columns
_MAX_COLUMNS = 9  # wider kernels would unroll to very long text: they take the plain tile of one


def options(
    weights: NDArray[np.generic], data_max: int, pitch: int, width: int, isa: str
) -> list[Knobs]:
    """Return the settings worth timing for a depthwise layer, the most promising first.

    Args:
        weights: Shape `(channels, 1, kh, kw)`, int8 or float32.
        data_max: Largest value of a uint8 input.
        pitch: Channel pitch of the images.
        width: Columns of the output.
        isa: Kernel family of the profile.
    """
    has_512 = isa.startswith("avx512")
    widest, lanes = (_WIDEST_512, 16) if has_512 else (_WIDEST, 8)
    if isa.startswith("neon"):
        widest, lanes = _WIDEST_NEON, LANES
    found = []
    for name in _forms(weights, data_max, pitch, isa):
        block = _blocks(name, pitch, has_512)[0]
        counts = [1] if weights.shape[3] > _MAX_COLUMNS else _tiles(width, widest[name])
        found += [Knobs(name, min(block, lanes), block, 1, t) for t in counts]
    return found


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
    # Exact at any width, and often the fastest: its data need fewer steps of interleaving.
    found = ["dw_pairs"]
    if isa.endswith("vnni"):
        return [*found, "dw_dot"]
    fits_pair, fits_run = _proofs(weights, data_max)
    if fits_run:
        return [*found, "dw_runs"]
    return [*found, "dw_quads"] if fits_pair and isa == "avx2" else found


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


def _proofs(weights: NDArray[np.generic], data_max: int) -> tuple[bool, bool]:
    """Return whether two rows fit into s16, for one column and summed over all columns.

    Every partial sum lies between that of the negative and that of the positive products, each
    taken with the largest input.
    """
    pairs = _in_groups(weights, 2).astype(np.int32)  # (channels, groups, 2, columns)
    largest = max(data_max, 1)
    sides = (np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2))
    limits = (32767 // largest, 32768 // largest)
    columns = all(side.max() <= limit for side, limit in zip(sides, limits, strict=True))
    runs = all(side.sum(2).max() <= limit for side, limit in zip(sides, limits, strict=True))
    return columns, runs


def blocks_of(knobs: Knobs, pitch: int) -> tuple[int, ...]:
    """Return the widths of channel blocks of a setting, as `Window.blocks` has them."""
    return _blocks(knobs.form, pitch, knobs.lanes == 16)


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


def row_groups(form: DepthwiseForm, kernel_rows: int) -> NDArray[np.int64]:
    """Return the kernel row of each place in each group; the last row fills its group up."""
    places = np.arange(-(-kernel_rows // form.rows) * form.rows)
    return np.minimum(places, kernel_rows - 1).reshape(-1, form.rows)


def _in_groups(weights: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """Return the weights as `(channels, groups, rows, columns)`, groups filled up with zeros."""
    channels, _, kh, kw = weights.shape
    padded = np.pad(weights[:, 0], [(0, 0), (0, -kh % rows), (0, 0)])
    return padded.reshape(channels, -1, rows, kw)


def pack(
    weights: NDArray[np.generic], form: DepthwiseForm, pitch: int, blocks: tuple[int, ...]
) -> NDArray[np.generic]:
    """Order weights as block, group of rows, column, then as the bytes of the rows interleave.

    Args:
        weights: Shape `(channels, 1, kh, kw)`.
        form: How they are multiplied.
        pitch: Channel pitch of the images.
        blocks: Widths of channel blocks.
    """
    grouped = _in_groups(weights, form.rows)
    grouped = np.pad(grouped, [(0, pitch - len(weights)), (0, 0), (0, 0), (0, 0)])
    packed, done = [], 0
    for width in blocks:
        while done < pitch if width == blocks[-1] else done + width <= pitch:
            start = min(done, pitch - width)
            packed.append(_interleaved(grouped[start : start + width], form.rows))
            done += width
    return np.concatenate(packed).astype(form.weights)


def _interleaved(block: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """Order a block: column by column, the channels as unpacking bytes in lanes of 16 leaves."""
    width, groups, _, columns = block.shape
    if rows == 1:
        return block.transpose(1, 3, 2, 0).reshape(-1)
    lanes = block.reshape(width // 16, rows, 16 // rows, groups, rows, columns)
    return lanes.transpose(3, 5, 1, 0, 2, 4).reshape(-1)
