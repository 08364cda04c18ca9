"""What a library does as it is loaded, before its kernels may use the tiles of AMX.

Linux gives a process their registers only when it asks (Linux documentation, "Using XSTATE
features in user space applications"); without that the first tile instruction ends it.
"""

from __future__ import annotations

from pathlib import Path

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18

_MODULE = f"""
@llvm.global_ctors = appending global [1 x {{ i32, ptr, ptr }}]
  [{{ i32, ptr, ptr }} {{ i32 65535, ptr @paredown_ask_for_tiles, ptr null }}]
declare i64 @syscall(i64, ...)
define internal void @paredown_ask_for_tiles() {{
  call i64 (i64, ...) @syscall(i64 {_ARCH_PRCTL}, i64 {_ARCH_REQ_XCOMP_PERM}, i64 {_TILE_DATA})
  ret void
}}
"""


def write_permission_object(path: Path, triple: str) -> None:
    """Write an object file that asks for the tiles when the library with it is loaded.

    Args:
        path: The file; its source is written beside it first.
        triple: LLVM's name of the target, "" for this machine.
    """
    import tvm

    source = path.with_suffix(".ll")
    source.write_text((f'target triple = "{triple}"' if triple else "") + _MODULE, "ascii")
    tvm.runtime.load_module(str(source)).write_to_file(str(path), "o")
    source.unlink()
