"""Step by step: can models be compiled for a profile, linked, taken to its device, run, timed?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...hw_profiles import ProfileError, check_runs_here
from ..latency import LatencyProtocol, measure_latency
from ..measurement import EvaluationError
from ..worker import Worker
from .pool import DevicePool
from .state import hindrances

if TYPE_CHECKING:
    from ...hw_profiles import HardwareProfile

_SHAPE = (1, 3, 8, 8)
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of the check.

    Attributes:
        step: "compile", "link", "reach", "run" or "time".
        is_ok: Whether it can be done; None where it does not apply to the profile.
        detail: What was found, or what is missing and how to get it.
    """

    step: str
    is_ok: bool | None
    detail: str


def check_profile(profile: HardwareProfile) -> Iterator[StepResult]:
    """Try a small network on a profile; yields each step as it ends.

    A step after a failed one is not tried.

    Args:
        profile: The device.
    """
    with tempfile.TemporaryDirectory(prefix="paredown-") as name:
        folder = Path(name)
        threads = min(profile.threads, len(os.sched_getaffinity(0)))
        with Worker(threads, preload=("tvm",)) as here:
            built = list(_build(here, profile, folder))
            yield from built
            if not built[-1].is_ok:
                return
            if profile.connection == "compile-only":
                how = f"give one as {profile.name}@rpc://HOST:PORT or {profile.name}@local"
                yield StepResult("reach", None, f"compile-only: there is no device; {how}")
                return
            if profile.is_remote:
                with DevicePool(profile) as pool:
                    yield from _on_device(pool, profile, folder, lambda: _reach(pool))
            else:
                yield from _on_device(here, profile, folder, lambda: _reach_here(profile))


def _on_device(
    bench: Worker | DevicePool,
    profile: HardwareProfile,
    folder: Path,
    reach: Callable[[], str],
) -> Iterator[StepResult]:
    steps: list[tuple[str, Callable[[], str]]] = [
        ("reach", reach),
        ("run", lambda: _run(bench, folder)),
    ]
    for step, action in steps:
        result = _try(step, action)
        yield result
        if not result.is_ok:
            return
    if profile.emulated or (isinstance(bench, DevicePool) and bench.emulated):
        yield StepResult("time", None, "the device is emulated: its times are no latency")
    else:
        yield _try("time", lambda: _time(bench, folder))


def _try(step: str, action: Callable[[], str]) -> StepResult:
    try:
        return StepResult(step, True, action())
    except (EvaluationError, ProfileError) as error:
        return StepResult(step, False, str(error))


def _build(worker: Worker, profile: HardwareProfile, folder: Path) -> Iterator[StepResult]:
    """Compile and link the network."""
    model, library = folder / "check.onnx", folder / "check.so"
    onnx.save(_network(), model)
    compiled = f"code for '{_target(profile)}'"
    try:
        seconds = worker.build("tvm", model, library, profile)
    except EvaluationError as error:
        is_link = str(error).startswith("Linking")
        if is_link:
            yield StepResult("compile", True, compiled)
        yield StepResult("link" if is_link else "compile", False, str(error))
        return
    yield StepResult("compile", True, compiled)
    yield StepResult(
        "link", True, f"a library of {library.stat().st_size} bytes, both in {seconds:.1f} s"
    )


def _target(profile: HardwareProfile) -> str:
    target = profile.target
    return str(target.get("mcpu") or target.get("arch") or target["kind"])


def _reach(pool: DevicePool) -> str:
    state = pool.first_contact()
    addresses = ", ".join(pool.addresses())
    if state is None:
        return (
            f"{addresses}: a server of TVM's own, which tells nothing of the device; "
            "`paredown device serve` does"
        )
    emulated = " (emulated)" if state["emulated"] else ""
    notes = hindrances(state)
    return f"{addresses}: {state['arch']}{emulated}" + "".join(f"; {note}" for note in notes)


def _reach_here(profile: HardwareProfile) -> str:
    check_runs_here(profile)
    return "this machine"


def _run(bench: Worker | DevicePool, folder: Path) -> str:
    """Run the network and compare with ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    inputs = np.random.default_rng(0).standard_normal((2, *_SHAPE[1:])).astype(np.float32)
    reference = ReferenceEvaluator(_network())
    outputs: list[Any] = [reference.run(None, {"input": x[None]}) for x in inputs]
    expected = np.concatenate([output[0] for output in outputs])
    found = bench.predict("tvm", folder / "check.so", inputs)
    gap = float(np.abs(found - expected).max())
    if not gap <= _TOLERANCE:
        raise EvaluationError(
            f"The network's outputs must be those of its definition within {_TOLERANCE:g}, but "
            f"differ by {gap:.3g}. The profile may not fit the device.",
            "run",
        )
    return f"outputs are right (within {gap:.1g})"


def _time(bench: Worker | DevicePool, folder: Path) -> str:
    library = folder / "check.so"
    latency = measure_latency(
        bench, "tvm", library, baseline=library, protocol=LatencyProtocol(budget_s=0.5)
    )
    noisy = "; noisy: the device does other work" if latency.is_noisy else ""
    return f"{latency.latency_us:.1f} us, against itself {latency.ratio:.3f} (1 is ideal){noisy}"


def _network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.standard_normal((8, 3, 3, 3)) / 5,
        "fc.weight": rng.standard_normal((4, 8)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "check",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
