"""An emulated Arm CPU that runs compiled libraries: for right results, never for times."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

_LIMIT_S = 120


class EmulatorError(Exception):
    """A library failed on the emulated device, or ended its process."""


class Emulator:
    """One process of the device's Python; it starts with the first call.

    Args:
        sysroot: Folder that `tests/arm/sysroot.py` has built.
        cpu: What the emulator calls the CPU, such as `cortex-a72`; `max` has every instruction.
    """

    def __init__(self, sysroot: Path, cpu: str) -> None:
        self.sysroot, self.cpu = sysroot, cpu
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.stdin and process.stdout:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def kernel(self, library: Path, symbol: str, arguments: Sequence[Any]) -> NDArray[Any]:
        """Call a kernel; return its last argument as the call leaves it."""
        (output,) = self._call(library, symbol, arguments)
        return output

    def network(self, library: Path, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs of a network."""
        return self._call(library, "", inputs)

    def _call(self, library: Path, symbol: str, arrays: Sequence[Any]) -> list[NDArray[Any]]:
        """Run a function of a library.

        Raises:
            EmulatorError: If it fails; a signal that ended the process is named.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((str(library), symbol, list(arrays)), process.stdin)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], _LIMIT_S)[0]:
                raise EmulatorError(f"'{library.name}' must end in {_LIMIT_S} s, but did not.")
            answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = process.wait()
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.close()
            raise EmulatorError(f"The device's process ended in '{library.name}': {cause}.") from (
                error
            )
        except BaseException:  # an interrupt too: the emulator must not stay
            self.close()
            raise
        if isinstance(answer, str):
            raise EmulatorError(f"'{library.name}' failed: {answer}")
        results: list[NDArray[Any]] = answer
        return results

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [self.sysroot / "python", Path(__file__).with_name("device.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "ARM_CPU": self.cpu, "TVM_NUM_THREADS": "1"},
        )
        return self._process
