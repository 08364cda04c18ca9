"""What a study learns about its space before and beside its trials, and how that leads the search.

The sensitivities and the first timings are kept with the study, so that a resumed study begins
where it was, and `paredown explain` can show them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from optuna.storages import RDBStorage

from ..evaluators.task import Task
from ..hw_profiles.errors import ParedownError
from ..search.candidate import Candidate
from ..search.compression.compressor import Compressor
from ..search.guided import GuidedSampler
from ..search.knowledge.latency_model import LatencyModel, LatencySample, probe_candidates
from ..search.knowledge.prior import SpacePrior
from ..search.knowledge.sensitivity import Losses, Sensitivities, measure_sensitivities
from ..search.knowledge.sizes import Choices
from ..search.knowledge.warm_starts import knapsack_front, spread
from ..search.space import SearchSpace
from .observer import Observer
from .records import StudyRecord, TrialRecord

KNOWLEDGE_KEY = "paredown:knowledge"
LOSSES_KEY = "paredown:losses"  # sensitivities that are still being measured
_VERSION = 2

_MAX_PROBES, _MAX_WARM = 10, 16
_MAX_INPUTS = 256
_SENSITIVITY_S = 0.5  # for each trial that is asked for
_MAX_SENSITIVITY_S = 60.0
_KEEP_S = 2.0  # between two notes of what is known so far
_INTEREST = 0.1  # share of the baseline's accuracy that may be lost before a trial is of no use


class Prober(Protocol):
    """Times candidates without a trial; `Objective` does."""

    def probe(self, candidate: Candidate) -> tuple[LatencySample, ...]:
        """Time a candidate and its layers on each device."""
        ...


@dataclass(frozen=True)
class Knowledge:
    """What was measured for a study beside its trials.

    Attributes:
        sensitivities: Loss of each option.
        probes: Networks that were timed, each with a sample for each device.
        weight_bits: Widths on offer by layer; parameters are positions in them.
        channels: Channels of each group before pruning, and the layers that produce them.
        is_whole: Whether nothing is left to be measured before the search.
    """

    sensitivities: Sensitivities
    probes: tuple[tuple[LatencySample, ...], ...]
    weight_bits: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, tuple[int, tuple[str, ...]]]
    is_whole: bool = False

    @classmethod
    def of(cls, space: SearchSpace, found: Sensitivities) -> Knowledge:
        """Put sensitivities together with the names of the space."""
        return cls(
            found,
            (),
            {layer.name: layer.weight_bits for layer in space.layers},
            {group.name: (group.channels, group.layers) for group in space.groups},
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": _VERSION,
            "is_whole": self.is_whole,
            "sensitivities": self.sensitivities.to_json(),
            "probes": [[sample.to_json() for sample in probe] for probe in self.probes],
            "weight_bits": {name: list(bits) for name, bits in self.weight_bits.items()},
            "channels": {n: [count, list(names)] for n, (count, names) in self.channels.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Knowledge:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the version is unknown.
        """
        if data.get("version") != _VERSION:
            raise ValueError(
                f"Version of a study's knowledge must be {_VERSION}, but got "
                f"{data.get('version')!r}. It was written by another version of Paredown."
            )
        return cls(
            Sensitivities.from_json(data["sensitivities"]),
            tuple(
                tuple(LatencySample.from_json(sample) for sample in probe)
                for probe in data["probes"]
            ),
            {name: tuple(bits) for name, bits in data["weight_bits"].items()},
            {name: (count, tuple(names)) for name, (count, names) in data["channels"].items()},
            data["is_whole"],
        )


def read_knowledge(storage: RDBStorage, name: str) -> Knowledge | None:
    """Return what is kept with a study, None if it has none."""
    attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    data = attrs.get(KNOWLEDGE_KEY)
    return None if data is None else Knowledge.from_json(data)


