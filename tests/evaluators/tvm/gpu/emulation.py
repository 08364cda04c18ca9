"""Runs kernels for GPUs without one: the CUDA source that TVM makes of them, on the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.expr_functor import mutator

from paredown.evaluators.onnx_graph.graph import Graph
from paredown.evaluators.runtimes.base import Array
from paredown.evaluators.tvm import (  # noqa: F401  # they register
    across_rules,
    conv_rules,
    image_rules,
    matmul_rules,
    move_rules,
)
from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.cuda import device_sources
from paredown.evaluators.tvm.flattening import flatten_pixels
from paredown.evaluators.tvm.gpu.lowering import GpuLowering
from paredown.evaluators.tvm.knobs import KnobChooser
from paredown.hw_profiles import load_profile

PROFILE = "a100"
_OWN = "pd_"
_HEADER = Path(__file__).with_name("emulated_gpu.hpp")
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{')


def lowered(model: onnx.ModelProto, folder: Path) -> Any:
    """Return the Relax module of a model for a GPU."""
    profile = load_profile(PROFILE)
    cache = KernelCache(profile.target, folder)
    chooser = KnobChooser(cache, profile.isa, can_time=False)
    return GpuLowering(Graph(model, flatten_pixels), cache, chooser, profile).run()


def own_kernels(module: Any) -> dict[str, Any]:
    """Return the own kernels in a module by name, as TIR functions."""
    functions = {handle.name_hint: f for handle, f in module.functions.items()}
    return {name: f for name, f in functions.items() if name.startswith(_OWN)}


def cuda_source(kernels: Mapping[str, Any]) -> str:
    """Return the CUDA source that TVM makes of kernels."""
    named = {name: f.with_attr("global_symbol", name) for name, f in kernels.items()}
    target = tvm.target.Target(dict(load_profile(PROFILE).target))
    with target:  # once loaded, TVM's module for CUDA compilers asks for it
        return "\n".join(device_sources(tvm.compile(tvm.IRModule(named), target).mod))


class EmulatedKernels:
    """Kernels compiled for the CPU.

    Args:
        kernels: Name and TIR function of each.
        folder: Where files may be left.
    """

    def __init__(self, kernels: Mapping[str, Any], folder: Path) -> None:
        self.source = cuda_source(kernels)
        self._kernels = kernels
        self._names: dict[str, list[str]] = {}
        body = self.source[self.source.index('extern "C"') :]
        # g++ wants the two words in the other order.
        body = body.replace("__shared__ alignas(64)", "alignas(64) __shared__")
        lines = [f'#include "{_HEADER}"', body]
        for kernel, parameters in _KERNEL.findall(self.source):
            names = re.findall(r"\w+_ptr", parameters)
            self._names[kernel] = [re.sub("^h|4?_ptr$", "", name) for name in names]
            lines += _launcher(kernel, names, parameters.replace("__restrict__", "").split(","))
        text = "\n".join(lines)
        stem = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        source, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
        source.write_text(text)
        options = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared", "-fPIC"]
        command = ["g++", "-std=c++17", *options, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def run(self, symbol: str, arguments: Sequence[NDArray[Any]]) -> None:
        """Run a kernel on arrays, the last of which it writes."""
        function, kernel = self._kernels[symbol], f"{symbol}_kernel"
        extents = [
            int(found)
            for axis in ("blockIdx.x", "threadIdx.x")
            for found in re.findall(rf'T.thread_binding\((\d+), thread="{axis}"\)', str(function))
        ]
        names = [re.sub("^h_?|'", "", str(p.name)) for p in function.params]
        places = dict(zip(names, (a.ctypes.data for a in arguments), strict=True))
        run = getattr(self._library, f"run_{kernel}")
        run.restype = ctypes.c_bool
        passed = [ctypes.c_void_p(places[name]) for name in self._names[kernel]]
        assert run(*extents, *passed), f"threads of {symbol} miss a barrier"


def _launcher(kernel: str, names: list[str], parameters: list[str]) -> list[str]:
    """Lines of a function that runs a kernel; `names` are those of its parameters."""
    pointers = ", ".join(f"void* {name}" for name in names)
    return [
        f"namespace of_{kernel} {{",
        *(f"static {parameter};" for parameter in parameters),
        f"static void call() {{ {kernel}({', '.join(names)}); }}",
        "}",
        f'extern "C" bool run_{kernel}(int blocks, int threads, {pointers}) {{',
        *(f"  of_{kernel}::{n} = (decltype(of_{kernel}::{n})){n};" for n in names),
        f"  return gpu::launch(of_{kernel}::call, blocks, threads);",
        "}",
    ]


def network_on_cpu(module: Any, kernels: EmulatedKernels | None) -> Callable[..., list[Array]]:
    """Return a function that runs a network for a GPU; what is not its own, by TVM for the CPU."""
    calls = _Calls(module)
    for handle, function in module.functions.items():
        if isinstance(function, relax.Function):
            calls.builder_.update_func(handle, calls.visit_expr(function))
    functions = calls.builder_.get().functions
    rest = {h: f for h, f in functions.items() if not h.name_hint.startswith(_OWN)}

    for symbol in calls.symbols:
        assert kernels is not None

        def call(*tensors: Any, symbol: str = symbol, kernels: EmulatedKernels = kernels) -> None:
            arrays = [np.array(t.numpy()) for t in tensors]
            kernels.run(symbol, arrays)
            tensors[-1].copyfrom(arrays[-1])

        tvm.register_global_func(symbol, call, override=True)
    executable = tvm.compile(relax.get_pipeline("zero")(tvm.IRModule(rest)), "llvm")
    network = relax.VirtualMachine(executable, tvm.cpu())["main"]

    def run(*inputs: Array) -> list[Array]:
        result = network(*(tvm.runtime.tensor(i) for i in inputs))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [r.numpy() for r in results]

    return run


@mutator
class _Calls(relax.PyExprMutator):  # type: ignore[misc]  # TVM has no types
    """Calls own kernels as packed functions."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.symbols: set[str] = set()

    def visit_call_(self, call: Any) -> Any:
        if call.op == tvm.ir.Op.get("relax.call_tir"):
            symbol = call.args[0].name_hint
            if symbol.startswith(_OWN):
                self.symbols.add(symbol)
                arguments = relax.Tuple([self.visit_expr(a) for a in call.args[1]])
                return relax.call_dps_packed(symbol, arguments, call.ty_args[0])
        return super().visit_expr_post_order(call)
