"""Kernels that find the weights of a network in the pages of its library, and give pages back."""

from __future__ import annotations

from .script import Kernel

START_FUNCTION = "paredown_data_start"
"""Function of a library that returns the address of its plain data."""

_DATA, _SHAPE = 1, 2  # fields of a `DLTensor`, as `tvm_struct_get` counts them
_PAGE = 1 << 16  # the largest page of a CPU that Linux runs on
_MADV_DONTNEED = 4


def place_kernel() -> Kernel:
    """Return the kernel that lets a tensor stand for a part of the library's plain data.

    The tensor comes with a first dimension of 0, so nothing was allocated for it. It gets
    `length` as first dimension and the bytes from `offset` on, and must not be written to.
    """
    return Kernel(
        kind="place",
        buffers=(("D", "handle"),),
        ints=("offset", "length"),
        floats=(),
        body=(
            f"start: T.let[T.handle] = T.call_extern('handle', '{START_FUNCTION}')",
            "data: T.let[T.handle] = T.handle_add_byte_offset(start, offset)",
            f"T.evaluate(T.tvm_struct_set(h_D, 0, {_DATA}, data))",
            f"shape_of: T.let[T.handle] = T.tvm_struct_get(h_D, 0, {_SHAPE}, 'handle')",
            "shape = T.decl_buffer((1,), 'int64', data=shape_of)",
            "shape[0] = T.Cast('int64', length)",
        ),
    )


def release_kernel() -> Kernel:
    """Return the kernel that gives pages of the library's plain data back to the system.

    They stay in the file, and are read from there if they are wanted again. The pages are those of
    a placed tensor of `size` bytes at `offset`. What lies in front of it must not be wanted any
    more either: a page may hold the end of one tensor and the beginning of the next.
    """
    address = "start + T.Cast('int64', offset)"
    return Kernel(
        kind="release",
        buffers=(("D", "handle"),),
        ints=("offset", "size"),
        floats=(),
        body=(
            f"start: T.let[T.int64] = T.call_extern('int64', '{START_FUNCTION}')",
            f"lowest: T.let[T.int64] = {_page(f'start + {_PAGE - 1}')}",
            f"first: T.let[T.int64] = T.max(lowest, {_page(address)})",
            f"length: T.let[T.int64] = {_page(f'{address} + size')} - first",
            "if length > 0:",
            f"  T.evaluate(T.call_extern('int32', 'madvise', first, length, {_MADV_DONTNEED}))",
        ),
    )


def _page(address: str) -> str:
    """Expression of the beginning of the page that holds an address."""
    return f"T.bitwise_and({address}, T.int64({-_PAGE}))"
