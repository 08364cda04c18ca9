"""Plain data in a library: bytes that are mapped with its file, and read where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .kernels.place import START_FUNCTION

_ALIGNMENT = 64  # what kernels expect of a tensor
_SYMBOL = "paredown_data"


def aligned(size: int) -> int:
    """Return how many bytes an array of `size` bytes takes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class DataSection:
    """Arrays one behind the other, each where kernels may read it."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []
        self.size = 0  # in bytes

    def add(self, array: NDArray[Any]) -> int:
        """Append an array; return where it begins, in bytes."""
        offset = self.size
        self._arrays.append(array)
        self.size += aligned(array.nbytes)
        return offset

    def write_object(self, path: Path, triple: str) -> None:
        """Write an object file with the data and the function that tells where they are.

        TVM's LLVM assembles it, so there is no need of an assembler, for another CPU either.

        Args:
            path: The file; the data are written beside it first.
            triple: LLVM's name of the target, "" for this machine.
        """
        import tvm

        data, source = path.with_suffix(".bin"), path.with_suffix(".ll")
        with data.open("wb") as file:
            for array in self._arrays:
                file.write(array.tobytes())
                file.write(bytes(aligned(array.nbytes) - array.nbytes))
        source.write_text(_module(data, triple), encoding="ascii")
        tvm.runtime.load_module(str(source)).write_to_file(str(path), "o")


def _module(data: Path, triple: str) -> str:
    """Return LLVM's text of a module that includes a file."""
    name = str(data).replace("\\", "\\\\").replace('"', '\\"')
    assembly = (
        '.section .rodata.paredown,"a"',
        f".balign {_ALIGNMENT}",
        f".globl {_SYMBOL}",
        f".hidden {_SYMBOL}",
        f"{_SYMBOL}:",
        f'.incbin "{name}"',
    )
    lines = [f'target triple = "{triple}"'] if triple else []
    lines += [f'module asm "{_escaped(line)}"' for line in assembly]
    lines += [
        f"@{_SYMBOL} = external hidden constant i8",
        f"define hidden ptr @{START_FUNCTION}() {{ ret ptr @{_SYMBOL} }}",
    ]
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    """Return a text as LLVM writes strings: all but letters, digits and a few as hex codes."""
    plain = b" .,:/-_"
    codes = text.encode("utf-8", errors="surrogateescape")
    return "".join(
        chr(c) if c < 128 and (chr(c).isalnum() or c in plain) else f"\\{c:02X}" for c in codes
    )
