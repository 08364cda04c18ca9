"""What this machine can do at most, and what each kernel of a network makes of it."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import numpy as np

from paredown.evaluators.own_cores import OwnCores, let_helpers_rest
from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.kernels import amx
from paredown.evaluators.tvm.kernels.script import Kernel, nest, parallel
from paredown.hw_profiles import HardwareProfile

_STEPS = 1 << 16
_TRIES = 3
_RUNS = 20  # of a network, for the times in place
_BURST_NS = 200_000


class Limits:
    """Loops that use registers alone, one for floats and one for integers.

    Args:
        profile: The device; all its threads take part.
    """

    def __init__(self, profile: HardwareProfile) -> None:
        cache = KernelCache(profile.target)
        self._threads = profile.threads
        self._loops = {kind: _loop(kind, profile, cache) for kind in ("float", "integer")}

    def measure(self, kind: str) -> float:
        """Return operations per nanosecond (GOP/s) at this moment; a product and a sum are 2."""
        operations, run = self._loops[kind]
        with OwnCores([run], self._threads):
            best = min(_time_ns(run) for _ in range(_TRIES))
        let_helpers_rest()
        return operations / best


def _loop(
    kind: str, profile: HardwareProfile, cache: KernelCache
) -> tuple[int, Callable[[], object]]:
    """Return how many operations a loop does, and the loop."""
    import tvm

    if kind == "integer" and profile.isa == "avx512amx":
        return _loop_of_tiles(profile.threads, cache)
    threads, lanes = profile.threads, profile.vector_bits // 32
    ramp, product, chains, per_lane, dtype = _products(kind, profile.isa, lanes)
    width = lanes * (2 if dtype == "int16" else 1)
    acc = f"acc[i, T.ramp(0, 1, {width})]"
    each = f"for i in T.unroll({chains}):"
    zero = {"float32": "T.float32(0)", "int16": "T.int16(0)", "int32": "0"}[dtype]
    body = [
        f"acc = T.alloc_buffer(({chains}, {width}), '{dtype}', scope='local')",
        *nest([each], [f"{acc} = T.broadcast({zero}, {width})"]),
        *nest([f"for k in range({_STEPS}):", each], [f"{acc} = {product}"]),
        *nest([each], [f"D[T.ramp((p * {chains} + i) * {width}, 1, {width})] = {acc}"]),
    ]
    kernel = Kernel(
        kind=f"limit_{kind}",
        buffers=(("A", ramp), ("D", dtype)),
        ints=(),
        floats=(),
        body=tuple(nest([f"for p in {parallel(str(threads), threads)}:"], body)),
    )
    arrays = [
        *(np.ones(chains * 4 * width, ramp), np.zeros(1, np.int32), np.zeros(1, np.float32)),
        np.zeros(threads * chains * width, dtype),
    ]
    function, tensors = cache.function(kernel), [tvm.runtime.tensor(a) for a in arrays]
    return threads * _STEPS * chains * lanes * per_lane, lambda: function(*tensors)


def _loop_of_tiles(threads: int, cache: KernelCache) -> tuple[int, Callable[[], object]]:
    """Return how many operations a loop of AMX does, and the loop: 2 x 2 tiles of sums."""
    import tvm

    products = [amx.instruction("tdpbusd", s, 4 + s // 2, 6 + s % 2) for s in range(4)]
    body = [
        amx.BEGIN,
        *(amx.instruction("tilezero", tile) for tile in range(8)),
        *nest([f"for k in range({_STEPS}):"], products),
        amx.END,
        "D[p] = 0",
    ]
    kernel = Kernel(
        kind="limit_tiles",
        buffers=(("G", "int32"), ("D", "int32")),
        ints=("cfg",),
        floats=(),
        body=tuple(nest([f"for p in {parallel(str(threads), threads)}:"], body)),
    )
    arrays = [
        amx.configuration(th=2, tw=amx.SIDE, ocb=2 * amx.SIDE, kt=16),
        *(np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(threads, np.int32)),
    ]
    function, tensors = cache.function(kernel), [tvm.runtime.tensor(a) for a in arrays]
    return threads * _STEPS * len(products) * 2 * 16 * 16 * 64, lambda: function(*tensors)


def _products(kind: str, isa: str, lanes: int) -> tuple[str, str, int, int, str]:
    """Return a step of the loop.

    That is the type of its data, the expression of the next sum `i`, how many sums hide the
    latency, the operations of one 32-bit lane, and the type of the sums.
    """
    bytes_, acc = 4 * lanes, f"acc[i, T.ramp(0, 1, {lanes})]"
    step = f"T.reinterpret('uint8x{bytes_}', T.broadcast(k, {lanes}))"
    weights = f"A[T.ramp(i * {bytes_}, 1, {bytes_})]"
    if kind == "float":
        arguments = f"{acc}, A[T.ramp(0, 1, {lanes})], A[T.ramp({lanes}, 1, {lanes})]"
        name = f"llvm.fmuladd.v{lanes}f32"
        return "float32", _intrinsic(f"float32x{lanes}", name, arguments), 12, 2, "float32"
    if "vnni" in isa:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        arguments = f"{acc}, {step}, A[T.ramp(0, 1, {bytes_})]"
        return "int8", _intrinsic(f"int32x{lanes}", name, arguments), 12, 8, "int32"
    if isa.startswith("avx"):
        # Six registers of weights: products of one register would be computed once for all sums.
        name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[lanes]
        madd = _intrinsic(f"int16x{2 * lanes}", name, f"{step}, {weights}")
        return "int8", f"acc[i, T.ramp(0, 1, {2 * lanes})] + {madd}", 6, 8, "int16"
    product = f"T.broadcast(k, {lanes}) * A[T.ramp(i * {lanes}, 1, {lanes})]"
    return "int32", f"{acc} + {product}", 6, 2, "int32"


def _intrinsic(dtype: str, name: str, arguments: str) -> str:
    return f"T.call_llvm_pure_intrin('{dtype}', '{name}', {arguments})"


def _time_ns(run: Callable[[], object]) -> int:
    start = perf_counter_ns()
    run()
    return perf_counter_ns() - start


# ---- the calls of a network


@dataclass
class CallTimes:
    """All calls of one kernel on one workload.

    Attributes:
        name: The compiled function.
        workload: Sizes of the layer; empty for what is none.
        macs: Multiply-accumulate operations of one call.
        is_integer: Which limit counts.
        us: Shortest time of each call in place, with about 0.5 us for the clock.
        hot_us: Shortest time of each call when repeated at once, its data in the caches.
    """

    name: str
    workload: str
    macs: int
    is_integer: bool
    us: list[float] = field(default_factory=list)
    hot_us: list[float] = field(default_factory=list)

    def row(self, limits: Mapping[str, float]) -> dict[str, Any]:
        """Return the mean figures of one call; the share is of the machine's limit."""
        us, hot_us = float(np.mean(self.us)), float(np.mean(self.hot_us))
        row = {"name": self.name, "workload": self.workload, "calls": len(self.us)}
        row |= {"us": us, "hot_us": hot_us, "gops": None, "share": None, "hot_share": None}
        if self.macs:
            limit = limits["integer" if self.is_integer else "float"]
            gops = 2e-3 * self.macs / np.array([us, hot_us])
            share, hot_share = (gops / limit).tolist()
            row |= {"gops": float(gops[0]), "share": share, "hot_share": hot_share}
        return row


