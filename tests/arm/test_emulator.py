"""The emulated device: right results, and errors that say what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import from_source

from paredown.evaluators.tvm.cache import link
from tests.arm.emulator import Emulator, EmulatorError

pytestmark = pytest.mark.slow
Emulated = Callable[[str], Emulator]

# Sums of four products, by an instruction that came with Armv8.2.
DOT = """
@I.ir_module
class Module:
  @T.prim_func(s_tir=True)
  def dot(A: T.Buffer((16,), 'int8'), W: T.Buffer((16,), 'int8'), D: T.Buffer((4,), 'int32')):
    T.func_attr({'global_symbol': 'dot'})
    at = T.ramp(0, 1, 16)
    D[T.ramp(0, 1, 4)] = T.call_llvm_pure_intrin(
        'int32x4', 'llvm.aarch64.neon.sdot.v4i32.v16i8', T.broadcast(0, 4), A[at], W[at])
"""


@pytest.fixture(scope="module")
def library(arm_sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]}
    tvm.compile(from_source(DOT), tvm.target.Target(target)).mod.write_to_file(
        str(folder / "dot.o"), "o"
    )
    link(folder / "dot.so", [folder / "dot.o"], "aarch64-linux-gnu-ld")
    return folder / "dot.so"


def test_a_kernel_runs(library: Path, emulated: Emulated) -> None:
    a, w = np.random.default_rng(0).integers(-128, 128, (2, 16)).astype(np.int8)
    got = emulated("max").kernel(library, "dot", [a, w, np.zeros(4, np.int32)])
    expected = (a.astype(np.int32) * w).reshape(4, 4).sum(1)
    np.testing.assert_array_equal(got, expected)


def test_an_instruction_that_the_cpu_lacks_is_named(library: Path, arm_sysroot: Path) -> None:
    zeros = np.zeros(16, np.int8)
    with Emulator(arm_sysroot, "cortex-a72") as device:
        for _ in range(2):  # the device starts again after a crash
            with pytest.raises(EmulatorError, match=r"ended in 'dot\.so': SIGILL"):
                device.kernel(library, "dot", [zeros, zeros, np.zeros(4, np.int32)])


def test_an_error_of_the_device_is_shown(library: Path, emulated: Emulated) -> None:
    zeros = np.zeros(16, np.int8)
    with pytest.raises(EmulatorError, match="dot"):
        emulated("max").kernel(library, "nothing", [zeros])
    with pytest.raises(EmulatorError, match="shape"):
        emulated("max").kernel(library, "dot", [zeros[:8], zeros, np.zeros(4, np.int32)])
