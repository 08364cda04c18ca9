"""The part of a compiled library that is read once, when it is loaded."""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import sys
from pathlib import Path

# What TVM reads its virtual machine and its constants from: eight bytes of length, then that many.
_CONTENT = "__tvm_ffi__library_bin"


def release_content(library: Path) -> None:
    """Let the system take back the memory behind what has been read of a loaded library.

    TVM copies all constants out of the file, whose pages would count as the process's own for as
    long as it is open. If they are read again, they come from the file. Only Linux is told.

    Args:
        library: As it was opened.
    """
    if sys.platform != "linux":
        return
    opened = ctypes.CDLL(str(library))
    try:
        length = ctypes.c_uint64.in_dll(opened, _CONTENT)
        start, page = ctypes.addressof(length), mmap.PAGESIZE
        first = -(-start // page) * page
        behind = (start + 8 + length.value) // page * page
        if behind > first:
            system = ctypes.CDLL(None)
            size = ctypes.c_size_t(behind - first)
            system.madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)
    finally:
        _ctypes.dlclose(opened._handle)  # ctypes has no public way
