"""Depthwise layers: a thread for four channels of a pixel, four taps of a channel to a word."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .conv import SIGN, Problem
from .epilogue import store_sums
from .script import GpuKernel, each

MAX_TAPS = 128  # all are written out in the text


def pack(weights: NDArray[np.generic], pitch: int) -> NDArray[np.int32]:
    """Return weights of shape `(channels, 1, kh, kw)` as words of four taps: group, channel."""
    channels, taps = len(weights), weights[0].size
    rows = np.zeros((pitch, -(-taps // 4) * 4), np.int8)
    rows[:channels, :taps] = weights.reshape(channels, taps)
    return np.ascontiguousarray(rows.view(np.int32).T).reshape(-1)


def depthwise_kernel(problem: Problem) -> GpuKernel:
    """Return the kernel of a layer whose channels have a kernel each."""
    (kh, kw), pitch = problem.geometry.kernel, problem.output.cp
    taps = kh * kw
    body = [
        f"pixel: T.let[T.int32] = i // {pitch // 4}",
        f"word: T.let[T.int32] = i % {pitch // 4}",
        *problem.first_tap("pixel"),
        "acc = T.alloc_buffer((4,), 'int32', scope='local')",
        "acc[T.ramp(0, 1, 4)] = B[T.ramp(word * 4, 1, 4)]",
    ]
    for group in range(math.ceil(taps / 4)):
        names = []
        for tap in range(group * 4, group * 4 + 4):
            names.append(f"d{tap}")
            value = _tap(problem, tap) if tap < taps else "T.int32(0)"
            body.append(f"d{tap}: T.let[T.int32] = {value}")
        body += _products(group, names, pitch)
    place = f"pixel * {pitch} + word * 4"
    body += store_sums(
        *(problem.sink, "acc[T.ramp(0, 1, 4)]", "word * 4", place),
        has_fraction=problem.has_fraction,
    )
    buffers = problem.buffers(-(-taps // 4) * pitch, pitch)
    kind = f"depthwise{kh}x{kw}_{problem.tag}"
    return each(kind, buffers, problem.pixels * pitch // 4, body)


def _tap(problem: Problem, tap: int) -> str:
    """Return the word of four channels under a tap, 128 taken off each."""
    kw, source = problem.geometry.kernel[1], problem.source
    y, x = (
        f"({name} + {place * step})"
        for name, place, step in zip(
            ("y0", "x0"), divmod(tap, kw), problem.geometry.dilation, strict=True
        )
    )
    at = f"((b0 * {source.h} + {y}) * {source.w} + {x}) * {problem.pixel_words} + word"
    value = f"T.bitwise_xor(A4[{at}], T.int32({SIGN}))"
    return f"T.if_then_else({problem.is_inside(y, x)}, {value}, T.int32({problem.padding}))"


def _products(group: int, words: list[str], pitch: int) -> list[str]:
    """Lines that turn four taps of four channels round, and add their products to `acc`."""

    def chosen(left: str, right: str, order: int) -> str:
        return f"T.call_pure_extern('int32', '__byte_perm', {left}, {right}, T.int32({order}))"

    def named(name: str, value: str) -> str:
        return f"{name}_{group}: T.let[T.int32] = {value}"

    first, second, third, fourth = words
    lines = []
    for half, order in (("low", 0x5140), ("high", 0x7362)):
        lines.append(named(f"{half}a", chosen(first, second, order)))
        lines.append(named(f"{half}b", chosen(third, fourth, order)))
    for channel in range(4):
        half = ("low", "high")[channel // 2]
        taps = chosen(f"{half}a_{group}", f"{half}b_{group}", (0x5410, 0x7632)[channel % 2])
        weight = f"W[{group * pitch} + word * 4 + {channel}]"
        total = f"T.call_pure_extern('int32', '__dp4a', {taps}, {weight}, acc[{channel}])"
        lines.append(f"acc[{channel}] = {total}")
    return lines
