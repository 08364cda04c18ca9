"""Latency of a candidate against a baseline, and of one model in several runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ._jobs import MeasureEnergy
from .estimates import half_iqr, is_settled, relative_half_width, round_ratios
from .measurement import EvaluationError, Latency
from .onnx_file import fix_batch, read_inputs
from .runtimes import TensorSpec, get_runtime
from .runtimes.base import Array
from .timing import LatencyProtocol, Rounds
from .worker import Worker

if TYPE_CHECKING:
    from ..hw_profiles.profile import HardwareProfile

__all__ = [
    "COMPARISON_PROTOCOL",
    "LatencyProtocol",
    "RuntimeComparison",
    "Timer",
    "compare_runtimes",
    "measure_latency",
    "summarize",
]

COMPARISON_PROTOCOL = LatencyProtocol(block_s=0.02, warm_up_s=0.2, budget_s=5.0, limit_s=60.0)
"""Longer blocks and budget than for a trial: each block wakes up another process."""


_MAX_CONTENTION = 0.05
_N_COMPARED = 8  # random inputs on which the outputs of runtimes are compared
_PREDICT_S = 120.0


class Timer(Protocol):
    """What times built artifacts: a `Worker` on this machine, a `DevicePool` on others."""

    @property
    def threads(self) -> int:
        """Threads of an inference."""
        ...

    def time(
        self,
        runtime: str,
        artifact: Path,
        *,
        baseline: Path | None,
        protocol: LatencyProtocol,
        threads: int | None = None,
    ) -> Rounds:
        """Time the artifact, in turns with `baseline` if given."""
        ...


def measure_latency(
    worker: Timer,
    runtime: str,
    artifact: Path,
    *,
    baseline: Path | None = None,
    threads: int | None = None,
    protocol: LatencyProtocol | None = None,
) -> Latency:
    """Time a built artifact in `worker`, in turns with the artifact `baseline` if given.

    Raises:
        EvaluationError: If the artifact cannot be loaded or run, or a limit was hit.
    """
    protocol = protocol or LatencyProtocol()
    rounds = worker.time(runtime, artifact, baseline=baseline, protocol=protocol, threads=threads)
    return summarize(rounds, protocol.tolerance, threads or worker.threads)


def summarize(rounds: Rounds, tolerance: float, threads: int) -> Latency:
    """Turn timed rounds into medians, spread, ratio, and a verdict on the noise.

    Several threads on a busy machine wait for each other in every round, which narrows no
    interval and shifts the median: such a result is noisy too.
    """
    baseline_us, ratio = None, None
    if rounds.baseline_us is not None:
        baseline_us = float(np.median(rounds.baseline_us))
        ratio = float(np.median(round_ratios(rounds.candidate_us, rounds.baseline_us)))
    half_width = relative_half_width(rounds.candidate_us, rounds.baseline_us)
    return Latency(
        latency_us=float(np.median(rounds.candidate_us)),
        spread_us=half_iqr(rounds.candidate_us),
        n_runs=rounds.n_runs,
        is_noisy=half_width > tolerance or rounds.contention > _MAX_CONTENTION,
        threads=threads,
        baseline_us=baseline_us,
        ratio=ratio,
        notes=rounds.notes,
        peak_memory_bytes=rounds.peak_memory_bytes,
        energy_mj=rounds.energy_mj,
    )


@dataclass(frozen=True, slots=True)
class RuntimeComparison:
    """How fast one runtime runs a model, or why it does not.

    Attributes:
        runtime: Its name.
        version: That of its library.
        latency: The baseline is the first runtime: 1.0 is its own ratio.
        error: Why there is no latency.
        difference: Largest difference of the first output from that of the first runtime, on
            random inputs, as a share of the largest value; None where the model has several
            inputs, or the first runtime failed.
    """

    runtime: str
    version: str | None
    latency: Latency | None
    error: str | None
    difference: float | None = None

    def __post_init__(self) -> None:
        if (self.latency is None) == (self.error is None):
            raise ValueError("A comparison must have either a `latency` or an `error`.")


def compare_runtimes(
    model: Path,
    runtimes: Sequence[str],
    profile: HardwareProfile,
    threads: int | None = None,
    protocol: LatencyProtocol = COMPARISON_PROTOCOL,
) -> dict[str, RuntimeComparison]:
    """Time an ONNX file in several runtimes, block by block in turns.

    Each runtime gets a process of its own, as two pools of spinning threads in one process
    take the cores from each other. A runtime that fails is reported with its error, and the
    others go on. Ratios are to the first runtime; without it there are none.

    Args:
        model: ONNX file; an open batch size is set to 1.
        runtimes: Names of registered runtimes, each once.
        profile: The device, for the runtimes that compile.
        threads: Threads of an inference; default those of the profile.
        protocol: How long and how often to time.

    Raises:
        EvaluationError: If the file is no valid model, or a runtime is unknown.
        ValueError: If `runtimes` is empty or names one twice.
    """
    if not runtimes or len(set(runtimes)) != len(runtimes):
        raise ValueError(f"`runtimes` must name each runtime once, but got {list(runtimes)}.")
    for name in runtimes:
        get_runtime(name)
    for spec in read_inputs(model):
        spec.random(np.random.default_rng(0))
    threads = threads or profile.threads
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder, ExitStack() as stack:
        fixed = fix_batch(model, Path(folder))
        racers = []
        for name in runtimes:
            worker = stack.enter_context(Worker(threads, preload=(name,)))
            worker.start()
            racers.append(_Racer(name, worker))
        specs = read_inputs(fixed)
        for racer in racers:
            racer.build(fixed, Path(folder), profile)
        _race(racers, protocol)
        for racer in racers:
            racer.measure_energy(protocol)
            if len(specs) == 1:
                racer.predict(specs[0])
    return {racer.runtime: racer.result(racers[0], protocol, threads) for racer in racers}


@dataclass
class _Racer:
    """One runtime on its way through a comparison."""

    runtime: str
    worker: Worker
    artifact: Path | None = None
    error: str | None = None
    outputs: Array | None = None
    blocks: list[Rounds] = field(default_factory=list)
    energy_mj: float | None = None

    def build(self, model: Path, folder: Path, profile: HardwareProfile) -> None:
        artifact = folder / f"{self.runtime}{get_runtime(self.runtime).suffix}"
        try:
            self.worker.build(self.runtime, model, artifact, profile)
        except EvaluationError as error:
            self.error = str(error)
        else:
            self.artifact = artifact

    def predict(self, spec: TensorSpec) -> None:
        """Run on the same random inputs as every other runtime."""
        if self.artifact is None or self.error is not None:
            return
        rng = np.random.default_rng(0)
        inputs = np.concatenate([spec.random(rng) for _ in range(_N_COMPARED)])
        # A model whose first output has no batch of 1 is timed all the same.
        with suppress(EvaluationError):
            self.outputs = self.worker.predict(
                self.runtime, self.artifact, inputs, timeout_s=_PREDICT_S
            )

    def time(self, protocol: LatencyProtocol) -> None:
        assert self.artifact is not None  # only a racer that was built is timed
        try:
            block = self.worker.time_block(self.runtime, self.artifact, protocol=protocol)
        except EvaluationError as error:
            self.error = str(error)
        else:
            self.blocks.append(block)

    def measure_energy(self, protocol: LatencyProtocol) -> None:
        """Measure the energy of an inference, while no other runtime is running."""
        if self.artifact is None or self.error is not None:
            return
        job = MeasureEnergy(self.runtime, self.artifact, self.worker.threads, protocol)
        try:
            self.energy_mj = self.worker.run(job, _PREDICT_S)
        except EvaluationError as error:
            self.error = str(error)

    def result(self, first: _Racer, protocol: LatencyProtocol, threads: int) -> RuntimeComparison:
        version = get_runtime(self.runtime).version()
        if self.error is not None:
            return RuntimeComparison(self.runtime, version, None, self.error)
        baseline_us = first.times_us if first.error is None else None
        n_runs = sum(block.n_runs for block in self.blocks)
        contention = sum(block.contention for block in self.blocks) / len(self.blocks)
        peak_memory_bytes = self.blocks[0].peak_memory_bytes
        rounds = Rounds(
            self.times_us,
            baseline_us,
            n_runs,
            contention,
            peak_memory_bytes=peak_memory_bytes,
            energy_mj=self.energy_mj,
        )
        latency = summarize(rounds, protocol.tolerance, threads)
        try:
            difference = _difference(self.outputs, first.outputs)
        except EvaluationError as error:
            return RuntimeComparison(self.runtime, version, None, str(error))
        return RuntimeComparison(self.runtime, version, latency, None, difference)

    @property
    def times_us(self) -> tuple[float, ...]:
        return tuple(block.candidate_us[0] for block in self.blocks)


def _difference(outputs: Array | None, expected: Array | None) -> float | None:
    """Return the largest difference of two arrays as a share of the largest expected value.

    Raises:
        EvaluationError: If their shapes differ, or one is finite where the other is not.
    """
    if outputs is None or expected is None:
        return None
    finite = np.isfinite(expected)
    if outputs.shape != expected.shape or (np.isfinite(outputs) != finite).any():
        raise EvaluationError(
            "The outputs must have the shape of the first runtime's and be finite where its are, "
            f"but have {outputs.shape} for {expected.shape}, or are not.",
            "run",
        )
    wanted = expected[finite].astype(np.float64)
    gaps = np.abs(outputs[finite] - wanted)
    return float(gaps.max(initial=0.0)) / (float(np.abs(wanted).max(initial=0.0)) or 1.0)


def _race(racers: list[_Racer], protocol: LatencyProtocol) -> None:
    """Time block after block until all ratios are settled or the budget is used up."""
    for racer in racers:
        if racer.error is None:
            racer.time(protocol)
            racer.blocks.clear()  # the first one came right after loading
    start = perf_counter()
    n_rounds = 0
    while running := [racer for racer in racers if racer.error is None]:
        if _is_race_over(running, n_rounds, perf_counter() - start, protocol):
            return
        for racer in running if n_rounds % 2 else reversed(running):
            racer.time(protocol)
        n_rounds += 1


def _is_race_over(
    running: list[_Racer], n_rounds: int, elapsed_s: float, protocol: LatencyProtocol
) -> bool:
    if n_rounds >= protocol.max_rounds or elapsed_s > protocol.limit_s:
        return n_rounds > 0
    if n_rounds < protocol.min_rounds or n_rounds % 2:
        return False
    if elapsed_s > protocol.budget_s:
        return True
    first, *others = running
    if not others:
        return is_settled(first.times_us, None, protocol.goal)
    return all(is_settled(other.times_us, first.times_us, protocol.goal) for other in others)
