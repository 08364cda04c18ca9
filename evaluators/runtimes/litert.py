"""LiteRT, the former TensorFlow Lite, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import (
    Array,
    PackagedRuntime,
    TensorSpec,
    register,
    require_installed,
)

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile


class LiteRtSession:
    """An interpreter, which hands all it can to its XNNPACK delegate."""

    def __init__(self, model: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        # From memory: a file that is mapped must not be replaced while the session is open.
        self._interpreter = Interpreter(model_content=model.read_bytes(), num_threads=threads)
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self.inputs = tuple(_spec(tensor) for tensor in inputs)
        self.outputs = tuple(_spec(tensor) for tensor in outputs)
        self._input_indices = [int(tensor["index"]) for tensor in inputs]
        self._output_indices = [int(tensor["index"]) for tensor in outputs]

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        self.bind(*inputs)()
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def bind(self, *inputs: Array) -> Callable[[], None]:
        """Copy `inputs` into the interpreter and return its call."""
        for index, array in zip(self._input_indices, inputs, strict=True):
            self._interpreter.set_tensor(index, array)
        call: Callable[[], None] = self._interpreter.invoke
        return call


@register("litert")
class LiteRt(PackagedRuntime):
    """LiteRT on the CPU; the artifact is a `.tflite` file."""

    name = "litert"
    suffix = ".tflite"
    packages = ("ai-edge-litert",)
    install = "pip install 'paredown[litert]'"

    def prepare(self) -> None:
        """Import the interpreter."""
        from ai_edge_litert import interpreter  # noqa: F401 - does it import

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Convert the model; it is the same file for all devices."""
        from ..litert.converter import convert_onnx
        from ..onnx_file import read_inputs  # here, as that module needs this package

        require_installed(self)
        read_inputs(model)
        convert_onnx(model, artifact)

    def load(self, artifact: Path, threads: int) -> LiteRtSession:
        """Load a file; the delegate prepares its weights now."""
        require_installed(self)
        return LiteRtSession(artifact, threads)


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in tensor["shape"])
    return TensorSpec(str(tensor["name"]), shape, tensor["dtype"].__name__)
