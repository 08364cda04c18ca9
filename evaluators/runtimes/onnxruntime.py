"""ONNX Runtime: on the CPU, and on NVIDIA GPUs with its CUDA and TensorRT providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..measurement import EvaluationError
from ..onnx_file import reads_quantized_in_float
from .base import (
    Array,
    PackagedRuntime,
    TensorSpec,
    copy_model,
    register,
    require_installed,
)
from .nvidia import missing_gpu

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile

Providers = list[tuple[str, Mapping[str, str]]]

_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_GPU_PACKAGE = "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
_CPU: tuple[str, Mapping[str, str]] = ("CPUExecutionProvider", {})
# TensorFloat-32 would round the operands of float layers to 10 bits, unlike all other runtimes.
_CUDA: tuple[str, Mapping[str, str]] = ("CUDAExecutionProvider", {"use_tf32": "0"})


class OnnxRuntimeSession:
    """An `onnxruntime.InferenceSession` with all optimizations on.

    Args:
        model: ONNX file.
        threads: Threads on the CPU.
        providers: Where operators run, in order of preference.
        device: Where `bind` keeps inputs and outputs, "cpu" or "cuda".

    Raises:
        EvaluationError: If the first provider does not start; ONNX Runtime alone would quietly
            go on with the next one.
    """

    def __init__(self, model: Path, threads: int, providers: Providers, device: str) -> None:
        import onnxruntime

        options = _session_options(threads)
        if reads_quantized_in_float(model):
            # It would round the weights of such layers to 8 bits, with one scale for all of them:
            # another model than the one whose accuracy is known. Elsewhere it rounds biases alone.
            key = "optimization.disable_specified_optimizers"
            options.add_session_config_entry(key, "WeightBiasQuantization")
        self._session = onnxruntime.InferenceSession(
            str(model),
            options,
            providers=[name for name, _ in providers],
            provider_options=[dict(values) for _, values in providers],
        )
        wanted, started = providers[0][0], self._session.get_providers()
        if wanted not in started:
            raise EvaluationError(
                f"ONNX Runtime must run on {wanted}, but only {', '.join(started)} started. Check "
                "that the driver and the libraries of CUDA, cuDNN and TensorRT are those that "
                "this version of ONNX Runtime was built for.",
                "unavailable",
            )
        self._device = device
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        feed = dict(zip(self._input_names, inputs, strict=True))
        outputs: list[Array] = self._session.run(None, feed)
        return outputs

    def bind(self, *inputs: Array) -> Callable[[], None]:
        """Return a call that runs on the same buffers each time, those of the device."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in zip(self._input_names, inputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device)
        run, wait = self._session.run_with_iobinding, binding.synchronize_outputs

        def call() -> None:
            run(binding)

        def call_and_wait() -> None:
            run(binding)
            wait()

        call_and_wait()
        # The shapes of the outputs are known now, so later runs can reuse their buffers.
        for spec, value in zip(self.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        return call if self._device == "cpu" else call_and_wait


@register("onnxruntime")
class OnnxRuntime(PackagedRuntime):
    """ONNX Runtime with the CPU provider; the artifact is the ONNX file with 8-bit integers."""

    name = "onnxruntime"
    suffix = ".onnx"
    packages = ("onnxruntime", "onnxruntime-gpu")
    install = "pip install onnxruntime"
    providers: ClassVar[Providers] = [_CPU]
    device = "cpu"

    def prepare(self) -> None:
        """Import `onnxruntime`."""
        import onnxruntime  # noqa: F401 - does it import

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Check and copy the file: ONNX Runtime optimizes it at each load."""
        copy_model(self, model, artifact)

    def load(self, artifact: Path, threads: int) -> OnnxRuntimeSession:
        """Load an ONNX file."""
        require_installed(self)
        return OnnxRuntimeSession(artifact, threads, self.providers, self.device)


@register("onnxruntime-cuda")
class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime with the CUDA provider; what that lacks runs on the CPU."""

    name = "onnxruntime-cuda"
    providers: ClassVar[Providers] = [_CUDA, _CPU]
    device = "cuda"
    packages = ("onnxruntime-gpu", "onnxruntime")
    install = _GPU_PACKAGE
    library = "libonnxruntime_providers_cuda.so"

    def version(self) -> str | None:
        """Return the version of an ONNX Runtime that brings the provider."""
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return None
        has_provider = (Path(spec.origin).parent / "capi" / self.library).is_file()
        return super().version() if has_provider else None

    def missing(self) -> str | None:
        """Return what lacks: the provider, or the GPU."""
        return super().missing() or missing_gpu()

    def prepare(self) -> None:
        """Import `onnxruntime`, with the libraries that NVIDIA's packages bring."""
        import onnxruntime

        onnxruntime.preload_dlls()

    def load(self, artifact: Path, threads: int) -> OnnxRuntimeSession:
        """Load an ONNX file."""
        require_installed(self)
        self.prepare()
        return super().load(artifact, threads)


@register("onnxruntime-tensorrt")
class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """ONNX Runtime with the TensorRT provider; what that lacks runs on the CUDA provider.

    TensorRT quantizes around 0 alone, so with activations of 8 bits around another point most
    of a network runs on the CUDA provider; `tensorrt` has the same limit, but no such fallback.
    """

    name = "onnxruntime-tensorrt"
    providers: ClassVar[Providers] = [
        ("TensorrtExecutionProvider", {"trt_int8_enable": "True"}),
        _CUDA,
        _CPU,
    ]
    library = "libonnxruntime_providers_tensorrt.so"


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
