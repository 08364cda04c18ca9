"""What a candidate is worth: compressed, built, and its accuracy, size and latency measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

import onnx
import torch
from torch import nn

from ..evaluators.accuracy import PartialAccuracy, evaluate_in_batches, make_strata, predict
from ..evaluators.latency import LatencyProtocol
from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import Latency
from ..evaluators.strata import Strata
from ..evaluators.task import Task
from ..hw_profiles.profile import HardwareProfile
from .candidate import Candidate
from .device_timing import Bench, DeviceLatency, DeviceTiming
from .early_stopping import Belief, DraftAccuracies, Gate, StoppedEarly
from .knowledge.latency_model import LatencySample

if TYPE_CHECKING:
    from .compression.compressor import CompressedModel, Draft

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_LOOK = 1024  # samples that run before a candidate is built
_N_CHECKED = 4  # samples that run on an emulated device, which takes seconds for each


class CandidateCompressor(Protocol):
    """Turns a candidate into a model."""

    def compress(
        self,
        candidate: Candidate,
        report: Callable[[str], None] | None = None,
        look: Callable[[Draft], None] | None = None,
    ) -> CompressedModel:
        """Return the compressed model of a candidate, always the same one.

        `look` is called with drafts of it, where there are some long before it is done.
        """
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
    layer_times: LayerTimes | None = None  # in proportion to `latency_us` of the baseline
    others: tuple[DeviceLatency, ...] = ()  # on the study's further devices
    other_artifacts: tuple[Path, ...] = ()
    coded_size_bytes: int | None = None  # with entropy-coded weights, as `evaluators.size` has it


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

    The accuracy runs on the cores that the worker leaves, while it builds and times, and on all
    of them before and after that. Where the worker takes all, it runs while the worker builds.
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
        self._drafts = DraftAccuracies()
        self._overlaps = bool(_free_cpus(worker))
        self._accuracy_thread = ThreadPoolExecutor(
            1,
            "accuracy",
            initializer=_stay_on,
            initargs=(_free_cpus(worker), torch.get_num_threads()),
        )
        self._bench_thread = ThreadPoolExecutor(1, "bench")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._accuracy_thread.shutdown(cancel_futures=True)
        # What it still does is of no use to anyone, and ends as soon as the bench is stopped.
        self._bench_thread.shutdown(wait=False, cancel_futures=True)

    def use_baseline(
        self, model: onnx.ModelProto, latency_us: float | None, *others_us: float | None
    ) -> None:
        """Compare with a baseline that was evaluated in an earlier run.

        Args:
            model: The uncompressed model.
            latency_us: Its latency then; all latencies of the study are in proportion to it.
            others_us: The same on each further device.

        Raises:
            EvaluationError: If it cannot be built.
        """
        path = self._folder / "baseline.onnx"
        onnx.save(model, path)
        for device, us in zip(self._devices, (latency_us, *others_us), strict=True):
            device.use_baseline(path, us)

    def probe(self, candidate: Candidate) -> tuple[LatencySample, ...]:
        """Time a candidate and its layers on each device that has a latency, without its accuracy.

        The uncompressed model must have been evaluated before.

        Raises:
            ParedownError: If a step fails.
        """
        path = self._folder / f"probe-{candidate.digest}.onnx"
        onnx.save(self._compressor.compress(candidate).model, path)
        try:
            samples = []
            for device in self._devices:
                artifact = device.build(path)
                found = device.measure(artifact)
                if found is not None:
                    times = device.time_layers(artifact)
                    samples.append(LatencySample(candidate, times, found.latency_us))
            return tuple(samples)
        finally:
            self._remove(path)

    def measure_again(self, model: Path) -> tuple[Latency, ...]:
        """Build a model that was measured before, and time it anew on each device.

        Args:
            model: Its ONNX file.

        Returns:
            A latency for each device that has one.

        Raises:
            EvaluationError: If a step fails.
        """
        path = self._folder / f"again-{model.stem}.onnx"
        shutil.copyfile(model, path)
        try:
            found = [device.measure(device.build(path)) for device in self._devices]
        finally:
            self._remove(path)
        return tuple(one.latency for one in found if one is not None)

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
        watch = _Watch(gate)
        compressed = self._compressor.compress(
            candidate, report, lambda draft: self._look(draft, watch)
        )
        watch.size_bytes = compressed.size_bytes
        watch.check()
        path = self._folder / f"{candidate.digest}.onnx"
        onnx.save(compressed.model, path)
        try:
            return self._measure(candidate, compressed, path, watch, report)
        except StoppedEarly:
            self._bench_thread.submit(self._remove, path)  # after what it is still doing
            raise

    def _remove(self, model: Path) -> None:
        """Delete a model and what was built from it."""
        model.unlink(missing_ok=True)
        for device in self._devices:
            device.artifact(model).unlink(missing_ok=True)

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
            self._first_look(partial)
        running = self._accuracy_thread.submit(_go_on, partial, lambda: watch.is_timed)
        try:
            report("compiling")
            artifacts = [self._on_bench(running, device.build, path) for device in self._devices]
            if not self._overlaps:
                if not running.done():
                    report("accuracy")
                running.result()
            found = self._time(candidate, compressed, path, artifacts, running, report)
            watch.latencies_us = _latencies(found)
            if not running.done():
                report("accuracy")
            watch.is_timed = True
            running.result()
            _go_on(partial)  # by this thread, which may use all cores
        except BaseException:  # an interrupt too: the accuracy's thread must not go on
            watch.is_timed = True
            wait([running])
            raise
        assert watch.samples is not None
        if watch.distance is not None:
            self._drafts.add(watch.distance, watch.samples.mean)
        return replace(found, accuracy=watch.samples.mean)

    def _on_bench(
        self, running: Future[None], step: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Let the bench do a step; if the accuracy gives the candidate up, do not wait for it.

        It then goes on beside the next candidate's compression; the next step waits for it.
        """
        doing = self._bench_thread.submit(step, *args, **kwargs)
        both: list[Future[Any]] = [doing, running]
        wait(both, return_when=FIRST_COMPLETED)
        if running.done():
            running.result()
        return doing.result()

    def _look(self, draft: Draft, watch: _Watch) -> None:
        """Give up a candidate whose draft is so bad that the model will not be good enough."""
        watch.size_bytes = draft.size_bytes
        watch.distance = draft.distance
        watch.draft = self._drafts.predict(draft.distance)
        watch.check()

    def _first_look(self, parts: Iterator[PartialAccuracy]) -> PartialAccuracy:
        """Run some samples, of a small set not more than a tenth."""
        n_enough = min(_FIRST_LOOK, len(self._task.validation) // 10)
        return next(part for part in parts if part.n_images >= n_enough)

    def _accuracies(self, compressed: CompressedModel, watch: _Watch) -> Iterator[PartialAccuracy]:
        """Yield the accuracy after more and more samples, until it is known or given up."""
        for partial in self._in_batches(compressed.module, watch):
            watch.samples = Belief(partial.accuracy, partial.error)
            watch.check()
            yield partial

    def _in_batches(self, module: nn.Module, watch: _Watch) -> Iterator[PartialAccuracy]:
        task = self._task
        strata = None if watch.gate is None else self._strata
        return evaluate_in_batches(module, task.validation, task.metric, strata=strata)

    @cached_property
    def _strata(self) -> Strata:
        """The order in which samples tell most, from what the uncompressed model answers."""
        task = self._task
        outputs = predict(task.model, task.validation.inputs)
        return make_strata(outputs, task.validation, task.metric)

    def _time(
        self,
        candidate: Candidate,
        compressed: CompressedModel,
        model: Path,
        artifacts: Sequence[Path],
        running: Future[None],
        report: Callable[[str], None],
    ) -> Evaluation:
        """Time a candidate on all devices; its accuracy is still to come."""
        first, *others = (
            self._measure_on(device, artifact, compressed, running, report)
            for device, artifact in zip(self._devices, artifacts, strict=True)
        )
        return Evaluation(
            candidate,
            0.0,
            compressed.size_bytes,
            None if first is None else first.latency_us,
            None if first is None else first.spread_us,
            None if first is None else first.latency,
            model,
            artifacts[0],
            None
            if first is None
            else self._on_bench(running, self._devices[0].time_layers, artifacts[0]),
            tuple(other for other in others if other is not None),
            tuple(artifacts[1:]),
            compressed.coded_size_bytes,
        )

    def _measure_on(
        self,
        device: DeviceTiming,
        artifact: Path,
        compressed: CompressedModel,
        running: Future[None],
        report: Callable[[str], None],
    ) -> DeviceLatency | None:
        where = f" on '{device.profile.name}'" if len(self._devices) > 1 else ""
        if device.is_checked_instead:
            report(f"checking outputs{where}")
            inputs = self._task.validation.inputs[:_N_CHECKED]
            expected = predict(compressed.module, inputs)
            self._on_bench(
                running, device.check_outputs, artifact, inputs.numpy(), expected.numpy()
            )
        elif device.profile.has_latency:
            report(f"measuring{where}")
        return self._on_bench(running, device.measure, artifact)

    def discard(self, evaluation: Evaluation) -> None:
        """Delete the files of an evaluation, unless later ones are compared with it."""
        evaluation.model.unlink(missing_ok=True)
        artifacts = (evaluation.artifact, *evaluation.other_artifacts)
        for device, artifact in zip(self._devices, artifacts, strict=True):
            if not device.is_baseline(artifact):
                artifact.unlink(missing_ok=True)


@dataclass
class _Watch:
    """What is known of a candidate while it is being measured, from two threads."""

    gate: Gate | None
    size_bytes: int = 0
    distance: float | None = None  # of the draft, if there was one
    draft: Belief | None = None  # what accuracy that promises
    samples: Belief | None = None  # accuracy by the samples that were run
    latencies_us: tuple[Belief, ...] | None = None
    is_timed: bool = False

    @property
    def accuracy(self) -> Belief | None:
        """What is known of the accuracy."""
        return self.draft if self.samples is None else self.samples.with_evidence(self.draft)

    def check(self) -> None:
        """Raise `StoppedEarly` if the candidate need not be measured further."""
        accuracy, latencies = self.accuracy, self.latencies_us
        is_done = accuracy is not None and accuracy.deviation == 0.0 and latencies is not None
        if self.gate is None or is_done:
            return
        reason = self.gate.verdict(self.size_bytes, latencies, accuracy)
        if reason is not None:
            known = [None] * len(self.gate.latencies_us) if latencies is None else (
                [latency.mean for latency in latencies])  # fmt: skip
            mean = None if accuracy is None else accuracy.mean
            raise StoppedEarly(reason, (mean, float(self.size_bytes), *known))


def _latencies(found: Evaluation) -> tuple[Belief, ...]:
    """Return what was measured on each device that has a latency."""
    latencies = [Belief(other.latency_us, other.spread_us) for other in found.others]
    if found.latency_us is not None:
        latencies.insert(0, Belief(found.latency_us, found.latency_spread_us or 0.0))
    return tuple(latencies)


def _free_cpus(worker: Bench) -> frozenset[int]:
    """Return the cores that this process may use and the worker is not pinned to."""
    return frozenset(os.sched_getaffinity(0)) - frozenset(worker.cpus)


def _go_on(parts: Iterator[object], is_enough: Callable[[], bool] = lambda: False) -> None:
    """Take from an iterator until it ends, or enough was taken."""
    for _ in parts:
        if is_enough():
            return


def _stay_on(cpus: frozenset[int], most: int) -> None:
    """Keep this thread, and those that torch starts for it, off the worker's cores.

    On a busy machine threads that wait for each other take many times as long as one, so no more
    are used than this process is set to.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(min(len(cpus), most))