def time_calls(
    model: Path, profile: HardwareProfile, limits: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Build a network here, time its calls; layers come first, the worst share on top.

    Kernels must be in the cache already: a compiler that crashes would end this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "network.so")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TVM's, on names
            layers = _build(model, library, profile)
        names, in_place, hot = _run(library)
    calls: dict[tuple[str, str], CallTimes] = {}
    for name, place_us, hot_us in zip(names, in_place, hot, strict=True):
        workload, macs, is_integer = "", 0, False
        if layers and name == layers[0][0]:
            workload, macs, is_integer = layers.pop(0)[1:]
        entry = calls.setdefault((name, workload), CallTimes(name, workload, macs, is_integer))
        entry.us.append(place_us)
        entry.hot_us.append(hot_us)
    if layers:
        raise RuntimeError(f"{len(layers)} layers were not called in the order of their making.")
    rows = [call.row(limits) for call in calls.values()]
    return sorted(rows, key=lambda r: (r["share"] is None, r["share"] or -r["us"] * r["calls"]))


def show_calls(calls: list[dict[str, Any]], title: str) -> None:
    """Print the calls of a network: layers from the worst share on, then what takes longest."""
    print(f"\n{title}\n   calls       us   hot us    GOP/s  limit   hot")
    for call in calls:
        speed = " " * 21
        if call["gops"] is not None:
            speed = f"{call['gops']:8.1f} {call['share']:6.0%}{call['hot_share']:6.0%}"
        label = f"{call['workload']} {call['name']}".strip()
        print(f"  {call['calls']:6} {call['us']:8.1f} {call['hot_us']:8.1f} {speed}  {label}")


