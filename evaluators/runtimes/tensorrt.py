"""TensorRT engines on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measurement import EvaluationError
from .base import (
    Array,
    PackagedRuntime,
    TensorSpec,
    register,
    require_installed,
)
from .nvidia import Gpu, missing_gpu

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile


class TensorRtSession:
    """An engine with an execution context and buffers of its own on the first GPU.

    Raises:
        EvaluationError: If the engine was built for another GPU or version of TensorRT.
    """

    def __init__(self, plan: Path) -> None:
        import tensorrt

        self._gpu = Gpu()
        log = _log(tensorrt)
        self._runtime = tensorrt.Runtime(log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EvaluationError(
                f"Engine '{plan.name}' must be of this GPU and version of TensorRT, but it cannot "
                f"be loaded: {log.text}. Build it again on this machine.",
                "load",
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        specs = {name: self._spec(tensorrt, name) for name in names}
        self._buffers = {}
        for name, spec in specs.items():
            like = np.empty([size or 1 for size in spec.shape], spec.dtype)
            self._buffers[name] = self._gpu.allocate(like)
            self._context.set_tensor_address(name, self._buffers[name].pointer)
        is_input = tensorrt.TensorIOMode.INPUT
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(specs[name] for name in names if modes[name] == is_input)
        self.outputs = tuple(specs[name] for name in names if modes[name] != is_input)

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        self.bind(*inputs)()
        return [self._gpu.read(self._buffers[spec.name]) for spec in self.outputs]

    def bind(self, *inputs: Array) -> Callable[[], None]:
        """Copy `inputs` to the GPU and return a call that runs on them and waits."""
        for spec, array in zip(self.inputs, inputs, strict=True):
            self._gpu.write(self._buffers[spec.name], array)
        enqueue, stream, wait = self._context.execute_async_v3, self._gpu.stream, self._gpu.wait

        def call() -> None:
            if not enqueue(stream):
                raise EvaluationError("TensorRT could not start the engine.", "run")
            wait()

        return call

    def _spec(self, tensorrt: Any, name: str) -> TensorSpec:
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        dtype = np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name)))
        return TensorSpec(name, shape, str(dtype))


@register("tensorrt")
class TensorRt(PackagedRuntime):
    """TensorRT; the artifact is an engine for this GPU and this version of the library.

    Integers are used where values are quantized around 0 (`onnx_symmetric.py`): activations of 7
    bits. Layers that read any other run in float32.
    """

    name = "tensorrt"
    suffix = ".engine"
    packages = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    install = "pip install 'paredown[tensorrt]'"

    def missing(self) -> str | None:
        """Return what lacks: the library, or the GPU."""
        return super().missing() or missing_gpu()

    def prepare(self) -> None:
        """Import `tensorrt`."""
        import tensorrt  # noqa: F401 - does it import

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Build an engine; TensorRT times its kernels on this machine's GPU."""
        import onnx

        from ..onnx_file import read_inputs  # here, as that module needs this package
        from ..onnx_symmetric import quantize_around_zero

        require_installed(self)
        read_inputs(model)
        artifact.write_bytes(_build(quantize_around_zero(onnx.load(model)).SerializeToString()))

    def load(self, artifact: Path, threads: int) -> TensorRtSession:
        """Load an engine; `threads` means nothing to a GPU."""
        require_installed(self)
        return TensorRtSession(artifact)


def _build(model: bytes) -> bytes:
    import tensorrt

    log = _log(tensorrt)
    builder = tensorrt.Builder(log)
    # From version 11 on every network takes its types from the file, and there is no flag for it.
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse(model):
        found = "; ".join(parser.get_error(k).desc() for k in range(parser.num_errors))
        raise EvaluationError(f"TensorRT could not read the model: {found or log.text}", "build")
    config = builder.create_builder_config()
    # TensorFloat-32 would round the operands of float layers to 10 bits, unlike other runtimes.
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EvaluationError(f"TensorRT could not build the model: {log.text}", "build")
    return bytes(plan)


def _log(tensorrt: Any) -> Any:
    """Return a logger that keeps what goes wrong, for messages."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]  # the library is untyped
        """Keeps errors."""

        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.lines: list[str] = []

        @property
        def text(self) -> str:
            """All errors in one line."""
            return "; ".join(self.lines)

        def log(self, severity: Any, message: str) -> None:
            """Take a message."""
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                self.lines.append(message)

    return Log()
