"""TVM: the runtime with Paredown's own kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from ...hw_profiles import this_machine
from ..measurement import EvaluationError
from .base import (
    Array,
    PackagedRuntime,
    TensorSpec,
    register,
    require_installed,
)

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile


class TvmSession:
    """A compiled library in TVM's virtual machine, on the CPU or the GPU that it is for.

    The number of threads is that of the process: TVM reads `TVM_NUM_THREADS` when it starts.

    Raises:
        EvaluationError: If the library was built for a CPU with features that this one lacks;
            without this check the process would end at the first such instruction. Or if it is
            for a GPU and there is none.
    """

    def __init__(self, library: Path) -> None:
        import tvm
        import tvm_ffi
        from tvm import relax

        from ..tvm.signature import read_network, read_signature

        self._tvm = tvm
        # The loader knows open libraries by name and would return an older one of this name.
        with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
            link = Path(folder) / library.name
            link.symlink_to(library.resolve())
            try:
                module = tvm_ffi.load_module(str(link), keep_module_alive=False)
            except RuntimeError as error:
                if "load_from_bytes.cuda" in str(error):  # TVM's part for GPUs did not load
                    raise _no_gpu(library) from error
                raise
        machine = relax.VirtualMachine(module, tvm.cpu())
        self._module = module
        signature = read_signature(machine)
        self._device = tvm.cpu()
        if signature.device == "cuda":
            self._device = _gpu(library)
            machine = relax.VirtualMachine(module, self._device)
        missing = sorted(set(signature.features) - this_machine().flags)
        if missing:
            raise EvaluationError(
                f"The CPU must have all that '{library.name}' was built for, but it lacks "
                f"{', '.join(missing)}. Build for a profile that runs here, such as 'local'.",
                "load",
            )
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._network = read_network(machine)
        self._layers = signature.layers

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        result = self._network(*self._tensors(inputs))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [tensor.numpy() for tensor in results]

    def bind(self, *inputs: Array) -> Callable[[], Any]:
        """Return a call that runs on tensors made once."""
        call = partial(self._network, *self._tensors(inputs))
        if self._device == self._tvm.cpu():
            return call
        device = self._device

        def call_and_wait() -> None:
            call()
            device.sync()  # a GPU works on while the call has returned

        return call_and_wait

    def _tensors(self, inputs: Sequence[Array]) -> list[Any]:
        return [self._tvm.runtime.tensor(array, self._device) for array in inputs]

    def call_timer(self, *inputs: Array) -> Callable[[], Sequence[tuple[str, float]]]:
        """Return a call that runs once and yields layer name and microseconds of each kernel.

        Each time has about 0.5 us for the clock in it.
        """
        from tvm import relax

        from ..tvm.signature import read_network

        # A machine of its own: the one that is timed as a whole must not stop at each call.
        machine = relax.VirtualMachine(self._module, self._device)
        tensors = self._tensors(inputs)
        calls: list[tuple[str, float]] = []
        start = 0

        def instrument(_: Any, name: str, is_before: bool, *_rest: Any) -> int:
            nonlocal start
            end = perf_counter_ns()
            if not name.startswith("vm.builtin."):
                if not is_before:
                    calls.append((name, (end - start) / 1e3))
                start = perf_counter_ns()
            return 0

        network = read_network(machine)
        machine.set_instrument(instrument)

        def run() -> Sequence[tuple[str, float]]:
            calls.clear()
            network(*tensors)
            names = _layers_of([kernel for kernel, _ in calls], self._layers)
            return [(name, us) for name, (_, us) in zip(names, calls, strict=True)]

        return run


def _layers_of(kernels: Sequence[str], layers: Sequence[tuple[str, str]]) -> list[str]:
    """Return the layer behind each kernel that ran, "" for what is no layer.

    The lowering may have emitted a layer, then another form of it that is used instead. What
    runs is a subsequence of what was emitted, so the two are matched from the end.
    """
    left = list(layers)
    own = {kernel for kernel, _ in layers}
    names = [""] * len(kernels)
    for place in reversed(range(len(kernels))):
        while kernels[place] in own and left:
            kernel, name = left.pop()
            if kernel == kernels[place]:
                names[place] = name
                break
    return names


def _no_gpu(library: Path) -> EvaluationError:
    return EvaluationError(
        f"'{library.name}' needs an NVIDIA GPU, but there is none in reach of TVM. Run it on the "
        "device, for instance through `paredown device serve` there.",
        "load",
    )


def _gpu(library: Path) -> Any:
    """Return the GPU, with what compiles a library's device code when it is first used."""
    import tvm

    from ..tvm.cuda import has_gpu, use_cuda_compiler

    if not has_gpu():
        raise _no_gpu(library)
    use_cuda_compiler()
    return tvm.cuda(0)


@register("tvm")
class TvmRuntime(PackagedRuntime):
    """TVM with integer and float kernels of our own; the artifact is a shared library."""

    name = "tvm"
    suffix = ".so"
    packages = ("apache-tvm",)
    install = "pip install paredown"

    def prepare(self) -> None:
        """Import TVM and its ONNX frontend, which takes seconds."""
        from ..tvm import lowering  # noqa: F401 - does it import

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Compile the model for the profile."""
        from ..tvm.compiler import compile_onnx

        require_installed(self)
        compile_onnx(model, profile, artifact)

    def load(self, artifact: Path, threads: int) -> TvmSession:
        """Load a library; `threads` is set by the process that loads it."""
        require_installed(self)
        return TvmSession(artifact)