def _build(
    model: Path, library: Path, profile: HardwareProfile
) -> list[tuple[str, str, int, bool]]:
    """Compile; return symbol, workload, operations and kind of each layer, in order of calls."""
    from paredown.evaluators.tvm.compiler import compile_onnx
    from paredown.evaluators.tvm.emitter import Emitter
    from paredown.evaluators.tvm.layers import ConvLayer
    from paredown.evaluators.tvm.lowering import Lowering

    layers: list[tuple[str, str, int, bool]] = []
    symbols: list[str] = []
    emit_call, emit_layer = Emitter.call, Lowering.call_layer

    def call(self: Emitter, kernel: Kernel, *rest: Any, **named: Any) -> Any:
        symbols.append(kernel.symbol)
        return emit_call(self, kernel, *rest, **named)

    def call_layer(self: Lowering, layer: ConvLayer) -> Any:
        image = emit_layer(self, layer)  # the layer's own kernel is the last one of it
        g, out = layer.geometry, layer.output
        macs = out.n * out.h * out.w * g.oc * g.ic // g.groups * prod(g.kernel)
        kernel, stride = "x".join(map(str, g.kernel)), max(g.stride)
        workload = f"{g.ic}->{g.oc} {kernel}/{stride} at {out.h}x{out.w}"
        workload += f" in {g.groups} groups" if g.groups > 1 else ""
        layers.append((symbols[-1], workload, macs, layer.is_integer))
        return image

    with patch.object(Emitter, "call", call), patch.object(Lowering, "call_layer", call_layer):
        compile_onnx(model, profile, library)
    return layers


def _run(library: Path) -> tuple[list[str], Sequence[float], Sequence[float]]:
    """Return the names of the calls, and their shortest times in place and repeated, in us."""
    import tvm
    from tvm import relax

    from paredown.evaluators.tvm.signature import read_network, read_signature

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    rng = np.random.default_rng(0)
    inputs = [tvm.runtime.tensor(s.random(rng)) for s in read_signature(machine).inputs]
    names: list[str] = []
    times: list[float] = []
    start = 0
    repeats = False

    def instrument(function: Any, name: str, is_before: bool, _: Any, *arguments: Any) -> int:
        nonlocal start
        end = perf_counter_ns()
        if not name.startswith("vm.builtin."):
            if not is_before:
                times.append(_burst_us(lambda: function(*arguments)) if repeats else end - start)
                names.append(name)
            start = perf_counter_ns()
        return 0

    main = read_network(machine)
    main(*inputs)
    machine.set_instrument(instrument)
    runs = []
    for _ in range(_RUNS):
        names.clear()
        times.clear()
        main(*inputs)
        runs.append(np.array(times) / 1e3)
    names.clear()
    times.clear()
    repeats = True
    main(*inputs)
    return names, np.min(runs, 0).tolist(), list(times)


def _burst_us(run: Callable[[], object]) -> float:
    run()
    count = max(1, _BURST_NS // max(1, _time_ns(run)))

    def burst() -> None:
        for _ in range(count):
            run()

    return min(_time_ns(burst) for _ in range(_TRIES)) / count / 1e3
