"""Settings of convolution kernels: a handful per workload, timed once, remembered on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hw_profiles.isa import ISAS
from ..own_cores import OwnCores
from . import amx_knobs, depthwise, neon_knobs
from .cache import KernelCache
from .kernels.conv import FORMS, Knobs
from .kernels.pointwise import widen_kernel
from .layers import ConvLayer, parameter_arrays
from .tiles import Extent, tiles

_TILES = 4  # how many are timed per form
_BESIDE_AMX = 2  # of them where AMX is there as well
# What uses AMX must gain that much: with two threads of a Granite Rapids, all that followed took
# 15 % longer for a millisecond if the first layer of a MobileNetV2 used it.
_HANDICAP = {"amx": 1.1}
_CLOSE = 1.15  # what is further behind the best in the first rounds is not timed again
_FEW_STEPS = 8  # below, a step more in each segment counts
_MANY_WEIGHTS = 1 << 14  # fewer stay in the caches, where reading float16 costs up to 3 % more


def options(layer: ConvLayer, isa: str, *, reads_halves: bool = False) -> list[Knobs]:
    """Return the settings worth timing for a layer, the most promising first.

    Args:
        layer: The layer.
        isa: Kernel family of the device.
        reads_halves: Whether many float16 weights may be read in place, as the profile says. That
            saves time where reading them decides, as in linear layers; see `stored`.
    """
    if layer.is_depthwise:
        return depthwise.options(
            *(layer.weights, layer.source.data_max, layer.source.cp),
            *(layer.output.h, layer.output.w, isa),
            can_fold=layer.can_fold,
            can_share_rows=layer.can_share_rows,
        )
    if isa.startswith("neon") and (found := neon_knobs.options(layer, isa)):
        return found
    if not layer.is_integer:
        forms = ["f32"]
        if reads_halves and layer.is_half and layer.weights.size >= _MANY_WEIGHTS:
            forms.insert(0 if layer.grid == (1, 1) else 1, "f16")  # each weight is used once
        return [knobs for form in forms for knobs in _tiles(layer, form, isa)]
    if isa == "portable" or isa.startswith("neon"):
        return _tiles(layer, "plain", isa)
    if isa == "avx512amx":
        return [*amx_knobs.options(layer), *_tiles(layer, "dot", isa)[:_BESIDE_AMX]]
    if ISAS[isa].has_byte_dots:
        return _tiles(layer, "dot", isa)
    names = ("rolled", "pair4", "pair2", "pair1", "words", "wide")
    found = [knobs for form in names for knobs in _tiles(layer, form, isa)]
    return [knobs for knobs in found if knobs.form in _proved_forms(layer, knobs.ocb)]


def _proved_forms(layer: ConvLayer, ocb: int) -> tuple[str, ...]:
    """Return the forms that are exact for the layer's weights, and worth a try."""
    # Without groups the segments of a channel do not depend on the block it is in.
    run = int(layer.runs(ocb if layer.geometry.groups > 1 else 8).min())
    if run < 2:
        return ("pair1",) if run else ("words", "wide")
    steps = _steps(layer, "pair1")
    found = ("pair1",) if steps % 2 and steps < _FEW_STEPS else ()  # the others take one more
    if run < 4:
        return (*found, "pair2")
    return (*found, *(("pair2", "pair4") if run == 4 else ("pair4", "rolled")))


def _steps(layer: ConvLayer, form: str) -> int:
    """Return how many steps of a form a segment takes, if it need not be a multiple."""
    geometry = layer.geometry
    taps = geometry.kernel[1] if geometry.rows_are_whole else 1
    length = taps * geometry.icp if geometry.groups == 1 else geometry.ic // geometry.groups
    return ceil(length / FORMS[form].group)


def _tiles(layer: ConvLayer, form: str, isa: str) -> list[Knobs]:
    geometry = layer.geometry
    unit = layer.phases.channels if layer.phases else geometry.ocp
    extent = Extent(geometry.ocp, *layer.grid, geometry.n_segments, _steps(layer, form), unit)
    return tiles(form, extent, has_512=isa.startswith("avx512"), count=_TILES)


