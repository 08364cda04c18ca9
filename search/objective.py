"""What a candidate is worth: compressed, built, and its accuracy, size and latency measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import onnx
import torch

from ..evaluators.accuracy import evaluate_in_batches
from ..evaluators.latency import LatencyProtocol, measure_latency
from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import EvaluationError, Latency
from ..evaluators.runtimes import get_runtime
from ..evaluators.task import Task
from ..evaluators.worker import Worker
from ..hw_profiles.profile import HardwareProfile
from .candidate import Candidate
from .early_stopping import CONFIDENCE, Gate, StoppedEarly
from .knowledge.latency_model import LatencySample

if TYPE_CHECKING:
    from .compression.compressor import CompressedModel

# The baseline stands in every other latency, so it is timed for longer.
_BASELINE_BUDGET = 3.0


class CandidateCompressor(Protocol):
    """Turns a candidate into a model."""

    def compress(
        self, candidate: Candidate, report: Callable[[str], None] | None = None
    ) -> CompressedModel:
        """Return the compressed model of a candidate, always the same one."""
        ...


@dataclass(frozen=True, slots=True)
class Baseline:
    """The uncompressed model: what is timed in turns with each candidate, and its latency."""

    artifact: Path
    latency_us: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of one candidate.

    `latency_us` is the ratio to the baseline in the same time window times the baseline's
    latency: the drift of the machine between trials cancels. `latency` has the raw values.
    """

    candidate: Candidate
    accuracy: float
    size_bytes: int
    latency_us: float
    latency_spread_us: float
    latency: Latency
    model: Path  # the QDQ ONNX file that was measured
    artifact: Path  # what the runtime built from it
    layer_times: LayerTimes | None = None  # in proportion to `latency_us` of the baseline


