"""TVM: the runtime with Paredown's own kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...hw_profiles import this_machine
from ..measurement import EvaluationError
from .base import Array, TensorSpec, register, require_installed

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

        from ..tvm.signature import read_signature

        self._tvm = tvm
        # The loader knows open libraries by name and would return an older one of this name.
        with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
            link = Path(folder) / library.name
            link.symlink_to(library.resolve())
            module = tvm_ffi.load_module(str(link), keep_module_alive=False)
        machine = relax.VirtualMachine(module, tvm.cpu())
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
        self._main = machine["main"]

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        result = self._main(*self._tensors(inputs))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [tensor.numpy() for tensor in results]

    def bind(self, *inputs: Array) -> Callable[[], Any]:
        """Return a call that runs on tensors made once."""
        main, device, tensors = self._main, self._device, self._tensors(inputs)
        if device == self._tvm.cpu():
            return lambda: main(*tensors)

        def call() -> None:
            main(*tensors)
            device.sync()  # a GPU works on while the call has returned

        return call

    def _tensors(self, inputs: Sequence[Array]) -> list[Any]:
        return [self._tvm.runtime.tensor(array, self._device) for array in inputs]


def _gpu(library: Path) -> Any:
    """Return the GPU, with what compiles a library's device code when it is first used."""
    import tvm

    from ..tvm.cuda import has_gpu, use_cuda_compiler

    if not has_gpu():
        raise EvaluationError(
            f"'{library.name}' needs an NVIDIA GPU, but there is none in reach of TVM. Run it on "
            "the device, for instance through `paredown device serve` there.",
            "load",
        )
    use_cuda_compiler()
    return tvm.cuda(0)


@register("tvm")
class TvmRuntime:
    """TVM with integer and float kernels of our own; the artifact is a shared library."""

    name = "tvm"
    suffix = ".so"

    def version(self) -> str | None:
        """Return the installed version."""
        try:
            return version("apache-tvm")
        except PackageNotFoundError:
            return None

    def prepare(self) -> None:
        """Import TVM and its ONNX frontend, which takes seconds."""
        from ..tvm import lowering  # noqa: F401

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Compile the model for the profile."""
        from ..tvm.compiler import compile_onnx

        require_installed(self)
        compile_onnx(model, profile, artifact)

    def load(self, artifact: Path, threads: int) -> TvmSession:
        """Load a library; `threads` is set by the process that loads it."""
        require_installed(self)
        return TvmSession(artifact)
