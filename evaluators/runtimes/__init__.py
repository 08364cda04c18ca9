"""Runtimes that build, run and time a model: one protocol, one module per runtime."""

from .base import (
    RUNTIMES,
    Runtime,
    Session,
    TensorSpec,
    get_runtime,
    installed_runtimes,
    register,
    require_installed,
)
from .litert import LiteRt
from .onnxruntime import OnnxRuntime, OnnxRuntimeCuda, OnnxRuntimeTensorRt
from .openvino import OpenVino
from .tensorrt import TensorRt
from .tvm import TvmRuntime

__all__ = [
    "RUNTIMES",
    "LiteRt",
    "OnnxRuntime",
    "OnnxRuntimeCuda",
    "OnnxRuntimeTensorRt",
    "OpenVino",
    "Runtime",
    "Session",
    "TensorRt",
    "TensorSpec",
    "TvmRuntime",
    "get_runtime",
    "installed_runtimes",
    "register",
    "require_installed",
]
