"""ONNX Runtime on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Array, TensorSpec, register, require_installed

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile

_NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OnnxRuntimeSession:
    """An `onnxruntime.InferenceSession` with all optimizations on."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            str(model), _session_options(threads), providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        feed = dict(zip(self._input_names, inputs, strict=True))
        outputs: list[Array] = self._session.run(None, feed)
        return outputs

    def bind(self, *inputs: Array) -> Callable[[], None]:
        """Return a call that runs on the same buffers each time."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in zip(self._input_names, inputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name)
        run = self._session.run_with_iobinding

        def call() -> None:
            run(binding)

        call()
        # The shapes of the outputs are known now, so later runs can reuse their buffers.
        for spec, value in zip(self.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        return call


@register("onnxruntime")
class OnnxRuntime:
    """ONNX Runtime with the CPU provider; the artifact is the ONNX file itself."""

    name = "onnxruntime"
    suffix = ".onnx"

    def version(self) -> str | None:
        """Return the installed version."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return None

    def prepare(self) -> None:
        """Import `onnxruntime`."""
        import onnxruntime  # noqa: F401

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Check and copy the file: ONNX Runtime optimizes it at each load."""
        from ..onnx_file import read_inputs  # here, as that module needs this package

        require_installed(self)
        read_inputs(model)
        shutil.copyfile(model, artifact)

    def load(self, artifact: Path, threads: int) -> OnnxRuntimeSession:
        """Load an ONNX file."""
        require_installed(self)
        return OnnxRuntimeSession(artifact, threads)


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Within a run the threads may spin, as in deployment. Between runs they must not: candidate
    # and baseline have a pool each, and the idle one would take cores from the one being timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _spec(arg: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
    kind = str(arg.type).removeprefix("tensor(").removesuffix(")")
    return TensorSpec(str(arg.name), shape, _NUMPY_NAMES.get(kind, kind))
