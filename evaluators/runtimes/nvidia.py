"""The little that is needed of NVIDIA's driver: is there a GPU, and memory on it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..measurement import EvaluationError
from .base import Array

_LIBRARY = "libcuda.so.1"


def missing_gpu() -> str | None:
    """Return that there is no usable NVIDIA GPU, and what helps, or `None` if there is one."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"no NVIDIA driver was found ({_LIBRARY}). It needs a machine with an NVIDIA GPU."
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"the NVIDIA driver finds no GPU (CUDA error {status}). See `nvidia-smi`."
    return None


class Gpu:
    """The first GPU with its primary context, which CUDA's runtime library uses as well.

    Raises:
        EvaluationError: If the driver refuses, here and in every method.
    """

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(_LIBRARY)
        self._call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self._device, self._stream = device, stream

    @property
    def stream(self) -> int:
        """The stream that work is queued on, as a pointer."""
        return self._stream.value or 0

    def allocate(self, like: Array) -> Buffer:
        """Allocate memory for an array."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(like.nbytes, 1)))
        return Buffer(self, pointer.value, like.shape, like.dtype)

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy an array into a buffer."""
        source = np.ascontiguousarray(array, buffer.dtype)
        size = ctypes.c_size_t(source.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(buffer.pointer), _address(source), size)

    def read(self, buffer: Buffer) -> Array:
        """Return a copy of a buffer."""
        result = np.empty(buffer.shape, buffer.dtype)
        size = ctypes.c_size_t(result.nbytes)
        self._call("cuMemcpyDtoH_v2", _address(result), ctypes.c_uint64(buffer.pointer), size)
        return result

    def wait(self) -> None:
        """Wait until all that is queued is done."""
        self._call("cuStreamSynchronize", self._stream)

    def free(self, buffer: Buffer) -> None:
        """Give memory back; late in the life of a process the driver may be gone already."""
        self._driver.cuMemFree_v2(ctypes.c_uint64(buffer.pointer))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else f"error {status}"
            is_memory = status == 2
            raise EvaluationError(f"{name} failed: {said}.", "memory" if is_memory else "run")


class Buffer:
    """Memory of a GPU, which is freed with this object."""

    def __init__(
        self, gpu: Gpu, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._gpu = gpu
        self.pointer, self.shape, self.dtype = pointer, shape, dtype

    def __del__(self) -> None:
        self._gpu.free(self)


def _address(array: Array) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)
