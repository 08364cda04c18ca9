"""The client's end of a session with a device; it lives in a worker's child process.

Any call here can block for ever when the device freezes: TVM waits without an end. The parent
therefore gives each job a time limit and kills the child (`Worker`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..device_server.facts import DeviceState
from ..device_server.session import ENERGY_FUNCTIONS, STATE_FUNCTION
from ..measurement import EvaluationError, Reason
from ..runtimes.base import Array, TensorSpec
from ..timing import LatencyProtocol
from .locating import Location

if TYPE_CHECKING:
    from ...hw_profiles import HardwareProfile

_BIG_CORES = 1
_MIN_SAMPLE_US = 1000.0  # the clock of a board may be coarse
_LOST = (
    "kShutdown",
    "kReturn) is false: code=1",  # 1 is kShutdown: the server went as it was to answer
    *("Socket", "socket", "Connection reset", "Broken pipe"),
)
_CRASHED = "the session crashed with "


class DeviceSession:
    """A connection to one device; closing it gives the device back.

    Args:
        location: Where the device is.
        profile: What it is: CPU or GPU, and the threads of an inference.
        limit_s: After this time the server ends the session, should this process be stuck.

    Raises:
        EvaluationError: With reason "device" if it cannot be reached.
    """

    def __init__(self, location: Location, profile: HardwareProfile, limit_s: float) -> None:
        from tvm import rpc

        self.address = location.address
        self._models: dict[Path, RemoteModel] = {}
        with remote_errors(f"Connecting to device {self.address}"):
            self._session = rpc.connect(
                location.host, location.port, location.key, session_timeout=math.ceil(limit_s)
            )
            self.device = self._session.device(profile.device)
            self._session.get_function("runtime.config_threadpool")(_BIG_CORES, profile.threads)
            self._state_function = self._find(STATE_FUNCTION)

    def state(self) -> DeviceState | None:
        """Return the state of the device, None if its server does not tell."""
        if self._state_function is None:
            return None
        with remote_errors(f"Asking device {self.address} for its state"):
            state: DeviceState = json.loads(self._state_function())
            return state

    def load(self, artifact: Path) -> RemoteModel:
        """Upload a library and load it; a second time it is there already."""
        if artifact not in self._models:
            # Names must differ within a session, and the loader knows libraries by name.
            name = f"{len(self._models)}-{artifact.name}"
            with remote_errors(f"Loading '{artifact.name}' on device {self.address}"):
                self._session.upload(str(artifact), name)
                module = self._session.load_module(name)
                self._models[artifact] = RemoteModel(module, self.device, artifact.name)
        return self._models[artifact]

    def close(self) -> None:
        """End the session at once, whatever objects of it are still alive."""
        with contextlib.suppress(Exception):  # the device may be gone
            self._session.get_function("CloseRPCConnection")()

    def energy_meter(self) -> RemoteMeter | None:
        """Return what measures energy on the device, None if its server has nothing of it."""
        with remote_errors(f"Asking device {self.address} for its energy"):
            functions = [self._find(name) for name in ENERGY_FUNCTIONS]
        return None if None in functions else RemoteMeter(*filter(None, functions))

    def _find(self, name: str) -> Callable[[], str] | None:
        """Return a function of the server, None if it has none of that name."""
        try:
            function: Callable[[], str] = self._session.get_function(name)
        except Exception as error:  # TVM raises exceptions of many types
            if _is_lost(str(error)):
                raise
            return None  # a server of TVM's own
        return function


class RemoteModel:
    """A compiled library in TVM's virtual machine on a device."""

    def __init__(self, module: Any, device: Any, name: str) -> None:
        import tvm
        from tvm import relax

        from ..tvm.signature import read_signature

        self._tvm = tvm
        self._device = device
        self._machine = relax.VirtualMachine(module, device)
        signature = read_signature(self._machine)
        self.name = name
        self.features = signature.features
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs

    @cached_property
    def _weights(self) -> list[Any]:
        """What the network takes before its inputs; kernels of the library unpack it."""
        from ..tvm.signature import WEIGHTS_FUNCTION

        self._machine.set_input(WEIGHTS_FUNCTION)
        self._machine.invoke_stateful(WEIGHTS_FUNCTION)
        return list(self._machine.get_outputs(WEIGHTS_FUNCTION))

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`."""
        machine = self._machine
        machine.set_input("main", *self._tensors(inputs))
        machine.invoke_stateful("main")
        result = machine.get_outputs("main")
        results = [result] if hasattr(result, "numpy") else list(result)
        return [tensor.numpy() for tensor in results]

    def bind(self, *inputs: Array) -> Callable[[], Any]:
        """Return a call that runs once and waits; its time includes that of the network."""
        self._machine.save_function("main", "bound", *self._tensors(inputs), include_return=False)
        bound: Callable[[], Any] = self._machine["bound"]
        return bound

    def block(self, inputs: list[Array], protocol: LatencyProtocol) -> RemoteBlock:
        """Return a block of calls that the device times itself."""
        machine = self._machine
        machine.save_function("main", "timed", *self._tensors(inputs), include_return=False)

        def evaluate(number: int, repeat: int) -> Callable[[], list[float]]:
            timer = machine.time_evaluator("timed", self._device, number=number, repeat=repeat)
            return lambda: [1e6 * seconds for seconds in timer().results]

        return RemoteBlock(evaluate, protocol)

    def _tensors(self, inputs: tuple[Array, ...] | list[Array]) -> list[Any]:
        given = [self._tvm.runtime.tensor(array, self._device) for array in inputs]
        return [*self._weights, *given]


class RemoteMeter:
    """Measures energy on a device, with the functions that its session has for that."""

    def __init__(
        self, is_there: Callable[[], str], start: Callable[[], str], stop: Callable[[], str]
    ) -> None:
        self.is_there: bool = json.loads(is_there())
        self._start, self._stop = start, stop

    def start(self) -> None:
        """Begin to measure."""
        self._start()

    def stop(self) -> float | None:
        """Return the millijoules since `start`, None where nothing shows them."""
        used_mj: float | None = json.loads(self._stop())
        return used_mj


class RemoteBlock:
    """Calls that a device times with its own clock, so that the network has no part in it.

    Args:
        evaluate: Makes a function, of calls per sample and samples, that returns the mean time
            of a call in each sample in microseconds. It runs the model once before them.
        protocol: How long a block is.
    """

    def __init__(
        self, evaluate: Callable[[int, int], Callable[[], list[float]]], protocol: LatencyProtocol
    ) -> None:
        call_us = max(min(evaluate(1, 3)()), 0.01)
        warm_up = max(1, round(protocol.warm_up_s * 1e6 / call_us))
        call_us = max(evaluate(warm_up, 1)()[0], 0.01)
        group = max(1, math.ceil(_MIN_SAMPLE_US / call_us))
        samples = max(1, round(protocol.block_s * 1e6 / (call_us * group)))
        self.n_runs = group * samples
        self._evaluate = evaluate(group, samples)

    def time_us(self) -> float:
        """Run the block; return the median time of one call over its samples."""
        return max(median(self._evaluate()), 0.001)


@contextlib.contextmanager
def remote_errors(title: str) -> Iterator[None]:
    """Turn TVM's error of a lost or crashed session into an `EvaluationError`.

    Any other error is let through: it is the model's own.
    """
    try:
        yield
    except EvaluationError:
        raise
    except Exception as error:  # TVM raises exceptions of many types
        text = str(error)
        if "RPCSessionTimeoutError" in text or "RPCSessionTimeoutError" in type(error).__name__:
            raise EvaluationError(
                f"{title} must end in the time of the session, but did not.", "timeout"
            ) from error
        if _CRASHED in text:
            how = text.partition(_CRASHED)[2].split()[0]
            reason: Reason = "memory" if how == "SIGKILL" else "crash"
            raise EvaluationError(f"{title} ended the session on it ({how}).", reason) from error
        if "cannot find server that matches" in text:
            raise EvaluationError(
                f"{title} needs the server's key, but it has another one.", "device"
            ) from error
        if "Connect to" in text:
            raise EvaluationError(f"{title} failed: nothing listens there.", "device") from error
        if _is_lost(text):
            raise EvaluationError(f"{title} failed: the connection is lost.", "device") from error
        raise


def _is_lost(text: str) -> bool:
    return any(words in text for words in _LOST)
