"""Runs a network for GPUs without one: the CUDA source that TVM makes of its kernels, on the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from numpy.typing import NDArray
from tvm import relax

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
from paredown.evaluators.tvm.flattening import flatten_pixels
from paredown.evaluators.tvm.gpu.lowering import GpuLowering
from paredown.evaluators.tvm.knobs import KnobChooser
from paredown.evaluators.tvm.signature import read_network
from paredown.hw_profiles import load_profile

_OWN = "pd_"
_HEADER = Path(__file__).with_name("emulated_gpu.hpp")
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{')


def lowered(model: onnx.ModelProto, profile_name: str, folder: Path) -> Any:
    """Return the Relax module of a model for a GPU."""
    profile = load_profile(profile_name)
    cache = KernelCache(profile.target, folder)
    chooser = KnobChooser(cache, profile.isa, can_time=False)
    return GpuLowering(Graph(model, flatten_pixels), cache, chooser, profile).run()


def cuda_source(module: Any, profile_name: str) -> str:
    """Return the CUDA source of the own kernels of a module."""
    own = {
        handle: function.with_attr("global_symbol", handle.name_hint)
        for handle, function in module.functions.items()
        if handle.name_hint.startswith(_OWN)
    }
    profile = load_profile(profile_name)
    compiled = tvm.compile(tvm.IRModule(own), tvm.target.Target(dict(profile.target))).mod
    return "\n".join(dict.fromkeys(_sources(compiled)))


def _sources(module: Any) -> Iterator[str]:
    if module.kind == "cuda":
        yield str(module.inspect_source())
    for imported in module.imports:
        yield from _sources(imported)


class EmulatedKernels:
    """Kernels of a module, compiled for the CPU.

    Args:
        module: Relax module for a GPU.
        profile_name: Its profile.
        folder: Where files may be left.
    """

    def __init__(self, module: Any, profile_name: str, folder: Path) -> None:
        self.source = cuda_source(module, profile_name)
        self._names: dict[str, list[str]] = {}
        # g++ wants the two words in the other order.
        body = self.source[self.source.index('extern "C"') :]
        lines = [f'#include "{_HEADER}"', body.replace("__shared__ alignas(64)", "alignas(64) __shared__")]
        for kernel, parameters in _KERNEL.findall(self.source):
            names = re.findall(r"\w+_ptr", parameters)
            self._names[kernel] = [re.sub("^h|4?_ptr$", "", name) for name in names]
            lines += _launcher(kernel, names, parameters.replace("__restrict__", "").split(","))
        text = "\n".join(lines)
        stem = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        stem.with_suffix(".cpp").write_text(text)
        options = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared", "-fPIC"]
        library = stem.with_suffix(".so")
        sources = [str(stem.with_suffix(".cpp")), "-o", str(library)]
        subprocess.run(["g++", "-std=c++17", *options, *sources], check=True)
        self._library = ctypes.CDLL(str(library))
        self._functions = {h.name_hint: f for h, f in module.functions.items()}

    def run(self, symbol: str, arguments: list[NDArray[Any]]) -> None:
        """Run a kernel on arrays, the last of which it writes."""
        function, kernel = self._functions[symbol], f"{symbol}_kernel"
        extents = [
            int(re.search(rf'T.thread_binding\((\d+), thread="{axis}"\)', str(function))[1])  # type: ignore[index]  # it is there
            for axis in ("blockIdx.x", "threadIdx.x")
        ]
        names = [re.sub("^h_?|'", "", str(p.name)) for p in function.params]
        pointers = dict(zip(names, (a.ctypes.data for a in arguments), strict=True))
        passed = [ctypes.c_void_p(pointers[name]) for name in self._names[kernel]]
        run = getattr(self._library, f"run_{kernel}")
        run.restype = ctypes.c_bool
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


def on_cpu(module: Any, kernels: EmulatedKernels) -> Callable[..., list[Array]]:
    """Return a function that runs a network, all but its own kernels by TVM for the CPU."""
    mutator = _Calls(module)
    for handle, function in module.functions.items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(handle, mutator.visit_expr(function))
    changed = mutator.builder_.get()
    changed = tvm.IRModule(
        {h: f for h, f in changed.functions.items() if not h.name_hint.startswith(_OWN)}
    )
    for symbol in mutator.symbols:

        def call(*tensors: Any, symbol: str = symbol) -> None:
            arrays = [np.ascontiguousarray(t.numpy()) for t in tensors]
            kernels.run(symbol, arrays)
            tensors[-1].copyfrom(arrays[-1])

        tvm.register_global_func(symbol, call, override=True)
    executable = tvm.compile(relax.get_pipeline("zero")(changed), "llvm")
    machine = relax.VirtualMachine(executable, tvm.cpu())
    network = read_network(machine)

    def run(*inputs: Array) -> list[Array]:
        result = network(*(tvm.runtime.tensor(i) for i in inputs))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [r.numpy() for r in results]

    return run


@relax.expr_functor.mutator
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
