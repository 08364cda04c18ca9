"""What a candidate is worth: compressed, built, and its accuracy, size and latency measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import onnx

from ..evaluators.accuracy import evaluate, predict
from ..evaluators.latency import LatencyProtocol
from ..evaluators.measurement import Latency
from ..evaluators.task import Task
from ..hw_profiles.profile import HardwareProfile
from .candidate import Candidate
from .device_timing import Bench, DeviceLatency, DeviceTiming

if TYPE_CHECKING:
    from .compression.compressor import CompressedModel

_N_CHECKED = 4  # samples that run on an emulated device, which takes seconds for each


class CandidateCompressor(Protocol):
    """Turns a candidate into a model."""

    def compress(
        self, candidate: Candidate, report: Callable[[str], None] | None = None
    ) -> CompressedModel:
        """Return the compressed model of a candidate, always the same one."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of one candidate.

    `latency_us` is the ratio to the baseline in the same time window times the baseline's
    latency: the drift of the machine between trials cancels. `latency` has the raw values. The
    three are None where the study's profile has no latency; see `DeviceTiming.measure`.
    """

    candidate: Candidate
    accuracy: float
    size_bytes: int
    latency_us: float | None
    latency_spread_us: float | None
    latency: Latency | None
    model: Path  # the QDQ ONNX file that was measured
    artifact: Path  # what the runtime built from it
    others: tuple[DeviceLatency, ...] = ()  # on the study's further devices
    other_artifacts: tuple[Path, ...] = ()


class Objective:
    """Evaluates candidates one after the other.

    Args:
        task: Gives the validation data and the metric.
        compressor: Makes the models.
        worker: Builds and times them, here or on a device.
        runtime: Name of the runtime that counts.
        profile: The device, with the number of threads.
        folder: Where models and artifacts are written; the caller removes it.
        protocol: How latency is measured.
        others: Further devices, each with what builds and times for it.
    """

    def __init__(
        self,
        task: Task,
        compressor: CandidateCompressor,
        worker: Bench,
        runtime: str,
        profile: HardwareProfile,
        folder: Path,
        protocol: LatencyProtocol | None = None,
        others: Sequence[tuple[Bench, HardwareProfile]] = (),
    ) -> None:
        self._task = task
        self._compressor = compressor
        self._devices = [
            DeviceTiming(bench, runtime, device, protocol)
            for bench, device in ((worker, profile), *others)
        ]
        self._folder = folder
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="accuracy")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def use_baseline(self, model: onnx.ModelProto, *latencies_us: float | None) -> None:
        """Compare with a baseline that was evaluated in an earlier run.

        Args:
            model: The uncompressed model.
            latencies_us: Its latency then on each device; all latencies of the study are in
                proportion to it.

        Raises:
            EvaluationError: If it cannot be built.
        """
        path = self._folder / "baseline.onnx"
        onnx.save(model, path)
        for device, latency_us in zip(self._devices, latencies_us, strict=True):
            device.use_baseline(path, latency_us)

    def evaluate(
        self, candidate: Candidate, report: Callable[[str], None] = lambda text: None
    ) -> Evaluation:
        """Measure one candidate.

        The first one, without `use_baseline` before it, must be the uncompressed model: it
        becomes the baseline.

        Args:
            candidate: What to measure.
            report: Told which step begins.

        Raises:
            ParedownError: If a step fails; which types depends on the step.
        """
        report("compressing")
        compressed = self._compressor.compress(candidate, report)
        path = self._folder / f"{candidate.digest}.onnx"
        onnx.save(compressed.model, path)
        # While the worker compiles nothing is timed, so the accuracy may use the other cores.
        accuracy = self._executor.submit(self._accuracy, compressed)
        report("compiling")
        artifacts = [device.build(path) for device in self._devices]
        if not accuracy.done():
            report("accuracy")
        value = accuracy.result()
        latencies = [
            self._measure(device, artifact, compressed, report)
            for device, artifact in zip(self._devices, artifacts, strict=True)
        ]
        first, *others = latencies
        return Evaluation(
            candidate,
            value,
            compressed.size_bytes,
            None if first is None else first.latency_us,
            None if first is None else first.spread_us,
            None if first is None else first.latency,
            path,
            artifacts[0],
            tuple(other for other in others if other is not None),
            tuple(artifacts[1:]),
        )

    def _accuracy(self, compressed: CompressedModel) -> float:
        return evaluate(compressed.module, self._task.validation, self._task.metric)

    def _measure(
        self,
        device: DeviceTiming,
        artifact: Path,
        compressed: CompressedModel,
        report: Callable[[str], None],
    ) -> DeviceLatency | None:
        where = f" on '{device.profile.name}'" if len(self._devices) > 1 else ""
        if device.is_checked_instead:
            report(f"checking outputs{where}")
            inputs = self._task.validation.inputs[:_N_CHECKED]
            expected = predict(compressed.module, inputs)
            device.check_outputs(artifact, inputs.numpy(), expected.numpy())
        elif device.profile.has_latency:
            report(f"measuring{where}")
        return device.measure(artifact)

    def discard(self, evaluation: Evaluation) -> None:
        """Delete the files of an evaluation, unless later ones are compared with it."""
        evaluation.model.unlink(missing_ok=True)
        artifacts = (evaluation.artifact, *evaluation.other_artifacts)
        for device, artifact in zip(self._devices, artifacts, strict=True):
            if not device.is_baseline(artifact):
                artifact.unlink(missing_ok=True)
