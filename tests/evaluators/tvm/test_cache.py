"""Compiled kernels: made once, shared by processes, made again when spoiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.tvm.cache import KernelCache, default_cache_folder
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.kernels.script import Kernel
from paredown.hw_profiles import load_profile

ADD_ONE = Kernel(
    "test", (("A", "float32"), ("D", "float32")), (), (), ("D[0] = A[0] + T.float32(1)",)
)
PROCESS = """
import sys
from pathlib import Path
from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.kernels.script import Kernel
from paredown.hw_profiles import load_profile

buffers = (("A", "float32"), ("D", "float32"))
kernel = Kernel("test", buffers, (), (), ("D[0] = A[0] + T.float32(1)",))
cache = KernelCache(load_profile("local").target, Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    cache.write_knobs({f"{sys.argv[2]} {number}": number})
print(cache.object_file(kernel), cache.function(kernel))
"""


def local_cache(folder: Path) -> KernelCache:
    return KernelCache(load_profile("local").target, folder)


def add_one(cache: KernelCache, value: float) -> float:
    import tvm

    parameters = [np.zeros(1, np.int32), np.zeros(1, np.float32)]
    arrays = [np.array([value], np.float32), *parameters, np.zeros(1, np.float32)]
    *inputs, result = (tvm.runtime.tensor(a) for a in arrays)
    cache.function(ADD_ONE)(*inputs, result)
    return float(result.numpy()[0])


@pytest.mark.slow
def test_spoiled_kernel_is_compiled_again(tmp_path: Path) -> None:
    assert add_one(local_cache(tmp_path), 2.0) == 3.0
    files = [*local_cache(tmp_path).folder.iterdir()]
    for path in files:
        half = path.read_bytes()[:1000]
        path.unlink()  # this process has the library open
        path.write_bytes(half)
    assert add_one(local_cache(tmp_path), 4.0) == 5.0
    sizes = [path.stat().st_size for path in local_cache(tmp_path).folder.iterdir()]
    assert len(sizes) == len(files)  # no remains
    assert min(sizes) > 1000


@pytest.mark.slow
def test_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    cache = local_cache(tmp_path)
    assert len(cache.read_knobs()) == 40
    assert add_one(cache, 1.0) == 2.0
    assert not list(cache.folder.glob(".new-*"))


def test_kernel_with_an_error_is_named(tmp_path: Path) -> None:
    broken = Kernel("broken", ADD_ONE.buffers, (), (), ("D[0] = nothing",))
    with pytest.raises(EvaluationError, match=f"could not compile kernel '{broken.symbol}'"):
        local_cache(tmp_path).object_file(broken)


def test_targets_do_not_share_kernels(tmp_path: Path) -> None:
    folders = {
        KernelCache(load_profile(name).target, tmp_path).folder
        for name in ("x86-64", "x86-64-v3", "aarch64")
    }
    assert len(folders) == 3


def test_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_folder() == Path("/caches/paredown/kernels")
    monkeypatch.setenv("PAREDOWN_CACHE", "/own")
    assert default_cache_folder() == Path("/own/kernels")


@pytest.mark.slow
def test_missing_linker_is_an_error(
    builder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = builder.model((1, 3, 5, 5), builder.float_conv("input", (8, 3, 3, 3)))
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluationError, match=r"needs `cc`, which is not on the path"):
        compile_onnx(model, load_profile("local"), tmp_path / "model.so", tmp_path / "cache")
    assert not (tmp_path / "model.so").exists()


def test_folder_that_is_not_writable_is_an_error(builder: Any, tmp_path: Path) -> None:
    model = builder.model((1, 3, 5, 5), builder.float_conv("input", (8, 3, 3, 3)))
    (tmp_path / "cache").write_text("")
    with pytest.raises(EvaluationError, match="must be writable"):
        compile_onnx(model, load_profile("local"), tmp_path / "model.so", tmp_path / "cache")


def test_the_compiler_says_what_its_code_may_use(tmp_path: Path) -> None:
    # A CPU that archspec does not know.
    target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "graniterapids"}
    assert {"avx512_fp16", "avx_vnni"} <= KernelCache(target, tmp_path).cpu_flags()
    arm = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    assert {"asimddp", "atomics"} <= KernelCache(arm, tmp_path).cpu_flags()


def test_libraries_with_tiles_ask_for_them(tmp_path: Path) -> None:
    assert KernelCache(load_profile("x86-64-v4-vnni").target, tmp_path).start_objects() == []
    cache = KernelCache(load_profile("x86-64-v4-amx").target, tmp_path)
    (asks,) = cache.start_objects()
    assert cache.start_objects() == [asks]
    headers = subprocess.run(["objdump", "-hr", str(asks)], capture_output=True, text=True)
    assert ".init_array" in headers.stdout
    assert "syscall" in headers.stdout
    assert list(asks.parent.glob("*.ll")) == []
