"""NVIDIA GPUs: what no kernel of ours does gets TVM's own schedules (dlight); the code is checked.

A machine without NVIDIA's driver cannot load the part of TVM that holds device code as machine
code. TVM then writes the source of the kernels into the library, and compiles it where the library
is loaded. So that no fault of the code shows up only there, it is compiled here, too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

from ..measurement import EvaluationError

_MODE = "TVM_CUDA_COMPILE_MODE"  # read by TVM whenever it compiles device code


def use_cuda_compiler() -> str:
    """Let TVM compile device code in this process with what is installed; return which that is.

    Raises:
        EvaluationError: If neither nvcc nor NVRTC is installed; it says how to get one.
    """
    from tvm.support import nvcc  # noqa: F401  # the import registers the compiler with TVM

    if os.environ.get(_MODE) is None:
        os.environ[_MODE] = _find()
    return os.environ[_MODE]


def compile_for_gpu(module: Any, target: Any) -> Any:
    """Compile a Relax module with TVM's pipeline for CUDA, and check its device code.

    Args:
        module: The network, of kernels with named threads and operators of TVM's own.
        target: TVM target of kind "cuda", with its host.

    Returns:
        TVM's executable.

    Raises:
        EvaluationError: If there is no CUDA compiler, or it refuses the device code.
    """
    import tvm
    from tvm.support import nvcc

    compiler = use_cuda_compiler()
    arch = str(target.attrs["arch"])
    with target:  # both ask for it, too
        executable = tvm.compile(module, target)
        for source in device_sources(executable.mod):
            try:
                nvcc.compile_cuda(source, target_format="cubin", arch=arch, compiler=compiler)
            except Exception as error:  # TVM raises plain exceptions of many types
                raise EvaluationError(
                    f"The device code for '{arch}' is refused by {compiler}: {error}", "build"
                ) from error
    return executable


def has_gpu() -> bool:
    """Whether TVM reaches an NVIDIA GPU from this process."""
    import tvm

    return bool(tvm.cuda(0).exist)


def _find() -> str:
    if shutil.which("nvcc"):
        return "nvcc"
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return "nvrtc"
    raise EvaluationError(
        "Code for a GPU needs a CUDA compiler, but neither `nvcc` is on the path nor NVRTC "
        "installed. Install the CUDA toolkit, or `pip install cuda-python`.",
        "unavailable",
    )


def device_sources(module: Any) -> list[str]:
    """Return the CUDA sources in a compiled module and in those that it imports, each once."""
    return list(dict.fromkeys(_all_sources(module)))


def _all_sources(module: Any) -> Iterator[str]:
    if module.kind == "cuda":
        yield str(module.inspect_source())
    for imported in module.imports:
        yield from _all_sources(imported)