class KnobChooser:
    """Chooses settings, by timing where this machine can run the kernels.

    Args:
        cache: Compiles kernels and keeps what was found.
        isa: Kernel family of the profile.
        can_time: Whether the kernels run here; otherwise the first setting is taken.
        reads_halves: Whether kernels read float16 weights in place there.
    """

    def __init__(
        self, cache: KernelCache, isa: str, *, can_time: bool, reads_halves: bool = False
    ) -> None:
        self._cache, self._isa, self._can_time = cache, isa, can_time
        self._reads_halves = reads_halves
        self._known = cache.read_knobs()
        self._new: dict[str, Any] = {}

    def choose(self, layer: ConvLayer) -> Knobs:
        """Return the settings for a layer; found by timing them if that was not done before."""
        candidates = options(layer, self._isa, reads_halves=self._reads_halves)
        if not self._can_time or len(candidates) == 1:
            return candidates[0]
        key = _workload(layer, candidates)
        best = _read_best(self._known.get(key))
        if best not in candidates:
            entry = self._new[key] = self._known[key] = self._time(layer, candidates)
            best = Knobs(*entry["best"])
        return best

    def save(self) -> None:
        """Write what was newly found to the cache."""
        if self._new:
            self._cache.write_knobs(self._new)
            self._new = {}

    def _time(self, layer: ConvLayer, candidates: list[Knobs]) -> dict[str, Any]:
        # To compile takes most of the time, and the interpreter is free meanwhile.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            runs = list(pool.map(lambda knobs: self._runner(layer, knobs), candidates))
        with OwnCores([lambda: [run() for run in runs]], layer.threads):
            seconds = interleaved_times(runs)
            close = np.flatnonzero(seconds < _CLOSE * seconds.min())
            if len(close) > 1:  # a few percent between them: they are told apart with more care
                again = interleaved_times([runs[i] for i in close], rounds=12, burst_s=1e-3)
                seconds[close] = again
        handicaps = np.array([_HANDICAP.get(knobs.form, 1.0) for knobs in candidates])
        knobs = candidates[close[(seconds * handicaps)[close].argmin()]]
        return {
            "best": [knobs.form, knobs.lanes, knobs.ocb, knobs.th, knobs.tw],
            "us": {
                f"{k.form} {k.ocb}x{k.th}x{k.tw}": round(t * 1e6, 2)
                for k, t in zip(candidates, seconds.tolist(), strict=True)
            },
        }

    def _runner(self, layer: ConvLayer, knobs: Knobs) -> Callable[[], None]:
        import tvm

        call = layer.call(knobs)
        function = self._cache.function(call.kernel)
        images = [
            layer.source,
            *([layer.sink.residual] if layer.sink.residual else []),
            layer.output,
        ]
        source, *residual, output = (tvm.runtime.tensor(np.ones(i.size, i.dtype)) for i in images)
        *constants, ints, floats = (tvm.runtime.tensor(c) for c in call.constants)
        rest = [*constants, *residual, ints, floats, output]
        if not call.reads_words:
            return lambda: function(source, *rest)
        widen = widen_kernel(layer.threads)
        widening = self._cache.function(widen)
        sizes = [tvm.runtime.tensor(c) for c in parameter_arrays(widen, {"size": source.shape[0]})]
        words = tvm.runtime.tensor(np.ones(source.shape, np.int16))

        def run() -> None:
            widening(source, *sizes, words)
            function(words, *rest)

        return run


def interleaved_times(
    runs: list[Callable[[], None]], rounds: int = 6, burst_s: float = 3e-4
) -> NDArray[np.float64]:
    """Time functions in turn and return the time of each in the best round, in seconds.

    What slows the machine down for longer than a round hits all of them alike, so they are
    compared within rounds. The best time of each would go by who ran in a good moment.
    """
    bursts = []
    for run in runs:
        run()
        start = time.perf_counter()
        run()
        bursts.append(max(1, int(burst_s / max(time.perf_counter() - start, 1e-7))))
    seconds = np.zeros((rounds, len(runs)))
    for row in seconds:
        for i, (run, burst) in enumerate(zip(runs, bursts, strict=True)):
            start = time.perf_counter()
            for _ in range(burst):
                run()
            row[i] = (time.perf_counter() - start) / burst
    usual = np.median(seconds, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.median(seconds / usual, axis=0) * usual.min()
    return found


def _read_best(entry: Any) -> Knobs | None:
    """Return the settings in an entry of the table, or None if there are none that make sense."""
    best = entry.get("best") if isinstance(entry, dict) else None
    if not isinstance(best, list) or len(best) != len(fields(Knobs)):
        return None
    return Knobs(*best)


def _workload(layer: ConvLayer, candidates: list[Knobs]) -> str:
    g, out = layer.geometry, layer.output
    kind = "conv" if layer.phases is None else "spread conv"
    kind += " add" * (layer.sink.residual is not None)  # leaves fewer registers to the tile
    names = {knobs.form for knobs in candidates}
    # Only this form's time depends on the weights, beyond which forms there are.
    run = int(layer.runs(8).min()) if "rolled" in names else ""
    sizes = [g.ic, g.oc, *g.kernel, *g.stride, *g.dilation, g.groups, out.n, out.h, out.w]
    forms = "+".join(sorted(names))
    return f"{kind} {'x'.join(map(str, sizes))} {forms}{run} threads {layer.threads}"