class LatencyGuide:
    """Learns from every trial what latency to expect, whichever sampler leads the study."""

    is_ready = False

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._latencies: Sequence[LatencyModel] = ()
        self._learnt: set[int] = set()

    def prepare(self, record: StudyRecord) -> Sequence[Candidate]:
        """Learn from the trials of a study with its baseline; no candidate is proposed."""
        assert record.baseline is not None
        self._latencies = [LatencyModel(self._space, us) for us in record.baseline.latencies_us]
        self.is_ready = True
        self.learn(record)
        return ()

    def learn(self, record: StudyRecord) -> None:
        """Learn from the trials that have ended since the last time."""
        for trial in record.complete:
            if trial.number not in self._learnt:
                assert trial.candidate is not None
                times = trial.layer_times  # of the first device
                for model, us in zip(self._latencies, trial.latencies_us, strict=True):
                    model.add(LatencySample(trial.candidate, times, us))
                    times = None
                self._learnt.add(trial.number)

    def predict_latencies_us(self, candidate: Candidate) -> Sequence[tuple[float, float]]:
        """Return mean and deviation that are expected on each device; none before it is ready."""
        choices = Choices.of(self._space, [candidate])
        found = (model.predict(choices) for model in self._latencies)
        return [(float(mean[0]), float(deviation[0])) for mean, deviation in found]


