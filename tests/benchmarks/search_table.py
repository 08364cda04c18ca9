"""A table of a million candidates and more whose objectives cost nothing, to try samplers on.

Every choice of every layer is timed in place on this machine, in turns with the uncompressed
model; the latency of a candidate is the sum of its layers, corrected to whole networks. Sizes are
exact. Accuracy is a model with all pairwise interactions, fitted to candidates that were measured
on all validation data.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.latency import measure_latency
from paredown.evaluators.layer_times import LayerTimes
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import Compressor
from paredown.search.knowledge.latency_model import LatencyModel, LatencySample, probe_candidates
from paredown.search.knowledge.sensitivity import Sensitivities, measure_sensitivities
from paredown.search.knowledge.sizes import Choices, LayerSizes
from paredown.search.pareto import hypervolume, is_pareto_optimal
from paredown.search.space import SearchSpace, SpaceSettings
from paredown.studies.tasks import load_task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RUNTIME = "tvm"
N_PROBES = 10
SETTINGS = SpaceSettings(activation_bits=(8,), include_float=False, tie="block")
_MIN_ROWS = 250
_CHUNK = 1 << 18
_WORST_LOSS = 0.1  # of accuracy; candidates that lose more do not count


@dataclass(frozen=True)
class Row:
    """One measured candidate; its times are in proportion to the baseline's latency."""

    params: dict[str, int]
    accuracy: float
    size_bytes: int
    latency_us: float
    times: LayerTimes

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        times = {"layers_us": dict(self.times.layers_us), "other_us": self.times.other_us}
        return {**self.__dict__, "times": times}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """Read what `to_json` wrote."""
        return cls(**{**data, "times": LayerTimes(**data["times"])})


class Table:
    """All candidates of a space with their objectives.

    Args:
        space: The space.
        data: What `measure` wrote.
    """

    def __init__(self, space: SearchSpace, data: dict[str, Any]) -> None:
        self.space = space
        self.rows = [Row.from_json(row) for row in data["rows"]]
        self.probes = [Row.from_json(row) for row in data["probes"]]
        self.baseline_us = float(data["baseline_us"])
        self.baseline_accuracy = float(data["baseline_accuracy"])
        self.baseline_size = int(data["baseline_size_bytes"])
        self.sensitivities = Sensitivities.from_json(data["sensitivities"])
        self.options = space.options()
        self.names = list(self.options)
        self._sizes = LayerSizes(space)
        values = np.array([[row.params[name] for name in self.names] for row in self.rows])
        choices = Choices.from_params(space, self.names, values)
        self._latency = self._fit_latency(choices)
        self._fit_accuracy(values)
        sizes = self._sizes.size_bytes(choices).sum(axis=1)
        self.size_offset = float(np.median([r.size_bytes for r in self.rows] - sizes))

    def _fit_latency(self, choices: Choices) -> LatencyModel:
        model = LatencyModel(self.space, self.baseline_us)
        for row in self.rows:
            candidate = self.space.from_params(row.params)
            model.add(LatencySample(candidate, row.times, row.latency_us))
        mean, _ = model.predict(choices)
        measured = np.array([row.latency_us for row in self.rows])
        self.latency_error = float(np.median(np.abs(mean / measured - 1.0)))
        return model

    def _fit_accuracy(self, values: Ints) -> None:
        accuracy = np.array([row.accuracy for row in self.rows])
        target = np.log(accuracy / (1.001 - accuracy))
        design = self._features(values)
        self._ridge = RidgeCV(alphas=np.logspace(-2, 3, 16)).fit(design, target)
        folds = np.arange(len(target)) % 10
        guesses = np.empty(len(target))
        for fold in range(10):
            fitted = RidgeCV(alphas=[self._ridge.alpha_]).fit(
                design[folds != fold], target[folds != fold]
            )
            guesses[folds == fold] = fitted.predict(design[folds == fold])
        self.accuracy_error = float(np.median(np.abs(_sigmoid(guesses) - accuracy)))

    def _features(self, values: Ints) -> Floats:
        """Return each parameter's place, its square, and all products of two places."""
        places = np.stack(
            [
                np.searchsorted(self.options[name], values[:, column])
                / (len(self.options[name]) - 1)
                for column, name in enumerate(self.names)
            ],
            axis=1,
        )
        # Losses fall by a factor with each step, so that is what adds up.
        bent = np.exp(-3.0 * places)
        pairs = [bent[:, a] * bent[:, b] for a, b in combinations(range(len(self.names)), 2)]
        return np.column_stack([places, bent, *pairs])

    def costs(self, values: Ints) -> Floats:
        """Return accuracy lost, bytes and microseconds of candidates, shape `(n, 3)`."""
        choices = Choices.from_params(self.space, self.names, values)
        size = self._sizes.size_bytes(choices).sum(axis=1) + self.size_offset
        latency, _ = self._latency.predict(choices)
        accuracy = _sigmoid(self._ridge.predict(self._features(values)))
        return np.stack([self.baseline_accuracy - accuracy, size, latency], axis=1)

    @cached_property
    def n_candidates(self) -> int:
        """How many there are."""
        return int(np.prod([len(values) for values in self.options.values()]))

    @property
    def reference(self) -> Floats:
        """What hypervolumes are measured from: the float model, and a tenth less accuracy."""
        return np.array([_WORST_LOSS, self.baseline_size, self.baseline_us])

    def all_values(self, fixed: dict[str, int]) -> Ints:
        """Return every candidate, or those with some parameters fixed."""
        axes = [
            [fixed[name]] if name in fixed else list(values)
            for name, values in self.options.items()
        ]
        return np.stack([g.reshape(-1) for g in np.meshgrid(*axes, indexing="ij")], axis=1)

    def true_front(self, fixed: dict[str, int] | None = None) -> Floats:
        """Return the costs of the front of all candidates."""
        values = self.all_values(fixed or {})
        front = np.empty((0, 3))
        for start in range(0, len(values), _CHUNK):
            both = np.concatenate([front, self.costs(values[start : start + _CHUNK])])
            both = both[(both < self.reference).all(axis=1)]
            front = both[is_pareto_optimal(both)]
        return front

    def hypervolume(self, costs: Floats) -> float:
        """Return a hypervolume as a share of the box between zero and the reference."""
        return hypervolume(costs, self.reference) / float(np.prod(self.reference))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1.001 / (1.0 + np.exp(-values)))


