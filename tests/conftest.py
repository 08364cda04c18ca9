from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from os import environ
from pathlib import Path

import pytest

from tests.arm.emulator import Emulator
from tests.arm.sysroot import default_folder, is_complete

_ARM_SYSROOT = default_folder()  # of the user, before tests get caches of their own


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep kernels and trained models of this run apart from the user's, shared by its tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PAREDOWN_CACHE", "PAREDOWN_MODELS"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def arm_sysroot() -> Iterator[Path]:
    """Return a root file system of 64-bit Arm, its linker on the path; skip if there is none."""
    if not is_complete(_ARM_SYSROOT):
        pytest.skip(
            f"no Arm root file system in {_ARM_SYSROOT}; run `python tests/arm/sysroot.py`"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{_ARM_SYSROOT / 'bin'}:{environ['PATH']}")
        yield _ARM_SYSROOT


@pytest.fixture(scope="session")
def emulated(arm_sysroot: Path) -> Iterator[Callable[[str], Emulator]]:
    """Return the emulated device with a given CPU."""
    with ExitStack() as stack:
        yield cache(lambda cpu: stack.enter_context(Emulator(arm_sysroot, cpu)))
