"""A table of a million candidates and more whose objectives cost nothing, to try samplers on.

Every choice of every layer is timed in place on this machine, in turns with the uncompressed
model; the latency of a candidate is the sum of its layers, corrected to whole networks. Sizes are
exact. Accuracy is scikit-learn's Gaussian process, fitted to candidates that were measured on the
first `N_SAMPLES` of the validation data. What was measured is kept after each candidate, so
that it can be interrupted.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import cross_val_predict

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.latency import measure_latency
from paredown.evaluators.layer_times import LayerTimes
from paredown.evaluators.task import Data
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import CompressedModel, Compressor
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
N_SAMPLES = 5000
_MIN_ROWS = 200
_N_ACCURACIES = 160  # rows whose accuracy is measured
_WHOLE_STEP = 4  # of the rows whose whole network is timed
_CHUNK = 1 << 17
_GOOD = 0.8  # accuracy above which the fit's error is reported
_WORST_LOSS = 0.1  # of accuracy; candidates that lose more do not count


@dataclass(frozen=True)
class Row:
    """One measured candidate; its times are in proportion to the baseline's latency."""

    params: dict[str, int]
    accuracy: float | None
    size_bytes: int
    latency_us: float | None
    times: LayerTimes

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "times": self.times.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """Read what `to_json` wrote."""
        return cls(**{**data, "times": LayerTimes.from_json(data["times"])})


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
        errors = [
            abs(us / row.latency_us - 1.0)
            for us, row in zip(mean, self.rows, strict=True)
            if row.latency_us
        ]
        self.latency_error = float(np.median(errors))
        return model

    def _fit_accuracy(self, values: Ints) -> None:
        is_known = [row.accuracy is not None for row in self.rows]
        accuracy = np.array([row.accuracy for row in self.rows if row.accuracy is not None])
        target = np.log(accuracy / (1.001 - accuracy))
        inputs = self._bent(values[is_known])
        kernel = ConstantKernel() * Matern(np.ones(inputs.shape[1]), nu=2.5) + WhiteKernel(0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a bound of a length is reached
            model = GaussianProcessRegressor(kernel, normalize_y=True)
            guesses = _sigmoid(cross_val_predict(model, inputs, target, cv=10))
            self._accuracy = model.fit(inputs, target)
        gaps = np.abs(guesses - accuracy)
        self.accuracy_error = float(np.median(gaps[accuracy > _GOOD]))

    def _bent(self, values: Ints) -> Floats:
        """Return how little each parameter leaves: losses fall by a factor with each step."""
        columns = [
            np.searchsorted(self.options[name], values[:, column]) / (len(self.options[name]) - 1)
            for column, name in enumerate(self.names)
        ]
        return np.exp(-3.0 * np.stack(columns, axis=1))

    def costs(self, values: Ints) -> Floats:
        """Return accuracy lost, bytes and microseconds of candidates, shape `(n, 3)`."""
        choices = Choices.from_params(self.space, self.names, values)
        size = self._sizes.size_bytes(choices).sum(axis=1) + self.size_offset
        latency, _ = self._latency.predict(choices)
        accuracy = _sigmoid(self._accuracy.predict(self._bent(values)))
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
    """Return the table, measured now as far as the file does not have it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = json.loads(file.read_text()) if file.exists() else {"task": task, "profile": profile}
    if not data.get("is_whole"):
        _Measuring(data, file, report).run()
    return Table(_space(data["task"], data["profile"]), data)


def _space(task_name: str, profile_name: str) -> SearchSpace:
    task = load_task(task_name, data_dir=None, report=lambda text: None)
    profile = load_profile(profile_name)
    return SearchSpace.from_model(task.model, task.example_input, profile, SETTINGS)


class _Measuring:
    """Measures enough candidates to have seen every choice of every layer.

    Args:
        data: What is known; it grows.
        file: Where it is kept.
        report: Told how far it is.
    """

    def __init__(self, data: dict[str, Any], file: Path, report: Callable[[str], None]) -> None:
        self._data, self._file, self._report = data, file, report
        self._task = load_task(data["task"], data_dir=None, report=report)
        self._profile = load_profile(data["profile"])
        self._space = _space(data["task"], data["profile"])
        self._compressor = Compressor(self._task, self._space)
        held_out = self._task.validation
        self._samples = Data(held_out.inputs[:N_SAMPLES], held_out.targets[:N_SAMPLES])

    def run(self) -> None:
        """Measure what is missing."""
        data = self._data
        with tempfile.TemporaryDirectory() as name, Worker(1, preload=(RUNTIME,)) as worker:
            self._folder, self._worker = Path(name), worker
            self._baseline, compressed = self._build(self._space.baseline())
            if "baseline_us" not in data:
                data["baseline_us"] = measure_latency(worker, RUNTIME, self._baseline).latency_us
                data["baseline_accuracy"] = self._accuracy(compressed)
                data["baseline_size_bytes"] = compressed.size_bytes
            if "sensitivities" not in data:
                found = measure_sensitivities(self._compressor, self._task.calibration[:256])
                data["sensitivities"] = found.to_json()
            probes = [self._space.params(c) for c in probe_candidates(self._space, N_PROBES, 0)]
            self._measure("probes", probes)
            self._measure("rows", _covering(self._space, _MIN_ROWS))
        data["is_whole"] = True
        self._save()

    def _measure(self, kind: str, designs: list[dict[str, int]]) -> None:
        rows = self._data.setdefault(kind, [])
        for number in range(len(rows), len(designs)):
            rows.append(self._row(kind == "probes", number, designs[number]).to_json())
            if number % 10 == 9:
                self._save()
                self._report(f"{kind}: {number + 1} of {len(designs)}")
        self._save()

    def _row(self, is_probe: bool, number: int, params: dict[str, int]) -> Row:
        artifact, compressed = self._build(self._space.from_params(params))
        times, reference = self._worker.time_layers(RUNTIME, artifact, baseline=self._baseline)
        assert reference is not None
        baseline_us = self._data["baseline_us"]
        accuracy = latency_us = None
        if is_probe or number % _WHOLE_STEP == 0:
            latency = measure_latency(self._worker, RUNTIME, artifact, baseline=self._baseline)
            assert latency.ratio is not None
            latency_us = latency.ratio * baseline_us
        if not is_probe and number < _N_ACCURACIES:
            accuracy = self._accuracy(compressed)
        artifact.unlink()
        scaled = times.scaled(baseline_us / reference.total_us)
        return Row(params, accuracy, compressed.size_bytes, latency_us, scaled)

    def _build(self, candidate: Candidate) -> tuple[Path, CompressedModel]:
        compressed = self._compressor.compress(candidate)
        path = self._folder / f"{candidate.digest}.onnx"
        onnx.save(compressed.model, path)
        artifact = path.with_suffix(".so")
        self._worker.build(RUNTIME, path, artifact, self._profile)
        return artifact, compressed

    def _accuracy(self, compressed: CompressedModel) -> float:
        return evaluate(compressed.module, self._samples, self._task.metric)

    def _save(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._data))
        partial.replace(self._file)


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
