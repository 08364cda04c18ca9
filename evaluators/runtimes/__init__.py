"""Runtimes that build, run and time a model: one protocol, one module per runtime."""

from .base import (
    RUNTIMES,
    Runtime,
    Session,
    TensorSpec,
    get_runtime,
    register,
    require_installed,
)
from .litert import LiteRt
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .tvm import TvmRuntime

__all__ = [
    "RUNTIMES",
    "LiteRt",
    "OnnxRuntime",
    "OpenVino",
    "Runtime",
    "Session",
    "TensorSpec",
    "TvmRuntime",
    "get_runtime",
    "register",
    "require_installed",
]
