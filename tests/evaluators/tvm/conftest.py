"""Ways to run compiled models and single kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.cache import KernelCache, link
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.script import Kernel
from paredown.evaluators.tvm.stored import StoredWeights
from paredown.hw_profiles import HardwareProfile, ProfileError, check_runs_here, load_profile
from tests.arm.emulator import Emulator

Run = Callable[[onnx.ModelProto, NDArray[np.float32]], list[NDArray[np.float32]]]


def runnable(name: str) -> HardwareProfile:
    """Return a profile, or skip the test if this machine cannot run it."""
    profile = load_profile(name)
    try:
        check_runs_here(profile)
    except ProfileError as error:
        pytest.skip(str(error))
    return profile


# Profiles whose networks are tested where they run, and those whose kernels are tested, too.
PROFILES = ("local", "x86-64-v3", "x86-64", "aarch64")
MORE_PROFILES = ("x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni", "raspberry-pi-5", "graviton3")
# A profile of each family for Arm, and what the emulator calls a CPU with its instructions.
EMULATED = {
    "neon": ("raspberry-pi-4", "cortex-a72"),
    "neon_dotprod": ("graviton2", "neoverse-n1"),
    "neon_i8mm": ("graviton3", "max"),
}


def one_of_each_family(names: Sequence[str]) -> list[str]:
    """Return the names but those whose kernels are the same as of one before."""
    families: dict[str, str] = {}
    for name in names:
        families.setdefault(load_profile(name).isa, name)
    return [*families.values()]


@pytest.fixture(params=one_of_each_family(PROFILES))
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    """A profile of each kernel family that this machine can run."""
    return runnable(request.param)


@pytest.fixture
def run_tvm(profile: HardwareProfile, tmp_path: Path) -> Run:
    """Compile a model for the profile and run it."""

    def run(model: onnx.ModelProto, data: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        path, library = tmp_path / "model.onnx", tmp_path / "model.so"
        onnx.save(model, path)
        runtime = get_runtime("tvm")
        # Each setting of a layer is tested by itself; to time one here would compile them all.
        runtime.build(path, library, replace(profile, connection="compile-only"))
        return runtime.load(library, 1).run(data)

    return run


@pytest.fixture
def same_as_reference(run_reference: Run, tmp_path: Path) -> Callable[[onnx.ModelProto], None]:
    """Check all outputs of a model, compiled for this machine, on random input."""

    def check(model: onnx.ModelProto) -> None:
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        data = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        library = tmp_path / "model.so"
        compile_onnx(model, load_profile("local@compile-only"), library)
        found = get_runtime("tvm").load(library, 1).run(data)
        for got, expected in zip(found, run_reference(model, data), strict=True):
            assert got.shape == expected.shape
            largest = float(np.abs(expected).max())
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * largest)

    return check


class KernelRunner:
    """Runs single kernels of a family on images made of numpy arrays."""

    def __init__(self, isa: str, cache: KernelCache) -> None:
        self.isa, self.cache = isa, cache

    def fill(self, image: Image, values: NDArray[Any]) -> NDArray[Any]:
        """Return the buffer of an NHWC array; what no kernel may use is random."""
        rng = np.random.default_rng(1)
        flat = rng.integers(0, 255, image.size).astype(image.dtype)
        n, height, width = image.n, image.h + 2 * image.border, image.w + 2 * image.border
        pixels = flat[: n * image.plane].reshape(n, height, width, image.cp)
        pixels[..., : image.c] = image.zero_point
        self.inside(image, flat)[:] = values
        return flat

    def inside(self, image: Image, flat: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels without border and padding, as a view of the buffer."""
        border = image.border
        shape = (image.n, image.h + 2 * border, image.w + 2 * border, image.cp)
        pixels = flat[: image.n * image.plane].reshape(shape)
        return pixels[:, border : border + image.h, border : border + image.w, : image.c]

    def run(
        self, kernel: Kernel, arguments: Sequence[NDArray[Any]], output: Image
    ) -> NDArray[Any]:
        """Return the pixels that a kernel writes, after a look at the border it writes, too."""
        flat = self.call(kernel, [*arguments, np.full(output.size, 77, output.dtype)])
        pixels = self.inside(output, flat).copy()
        self.inside(output, flat)[:] = output.zero_point
        whole = replace(output, h=output.h + 2 * output.border, w=output.w + 2 * output.border)
        assert (self.inside(replace(whole, border=0), flat) == output.zero_point).all()
        return pixels

    def unpack(self, weights: StoredWeights) -> NDArray[Any]:
        """Return weights as they come out of a library."""
        flat = Image(None, weights.dtype, 1, 1, 1, weights.size, weights.size)
        arguments: list[NDArray[Any]] = [weights.data, weights.ints, np.zeros(1, np.float32)]
        return self.run(weights.kernel, arguments, flat).reshape(-1)

    def call(self, kernel: Kernel, arguments: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the last argument as a call leaves it."""
        import tvm

        tensors = [tvm.runtime.tensor(a) for a in arguments]
        self.cache.function(kernel)(*tensors)
        result: NDArray[Any] = tensors[-1].numpy()
        return result


class EmulatedRunner(KernelRunner):
    """Runs them on an emulated device."""

    def __init__(self, isa: str, cache: KernelCache, device: Emulator) -> None:
        super().__init__(isa, cache)
        self.device = device

    def call(self, kernel: Kernel, arguments: Sequence[NDArray[Any]]) -> NDArray[Any]:
        library = self.cache.folder / f"{kernel.symbol}.so"
        if not library.exists():
            link(library, [self.cache.object_file(kernel)], self.cache.linker)
        return self.device.kernel(library, kernel.symbol, arguments)


def machine_targets() -> dict[str, dict[str, object]]:
    """Return the targets that kernels are tested for, by family, those that run here."""
    targets: dict[str, dict[str, object]] = {}
    for name in PROFILES + MORE_PROFILES:
        profile = load_profile(name)
        try:
            check_runs_here(profile)
        except ProfileError:
            continue
        targets.setdefault(profile.isa, dict(profile.target))
    return targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests of kernels a family each: with `EVERY_FAMILY` all, else one emulated one."""
    if "kernels" in metafunc.fixturenames:
        emulated = EMULATED if getattr(metafunc.module, "EVERY_FAMILY", False) else ["neon"]
        families = sorted({*machine_targets(), *emulated})
        metafunc.parametrize("kernels", families, indirect=True, scope="module")


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest) -> KernelRunner:
    """A runner for each kernel family, of this machine or emulated."""
    isa = request.param
    if isa in machine_targets():
        return KernelRunner(isa, KernelCache(machine_targets()[isa]))
    name, cpu = EMULATED[isa]
    device = request.getfixturevalue("emulated")(cpu)
    return EmulatedRunner(isa, KernelCache(load_profile(name).target), device)
