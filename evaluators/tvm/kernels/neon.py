"""Inner products of convolutions on NEON: 32 registers of 128 bits.

Data are loaded 16 numbers of a pixel at a time and stay in registers; weights are loaded once per
tile. NEON multiplies bytes of one sign, so all forms but `neon_usdot` and `neon_mmla` take `shift`
off the uint8 data, which makes them s8; the bias holds what that takes off the sums.

- `neon_mull<n>`: `smull`/`smlal` add products of bytes, both along the input, into eight s16
  lanes, `n` times 16 of them, before `sadalp` adds the lanes in pairs into s32: 2 + 1/n
  instructions per 16 products. Every channel of a pixel has a register of sums. Longer runs gain
  nothing: LLVM adds what a loop carries last, with an `add` of its own instead of `smlal`.
- `neon_dot`, `neon_usdot`: `sdot`/`usdot` of four data with four channels: 16 products. Data come
  from one lane of a register.
- `neon_mmla`: `usmmla` of eight data of two pixels with two channels: 32 products.
- `neon_f32`: `fmla`, data from one lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .script import intrinsic, local_buffer, nest, shuffle

if TYPE_CHECKING:
    from .conv import Tile

LANES = 4  # of a register, in float32: settings of NEON have as many
SUMMED = {"neon_mull1": 1, "neon_mull2": 2, "neon_mull3": 3}  # times 16 products


def buffers(tile: Tile) -> list[str]:
    """Lines that make room for the data of a tile."""
    depth = SUMMED.get(tile.form.name, 2 if tile.form.name == "neon_mmla" else 1)
    dtype, lanes = "int8", 16
    if tile.form.name == "neon_f32":
        dtype, lanes = "float32", 4
    elif not tile.form.is_shifted:
        dtype = "uint8"
    return [local_buffer("q", dtype, tile.pixels * depth, lanes)]


def accumulate(tile: Tile) -> list[str]:
    """Lines that add one segment to the sums."""
    ways = {
        **{"neon_f32": _f32, "neon_mmla": _mmla},
        **{"neon_dot": _dot, "neon_usdot": _dot},
    }
    return ways.get(tile.form.name, _mull)(tile)


def sums(tile: Tile, i: str | int, j: str | int) -> str:
    """Sums of the eight channels `v` of a pixel."""
    pixel = f"({i} * {tile.knobs.tw} + {j})"
    four = "acc[{}, T.ramp(0, 1, 4)]"
    if tile.form.name == "neon_mmla":  # two pixels and two channels to a register
        place = int(i) * tile.knobs.tw + int(j)
        first = f"{place // 2 * (tile.knobs.ocb // 2)} + v * 4"
        index = [4 * k + 2 * (place % 2) + channel for k in range(4) for channel in (0, 1)]
        return shuffle([four.format(f"{first} + {k}") for k in range(4)], index)
    if tile.form.name in ("neon_f32", "neon_dot", "neon_usdot"):
        first = f"{pixel} * {tile.vectors} + v * 2"
        return shuffle([four.format(f"{first} + {k}") for k in (0, 1)], range(8))
    first = f"{pixel} * {tile.vectors} + v * 8"
    each = [four.format(f"{first} + {k}") for k in range(8)]
    while len(each) > 2:
        each = [
            intrinsic("int32x4", "llvm.aarch64.neon.addp.v4i32", *each[k : k + 2])
            for k in range(0, len(each), 2)
        ]
    return shuffle(each, range(8))


# ---- data and weights


def _numbers(tile: Tile, at: str, lanes: int) -> str:
    """Numbers of the pixel at hand, from place `at` of the segment on."""
    values = tile.numbers(at, lanes)
    if not tile.form.is_shifted:
        return values
    shift = f"T.broadcast(T.Cast('uint8', shift), {lanes})"
    return f"T.reinterpret('int8x{lanes}', {values} - {shift})"


def _pixel(tile: Tile) -> str:
    return f"(i * {tile.knobs.tw} + j)"


def _weights_first(tile: Tile, *lines: str) -> list[str]:
    """Unrolled loops with the pixels inside: a weight serves all of them and is done with."""
    loops = [("v", tile.vectors), ("i", tile.knobs.th), ("j", tile.knobs.tw)]
    return nest([f"for {name} in T.unroll({extent}):" for name, extent in loops], lines)


def _lanes_of_data(tile: Tile, product: str, group: int) -> list[str]:
    """Lines that multiply four groups of data a loaded register, then those left one by one.

    Args:
        tile: The tile.
        product: The sums with a product added; `{data}` is one group in every lane, `{step}` its
            number.
        group: Data that a lane holds.
    """
    lanes = 16 if group == 4 else 4
    dtype = "int8x16" if tile.form.is_shifted else "uint8x16"
    q = f"q[{_pixel(tile)}, T.ramp(0, 1, {lanes})]"
    whole = tile.each(f"{q} = {_numbers(tile, f'c * {4 * group}', lanes)}", vectors=1)
    for s in range(4):
        words = f"T.reinterpret('int32x4', {q})" if group == 4 else q
        data = shuffle([words], [s] * 4)
        if group == 4:
            data = f"T.reinterpret('{dtype}', {data})"
        line = product.format(data=data, step=f"(c * 4 + {s})")
        whole += _weights_first(tile, f"{tile.acc} = {line}")
    last = "(steps // 4 * 4 + c)"
    data = f"T.broadcast({tile.number(last)}, 4)"
    if group == 4:
        four = f"T.reinterpret('int32', {_numbers(tile, f'{last} * 4', 4)})"
        data = f"T.reinterpret('{dtype}', T.broadcast({four}, 4))"
    rest = _weights_first(tile, f"{tile.acc} = {product.format(data=data, step=last)}")
    return [
        *nest(["for c in range(steps // 4):"], whole),
        *nest(["for c in range(steps % 4):"], rest),
    ]


# ---- products


def _f32(tile: Tile) -> list[str]:
    weights = tile.weights(f"{{step}} * {tile.knobs.ocb} + v * 4", 4)
    product = intrinsic("float32x4", "llvm.fmuladd.v4f32", "{data}", weights, tile.acc)
    return _lanes_of_data(tile, product, 1)


def _dot(tile: Tile) -> list[str]:
    name = {"neon_dot": "sdot", "neon_usdot": "usdot"}[tile.form.name]
    weights = tile.weights(f"{{step}} * {4 * tile.knobs.ocb} + v * 16", 16)
    # Where LLVM finds the instruction that takes its data from a lane.
    sides = (weights, "{data}") if name == "sdot" else ("{data}", weights)
    product = intrinsic("int32x4", f"llvm.aarch64.neon.{name}.v4i32.v16i8", tile.acc, *sides)
    return _lanes_of_data(tile, product, 4)


def _long(data: str, weights: str, total: str = "") -> str:
    """Products of 16 bytes in eight s16 lanes, two to a lane, added to a total."""
    for half in (range(8), range(8, 16)):
        sides = (shuffle([side], half) for side in (data, weights))
        product = intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", *sides)
        total = f"{total} + {product}" if total else product
    return total


def _widened(sums16: str) -> str:
    """Neighbouring s16 lanes added into s32 lanes."""
    return intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", sums16)


def _load_sixteens(tile: Tile, first: str, depth: int) -> list[str]:
    """Lines that load `depth` times 16 data of each pixel into `q`."""
    return tile.each(
        *(
            f"q[{_pixel(tile)} * {depth} + {r}, T.ramp(0, 1, 16)] = "
            f"{_numbers(tile, f'({first} + {r}) * 16', 16)}"
            for r in range(depth)
        ),
        vectors=1,
    )


def _sixteen_weights(tile: Tile, step: str) -> str:
    """16 weights of channel `v`; those of the last eight data of a segment stand behind."""
    return tile.weights(f"({step}) * {16 * tile.knobs.ocb} + v * 16", 16)


def _mull(tile: Tile) -> list[str]:
    depth = SUMMED[tile.form.name]
    lines = []
    done = "0"
    for part in (depth, 1) if depth > 1 else (1,):
        left = f"(steps // 2 - {done})"
        lines += nest(
            [f"for c in range({left} // {part}):"],
            _add_sixteens(tile, f"({done} + c * {part})", part),
        )
        done = f"steps // {2 * depth} * {depth}"
    return [*lines, *_last_eight(tile)]


def _add_sixteens(tile: Tile, first: str, depth: int) -> list[str]:
    """Lines that sum `depth` times 16 products per channel in s16, then in s32."""
    total = ""
    for r in range(depth):
        data = f"q[{_pixel(tile)} * {depth} + {r}, T.ramp(0, 1, 16)]"
        total = _long(data, _sixteen_weights(tile, f"{first} + {r}"), total)
    return [
        *_load_sixteens(tile, first, depth),
        *_weights_first(tile, f"{tile.acc} = {tile.acc} + {_widened(f'({total})')}"),
    ]


def _last_eight(tile: Tile) -> list[str]:
    """Lines that add the eight data that are left where a segment holds an odd number of them."""
    weights = tile.weights(f"(steps // 2) * {16 * tile.knobs.ocb} + v * 8", 8)
    data = _numbers(tile, "(steps // 2) * 16", 8)
    product = intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", data, weights)
    line = f"{tile.acc} = {tile.acc} + {_widened(product)}"
    return nest(["for c in range(steps % 2):"], _weights_first(tile, line))


def _mmla(tile: Tile) -> list[str]:
    """Two pixels side by side: their first eight data in one register, the next in another."""
    places = [(str(i), str(j)) for i in range(tile.knobs.th) for j in range(tile.knobs.tw)]
    whole, rest = [], []
    for pair in range(len(places) // 2):
        both = places[2 * pair : 2 * pair + 2]
        sixteens = [tile.numbers("c * 16", 16, *pixel) for pixel in both]
        for half in (0, 1):
            index = [16 * pixel + 8 * half + k for pixel in (0, 1) for k in range(8)]
            whole.append(f"q[{2 * pair + half}, T.ramp(0, 1, 16)] = {shuffle(sixteens, index)}")
        eights = [tile.numbers("(steps // 2) * 16", 8, *pixel) for pixel in both]
        rest.append(f"q[{2 * pair}, T.ramp(0, 1, 16)] = {shuffle(eights, range(16))}")
    for half in (0, 1):
        whole += _pairs_first(tile, f"(c * 2 + {half})", half)
    rest += _pairs_first(tile, "(steps - 1)", 0)
    return [
        *nest(["for c in range(steps // 2):"], whole),
        *nest(["for c in range(steps % 2):"], rest),
    ]


def _pairs_first(tile: Tile, step: str, half: int) -> list[str]:
    """Lines that multiply eight data of all pairs of pixels with all pairs of channels."""
    pairs = tile.knobs.ocb // 2
    acc = f"acc[p * {pairs} + v, T.ramp(0, 1, 4)]"
    data = f"q[p * 2 + {half}, T.ramp(0, 1, 16)]"
    weights = tile.weights(f"{step} * {8 * tile.knobs.ocb} + v * 16", 16)
    name = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
    loops = [f"for v in T.unroll({pairs}):", f"for p in T.unroll({tile.pixels // 2}):"]
    return nest(loops, [f"{acc} = {intrinsic('int32x4', name, acc, data, weights)}"])


def to_u8(name: str, lanes: int, *, is_shifted: bool = False) -> str:
    """Return the expression that turns a vector of float32 in output steps into uint8.

    `fcvtns` rounds half to even; every step to fewer bits saturates, so nothing wraps before the
    bounds are applied.

    Args:
        name: Name of the vector.
        lanes: Its length, a multiple of eight.
        is_shifted: Whether the zero point has been added already.
    """
    fours = [shuffle([name], range(at, at + 4)) for at in range(0, lanes, 4)]
    words = [intrinsic("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", four) for four in fours]
    halves = [intrinsic("int16x4", "llvm.aarch64.neon.sqxtn.v4i16", word) for word in words]
    eights = []
    for at in range(0, len(halves), 2):
        stored = shuffle(halves[at : at + 2], range(8))
        if not is_shifted:
            zero = "T.broadcast(T.Cast('int16', zo), 8)"
            stored = intrinsic("int16x8", "llvm.aarch64.neon.sqadd.v8i16", stored, zero)
        eights.append(intrinsic("uint8x8", "llvm.aarch64.neon.sqxtun.v8i8", stored))
    value = shuffle(eights, range(lanes)) if len(eights) > 1 else eights[0]
    low, high = (
        f"T.broadcast(T.Cast('uint8', T.Cast('int32', {bound}) + zo), {lanes})"
        for bound in ("qlo", "qhi")
    )
    return f"T.max(T.min({value}, {high}), {low})"
