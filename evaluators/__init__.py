"""What a candidate is worth: its accuracy, its size and its latency."""

from .latency import LatencyProtocol, RuntimeComparison, compare_runtimes, measure_latency
from .measurement import EvaluationError, Latency
from .runtimes import RUNTIMES, Runtime, Session, TensorSpec, get_runtime, register
from .worker import Worker

__all__ = [
    "RUNTIMES",
    "EvaluationError",
    "Latency",
    "LatencyProtocol",
    "Runtime",
    "RuntimeComparison",
    "Session",
    "TensorSpec",
    "Worker",
    "compare_runtimes",
    "get_runtime",
    "measure_latency",
    "register",
]