def load_table(
    file: Path, task: str, profile: str, report: Callable[[str], None] = print
) -> Table:
    """Return the table, measured now if the file does not exist."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        data = measure(task, profile, report)
        file.write_text(json.dumps(data))
    data = json.loads(file.read_text())
    return Table(_space(data["task"], data["profile"]), data)


def _space(task_name: str, profile_name: str) -> SearchSpace:
    task = load_task(task_name, data_dir=None, report=lambda text: None)
    profile = load_profile(profile_name)
    return SearchSpace.from_model(task.model, task.example_input, profile, SETTINGS)


def measure(task_name: str, profile_name: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure enough candidates to have seen every choice of every layer."""
    task = load_task(task_name, data_dir=None, report=report)
    profile = load_profile(profile_name)
    space = _space(task_name, profile_name)
    compressor = Compressor(task, space)
    start = time.monotonic()
    sensitivities = measure_sensitivities(compressor, task.calibration[:256])
    report(f"sensitivities in {time.monotonic() - start:.0f} s")
    with tempfile.TemporaryDirectory() as name, Worker(1, preload=(RUNTIME,)) as worker:
        folder = Path(name)

        def build(candidate: Candidate) -> tuple[Path, Any]:
            compressed = compressor.compress(candidate)
            path = folder / f"{candidate.digest}.onnx"
            onnx.save(compressed.model, path)
            worker.build(RUNTIME, path, path.with_suffix(".so"), profile)
            return path.with_suffix(".so"), compressed

        baseline, compressed = build(space.baseline())
        baseline_us = measure_latency(worker, RUNTIME, baseline).latency_us
        accuracy = evaluate(compressed.module, task.validation, task.metric)
        size = compressed.size_bytes

        def row(params: dict[str, int]) -> dict[str, Any]:
            artifact, compressed = build(space.from_params(params))
            times, reference = worker.time_layers(RUNTIME, artifact, baseline=baseline)
            latency = measure_latency(worker, RUNTIME, artifact, baseline=baseline)
            assert reference is not None
            assert latency.ratio is not None
            value = evaluate(compressed.module, task.validation, task.metric)
            artifact.unlink()
            scaled = times.scaled(baseline_us / reference.total_us)
            us = latency.ratio * baseline_us
            return Row(params, value, compressed.size_bytes, us, scaled).to_json()

        probes = [row(space.params(c)) for c in probe_candidates(space, N_PROBES, seed=0)]
        report(f"probes after {time.monotonic() - start:.0f} s")
        designs = _covering(space, _MIN_ROWS)
        rows = []
        for params in designs:
            rows.append(row(params))
            if len(rows) % 25 == 0:
                report(f"{len(rows)} of {len(designs)} after {time.monotonic() - start:.0f} s")
    return {
        "task": task_name,
        "profile": profile_name,
        "baseline_us": baseline_us,
        "baseline_accuracy": accuracy,
        "baseline_size_bytes": size,
        "sensitivities": sensitivities.to_json(),
        "probes": probes,
        "rows": rows,
    }


def _covering(space: SearchSpace, at_least: int) -> list[dict[str, int]]:
    """Return candidates that between them have every choice of every layer."""
    rng = np.random.default_rng(0)
    options = space.options()
    names = list(options)
    sizes = LayerSizes(space)

    def draw(count: int) -> Ints:
        return np.stack([rng.choice(options[name], count) for name in names], axis=1)

    def shown(values: Ints) -> list[set[tuple[int, ...]]]:
        choices = Choices.from_params(space, names, values)
        ins, outs = sizes.channels(choices.kept)
        table = np.stack([ins, outs, choices.weight_bits], axis=2).tolist()
        return [{(at, *choice) for at, choice in enumerate(row)} for row in table]

    missing: set[tuple[int, ...]] = set().union(*shown(draw(20_000)))
    picked: list[Sequence[int]] = []
    while missing or len(picked) < at_least:
        values = draw(400)
        new = [len(found & missing) for found in shown(values)]
        best = int(np.argmax(new)) if missing else 0
        picked.append(values[best].tolist())
        missing -= shown(values[best : best + 1])[0]
    return [dict(zip(names, row, strict=True)) for row in picked]