class Objective:
    """Evaluates candidates one after the other.

    Args:
        task: Gives the validation data and the metric.
        compressor: Makes the models.
        worker: Builds and times them in its own process.
        runtime: Name of the runtime that counts.
        profile: The device, with the number of threads.
        folder: Where models and artifacts are written; the caller removes it.
        protocol: How latency is measured.

    The accuracy runs on the cores that the worker leaves, while it builds and times. Where the
    worker takes all, it runs while the worker builds.
    """

    def __init__(
        self,
        task: Task,
        compressor: CandidateCompressor,
        worker: Worker,
        runtime: str,
        profile: HardwareProfile,
        folder: Path,
        protocol: LatencyProtocol | None = None,
    ) -> None:
        self._task = task
        self._compressor = compressor
        self._worker = worker
        self._runtime = runtime
        self._suffix = get_runtime(runtime).suffix
        self._profile = profile
        self._folder = folder
        self._protocol = protocol or LatencyProtocol()
        self._baseline: Baseline | None = None
        self._has_layers = True
        self._overlaps = bool(_free_cpus(worker))
        self._executor = ThreadPoolExecutor(
            1, "accuracy", initializer=_stay_on, initargs=(_free_cpus(worker),)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def use_baseline(self, model: onnx.ModelProto, latency_us: float) -> None:
        """Compare with a baseline that was evaluated in an earlier run.

        Args:
            model: The uncompressed model.
            latency_us: Its latency then; all latencies of the study are in proportion to it.

        Raises:
            EvaluationError: If it cannot be built.
        """
        path = self._folder / "baseline.onnx"
        onnx.save(model, path)
        self._baseline = Baseline(self._build(path), latency_us)

    def probe(self, candidate: Candidate) -> LatencySample:
        """Time a candidate and its layers, without its accuracy: a look at the device.

        Raises:
            ParedownError: If a step fails.
        """
        assert self._baseline is not None  # the uncompressed model is evaluated first
        path = self._folder / f"probe-{candidate.digest}.onnx"
        onnx.save(self._compressor.compress(candidate).model, path)
        artifact = self._build(path)
        try:
            found = self._with_latency(candidate, 0.0, 0, path, artifact)
            return LatencySample(candidate, found.layer_times, found.latency_us)
        finally:
            path.unlink()
            artifact.unlink()

    def measure_again(self, model: Path) -> Latency:
        """Build a model that was measured before, and time it anew.

        Args:
            model: Its ONNX file.

        Raises:
            EvaluationError: If a step fails.
        """
        assert self._baseline is not None
        artifact = self._folder / f"again{self._suffix}"
        self._worker.build(self._runtime, model, artifact, self._profile)
        return measure_latency(
            self._worker,
            self._runtime,
            artifact,
            baseline=self._baseline.artifact,
            threads=self._profile.threads,
            protocol=self._protocol,
        )

    def evaluate(
        self,
        candidate: Candidate,
        report: Callable[[str], None] = lambda text: None,
        gate: Gate | None = None,
    ) -> Evaluation:
        """Measure one candidate: what is cheap first.

        The first one, without `use_baseline` before it, must be the uncompressed model: it
        becomes the baseline.

        Args:
            candidate: A candidate of the compressor's space.
            report: Told which step begins.
            gate: Tells when to give up; None measures everything.

        Raises:
            StoppedEarly: If the gate closes.
            ParedownError: If a step fails; which types depends on the step.
        """
        report("compressing")
        compressed = self._compressor.compress(candidate, report)
        watch = _Watch(gate, compressed.size_bytes)
        watch.check()
        path = self._folder / f"{candidate.digest}.onnx"
        onnx.save(compressed.model, path)
        try:
            return self._measure(candidate, compressed, path, watch, report)
        except StoppedEarly:
            path.unlink()
            self._artifact(path).unlink(missing_ok=True)
            raise

    def _measure(
        self,
        candidate: Candidate,
        compressed: CompressedModel,
        path: Path,
        watch: _Watch,
        report: Callable[[str], None],
    ) -> Evaluation:
        partial = self._accuracies(compressed, watch)
        if watch.gate is not None:
            report("accuracy of some samples")
            next(partial)
        running = self._executor.submit(lambda: [*partial, watch.accuracy][-1])
        try:
            report("compiling")
            artifact = self._build(path)
            if not self._overlaps and not running.done():
                report("accuracy")
                running.result()
            if running.done():
                running.result()  # it may have been given up
            report("measuring")
            found = self._with_latency(candidate, 0.0, compressed.size_bytes, path, artifact)
            # The spread belongs to what the latency can still turn out to be.
            watch.latency_us = max(0.0, found.latency_us - found.latency_spread_us)
            if not running.done():
                report("accuracy")
            accuracy = running.result()
        except BaseException:
            watch.is_over = True
            wait([running])
            raise
        assert accuracy is not None
        return replace(found, accuracy=accuracy)

    def _accuracies(self, compressed: CompressedModel, watch: _Watch) -> Iterator[float]:
        """Yield the accuracy after more and more samples, until it is known or given up."""
        task = self._task
        batches = evaluate_in_batches(
            compressed.module, task.validation, task.metric, confidence=CONFIDENCE
        )
        for partial in batches:
            if watch.is_over:
                return
            sign = 1.0 if task.higher_is_better else -1.0
            watch.accuracy = partial.accuracy
            watch.check(partial.accuracy + sign * partial.half_width)
            yield partial.accuracy

    def _build(self, model: Path) -> Path:
        artifact = self._artifact(model)
        self._worker.build(self._runtime, model, artifact, self._profile)
        return artifact

    def _artifact(self, model: Path) -> Path:
        artifact = model.with_suffix(self._suffix)
        if artifact == model:  # a runtime whose artifacts are ONNX files too
            artifact = model.with_suffix(f".built{self._suffix}")
        return artifact

    def _with_latency(
        self, candidate: Candidate, accuracy: float, size_bytes: int, model: Path, artifact: Path
    ) -> Evaluation:
        baseline, protocol = self._baseline, self._protocol
        if baseline is None:
            protocol = replace(protocol, budget_s=protocol.budget_s * _BASELINE_BUDGET)
        latency = measure_latency(
            self._worker,
            self._runtime,
            artifact,
            baseline=None if baseline is None else baseline.artifact,
            threads=self._profile.threads,
            protocol=protocol,
        )
        if baseline is None:
            self._baseline = Baseline(artifact, latency.latency_us)
            latency_us = latency.latency_us
        else:
            assert latency.ratio is not None
            latency_us = latency.ratio * baseline.latency_us
        return Evaluation(
            candidate,
            accuracy,
            size_bytes,
            latency_us,
            latency.spread_us * latency_us / latency.latency_us,
            latency,
            model,
            artifact,
            self._time_layers(artifact),
        )

    def _time_layers(self, artifact: Path) -> LayerTimes | None:
        """Return the times of the layers, None where the runtime cannot tell them apart."""
        assert self._baseline is not None
        if not self._has_layers:
            return None
        try:
            times, baseline = self._worker.time_layers(
                self._runtime,
                artifact,
                baseline=self._baseline.artifact,
                threads=self._profile.threads,
            )
        except EvaluationError as error:
            if error.reason != "unavailable":
                raise
            self._has_layers = False
            return None
        # Both ran in one window: the drift of the machine cancels.
        assert baseline is not None
        return times.scaled(self._baseline.latency_us / baseline.total_us)

    def discard(self, evaluation: Evaluation) -> None:
        """Delete the files of an evaluation, unless later ones are compared with it."""
        evaluation.model.unlink(missing_ok=True)
        if self._baseline is None or evaluation.artifact != self._baseline.artifact:
            evaluation.artifact.unlink(missing_ok=True)


@dataclass
class _Watch:
    """What is known of a candidate while it is being measured, from two threads."""

    gate: Gate | None
    size_bytes: int
    latency_us: float | None = None  # least that it can be
    accuracy: float | None = None
    is_over: bool = False

    def check(self, best_accuracy: float | None = None) -> None:
        """Raise `StoppedEarly` if the candidate need not be measured further."""
        if self.gate is None:
            return
        reason = self.gate.verdict(self.size_bytes, self.latency_us, best_accuracy)
        if reason is not None:
            raise StoppedEarly(reason, (self.accuracy, float(self.size_bytes), self.latency_us))


def _free_cpus(worker: Worker) -> frozenset[int]:
    """Return the cores that this process may use and the worker is not pinned to."""
    return frozenset(os.sched_getaffinity(0)) - frozenset(worker.cpus)


def _stay_on(cpus: frozenset[int]) -> None:
    """Keep this thread, and those that torch starts for it, off the worker's cores."""
    if cpus:
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(len(cpus))