class Guide(LatencyGuide):
    """Leads a guided sampler: learns about the space, then from every trial.

    Args:
        storage: Where the study lives.
        space: What may be chosen.
        task: Gives the inputs whose outputs are compared.
        compressor: Makes models, without fine-tuning.
        prober: Times candidates.
        sampler: Gets the prior.
        n_trials: Trials that are asked for: the effort before them is in proportion.
        observer: Told what is being done.
    """

    def __init__(
        self,
        storage: RDBStorage,
        space: SearchSpace,
        task: Task,
        compressor: Compressor,
        prober: Prober,
        sampler: GuidedSampler,
        n_trials: int,
        observer: Observer,
    ) -> None:
        super().__init__(space)
        self._storage, self._task = storage, task
        self._compressor, self._prober, self._sampler = compressor, prober, sampler
        self._n_trials, self._observer = n_trials, observer
        self._prior: SpacePrior | None = None

    def prepare(self, record: StudyRecord) -> Sequence[Candidate]:
        """Learn about the space, once the uncompressed model has its trial.

        Args:
            record: The study with its baseline.

        Returns:
            Candidates that cover what is expected to be the front.
        """
        baseline = record.baseline
        assert baseline is not None
        knowledge = self._knowledge(record)
        super().prepare(record)
        for probe in knowledge.probes:
            for model, sample in zip(self._latencies, probe, strict=True):
                model.add(sample)
        self._prior = SpacePrior(self._space, knowledge.sensitivities, self._latencies)
        self._sampler.prior = self._prior
        self._sampler.reference = reference_values(record, baseline)
        self._correct_size(record)
        return self._warm_starts(record)

    def learn(self, record: StudyRecord) -> None:
        """Learn from the trials that have ended since the last time."""
        n_before = len(self._learnt)
        super().learn(record)
        if self._prior is not None and len(self._learnt) > n_before:
            self._correct_size(record)

    def _correct_size(self, record: StudyRecord) -> None:
        assert self._prior is not None
        inside = [t for t in record.complete if t.candidate and not t.is_baseline]
        if inside:
            expected = self._expect([t.candidate for t in inside if t.candidate])[:, 1]
            gaps = np.array([t.values[1] for t in inside]) - expected
            self._prior.size_offset_bytes += float(np.median(gaps))

    def _expect(self, candidates: Sequence[Candidate]) -> np.ndarray:
        assert self._prior is not None
        params = [self._space.params(candidate) for candidate in candidates]
        names = list(params[0])
        return self._prior(names, np.array([[p[n] for n in names] for p in params]))

    def _knowledge(self, record: StudyRecord) -> Knowledge:
        """Return what is kept with the study, measured now as far as it is not."""
        found = read_knowledge(self._storage, record.name)
        if found is not None and found.is_whole:
            return found
        if found is None:
            used_s, known = self._losses(record)
            budget_s = min(_MAX_SENSITIVITY_S, _SENSITIVITY_S * self._n_trials)
            sensitivities = measure_sensitivities(
                self._compressor,
                self._task.calibration[:_MAX_INPUTS],
                budget_s=budget_s - used_s,
                report=self._observer.preparing,
                known=known,
                keep=self._keep_losses(record, used_s),
            )
            found = self._keep(record, Knowledge.of(self._space, sensitivities))
        n_probes = min(_MAX_PROBES, max(3, self._n_trials // 6))
        if not record.profile.has_latency:
            n_probes = 0
        candidates = probe_candidates(self._space, n_probes, record.settings.seed)
        for candidate in candidates[len(found.probes) :]:
            self._observer.preparing(f"timing kernels, {len(found.probes) + 1} of {n_probes}")
            try:
                sample = self._prober.probe(candidate)
            except ParedownError as error:  # one candidate that cannot be built is no harm
                self._observer.message(f"A candidate could not be timed: {error}")
                continue
            found = self._keep(record, replace(found, probes=(*found.probes, sample)))
        return self._keep(record, replace(found, is_whole=True))

    def _losses(self, record: StudyRecord) -> tuple[float, Losses]:
        """Return what a run that was cut off had measured, and the seconds it took for that."""
        attrs = self._storage.get_study_user_attrs(self._study_id(record))
        stored = attrs.get(LOSSES_KEY, {"seconds": 0.0, "losses": {}})
        tables: Mapping[str, Mapping[str, float]] = stored["losses"]
        known = {name: {int(v): x for v, x in table.items()} for name, table in tables.items()}
        return stored["seconds"], known

    def _keep_losses(self, record: StudyRecord, used_s: float) -> Callable[[Losses], None]:
        start = last = time.monotonic()

        def keep(losses: Losses) -> None:
            nonlocal last
            if time.monotonic() - last >= _KEEP_S:
                last = time.monotonic()
                plain = {n: {str(v): x for v, x in t.items()} for n, t in losses.items()}
                note = {"seconds": used_s + last - start, "losses": plain}
                self._storage.set_study_user_attr(self._study_id(record), LOSSES_KEY, note)

        return keep

    def _study_id(self, record: StudyRecord) -> int:
        return self._storage.get_study_id_from_name(record.name)

    def _keep(self, record: StudyRecord, knowledge: Knowledge) -> Knowledge:
        data = knowledge.to_json()
        self._storage.set_study_user_attr(self._study_id(record), KNOWLEDGE_KEY, data)
        return knowledge

    def _warm_starts(self, record: StudyRecord) -> Sequence[Candidate]:
        assert self._prior is not None
        options = self._space.options()
        if not options:
            return ()
        names = list(options)
        values, costs = knapsack_front(options, self._prior, record.settings.seed)
        known = [t.candidate for t in record.complete if t.candidate and not t.is_baseline]
        taken = self._expect(known) if known else np.empty((0, costs.shape[1]))
        n_points = min(_MAX_WARM, max(2, self._n_trials // 4))
        return [
            self._space.from_params(dict(zip(names, values[place].tolist(), strict=True)))
            for place in spread(costs, taken, n_points)
        ]


def reference_values(record: StudyRecord, baseline: TrialRecord) -> tuple[float, ...]:
    """Return what is just of no use any more: accuracy, bytes, and microseconds on each device.

    That is what the study says, else a tenth of the uncompressed model's accuracy less, its size
    and its latencies; or the study's bounds where they are tighter. What is said of latency is
    meant for the first device.
    """
    accuracy, size, *latencies = baseline.values
    sign = 1.0 if record.higher_is_better else -1.0
    wanted, bounds = record.settings.reference, record.bounds
    worst = [accuracy - sign * _INTEREST * abs(accuracy) if wanted.accuracy is None
             else wanted.accuracy]  # fmt: skip
    if bounds.min_accuracy is not None:
        worst.append(bounds.min_accuracy)
    if latencies:
        first = wanted.latency_us or latencies[0]
        latencies[0] = min(first, bounds.max_latency_us or math.inf)
    return (
        sign * max(sign * value for value in worst),
        min(wanted.size_bytes or size, bounds.max_size_bytes or math.inf),
        *latencies,
    )
