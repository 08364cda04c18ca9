"""OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import (
    Array,
    PackagedRuntime,
    TensorSpec,
    copy_model,
    register,
    require_installed,
)

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile

_TELEMETRY_SENDER = "openvino.tools.ovc"


class OpenVinoSession:
    """A model compiled for one stream and float32, as the file asks."""

    def __init__(self, model: Path, threads: int) -> None:
        openvino = _import_openvino()
        core = openvino.Core()
        network = core.read_model(str(model))
        _fix_batch(network)
        compiled = core.compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                # On CPUs with bfloat16 units the plug-in would quietly compute in bfloat16.
                "INFERENCE_PRECISION_HINT": "f32",
                # The worker is pinned as a whole; the plug-in would pin to cores of its choice.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._compiled = compiled

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        feed = dict(enumerate(inputs))
        results = self._compiled(feed, share_inputs=False, share_outputs=False)
        return [np.asarray(results[port]) for port in self._compiled.outputs]

    def bind(self, *inputs: Array) -> Callable[[], None]:
        """Return a call that runs on the tensors of one request."""
        openvino = _import_openvino()
        request = self._compiled.create_infer_request()
        for index, array in enumerate(inputs):
            request.set_input_tensor(index, openvino.Tensor(array))

        def call() -> None:
            request.infer(share_outputs=True)

        return call


@register("openvino")
class OpenVino(PackagedRuntime):
    """OpenVINO's CPU plug-in; the artifact is the ONNX file with 8-bit integers."""

    name = "openvino"
    suffix = ".onnx"
    packages = ("openvino",)
    install = "pip install 'paredown[openvino]'"

    def prepare(self) -> None:
        """Import `openvino`."""
        _import_openvino()

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Check and copy the file: OpenVINO compiles it at each load."""
        copy_model(self, model, artifact)

    def load(self, artifact: Path, threads: int) -> OpenVinoSession:
        """Load and compile an ONNX file."""
        require_installed(self)
        return OpenVinoSession(artifact, threads)


def _import_openvino() -> Any:
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    with _without_telemetry():
        import openvino
    return openvino


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let `import openvino` skip the converter package, which reports each import over the net.

    A `None` in `sys.modules` makes its import fail, which `openvino/__init__.py` allows for.
    Afterwards the entry goes, so that who needs the converter can still import it.
    """
    hide = _TELEMETRY_SENDER not in sys.modules
    if hide:
        sys.modules[_TELEMETRY_SENDER] = None  # type: ignore[assignment]  # see the docstring
    try:
        yield
    finally:
        if hide:
            sys.modules.pop(_TELEMETRY_SENDER, None)


def _fix_batch(network: Any) -> None:
    """Set an open batch size to 1: static shapes get the faster kernels."""
    shapes = {}
    for port in network.inputs:
        shape = port.get_partial_shape()
        if len(shape) and shape[0].is_dynamic:
            shape[0] = 1
            shapes[port] = shape
    if shapes:
        network.reshape(shapes)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(
        None if size.is_dynamic else int(size.get_length()) for size in port.get_partial_shape()
    )
    return TensorSpec(str(port.get_any_name()), shape, port.get_element_type().to_dtype().name)
