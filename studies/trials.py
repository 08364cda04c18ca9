"""The loop of a study: ask for a candidate, evaluate it, write down what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from ..evaluators.measurement import EvaluationError, Latency
from ..hw_profiles.errors import ParedownError
from ..search.candidate import Candidate
from ..search.early_stopping import Belief, Gate, StoppedEarly
from ..search.objective import Evaluation
from ..search.space import SearchSpace
from .errors import StudyError
from .observer import Observer, StopSignal
from .outcomes import TrialWriter, further_measures
from .processes import this_process
from .record_json import trial_record, with_later_latencies
from .records import INTERRUPTED, StudyRecord, TrialRecord
from .storage import (
    add_latencies,
    models_dir,
)

MAX_FAILURES_IN_A_ROW = 5
MAX_REPEATS_IN_A_ROW = 5
MAX_RANDOM_DRAWS = 1000
UNIFORM_BITS = (8, 7, 4)


class Evaluator(Protocol):
    """Measures candidates; `Objective` does, and the tests have one that pretends."""

    def evaluate(
        self, candidate: Candidate, report: Callable[[str], None], gate: Gate | None = None
    ) -> Evaluation:
        """Measure one candidate, telling `report` which step begins, until the gate closes."""
        ...

    def measure_again(self, model: Path) -> Sequence[Latency]:
        """Time a model that was measured before, on each device."""
        ...

    def discard(self, evaluation: Evaluation) -> None:
        """Delete the files of an evaluation."""
        ...


class TrialGuide(Protocol):
    """Learns about the space and from trials; `Guide` does."""

    @property
    def is_ready(self) -> bool:
        """Whether `prepare` was called."""
        ...

    def prepare(self, record: StudyRecord) -> Sequence[Candidate]:
        """Learn about the space; return candidates to begin with."""
        ...

    def learn(self, record: StudyRecord) -> None:
        """Learn from the trials that have ended."""
        ...

    def predict_latencies_us(self, candidate: Candidate) -> Sequence[tuple[float, float]]:
        """Return the latency expected on each device and its deviation; none if not ready."""
        ...


class TrialLoop:
    """Runs trials of one study until enough have finished.

    Everything a trial yields is written before the trial is told to be complete, so a kill at any
    moment leaves it either finished with all its values, or unfinished and marked so later.

    Args:
        study: Optuna's study.
        storage: Where it lives.
        record: The study's description, with the trials that exist already.
        space: What may be chosen.
        objective: Evaluates candidates.
        observer: Told what happens.
        stop: Tells when to end.
        guide: Expects latencies, and leads the sampler if it is one that can be led.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: RDBStorage,
        record: StudyRecord,
        space: SearchSpace,
        objective: Evaluator,
        observer: Observer,
        stop: StopSignal,
        guide: TrialGuide,
    ) -> None:
        self._study = study
        self._storage = storage
        self._record = record
        self._space = space
        self._objective = objective
        self._observer = observer
        self._stop = stop
        self._guide = guide
        self._writer = TrialWriter(study, storage, space)
        self._planned = list(planned_candidates(space))
        self._rng = np.random.default_rng([record.settings.seed, len(record.trials)])
        self._n_repeats = 0
        self._n_failures = 0

    def run(self, n_trials: int, deadline: float | None) -> None:
        """Run trials until `n_trials` have finished, the deadline passes, or a stop is asked for.

        Args:
            n_trials: Finished trials of the study, those of earlier runs included.
            deadline: Time by `time.monotonic` after which no trial begins.

        Raises:
            StudyError: If the uncompressed model, or too many trials in a row, fail.
            KeyboardInterrupt: If the second interrupt came; the trial in hand is marked failed.
        """
        with self._stop.in_trials():
            while self.refresh().n_finished < n_trials and not self._stop.is_requested:
                if deadline is not None and time.monotonic() >= deadline:
                    self._observer.message("The time limit is reached.")
                    return
                self._use_guide()
                if not self._run_trial():
                    self._observer.message(
                        "Every candidate that could be found in the search space is evaluated."
                    )
                    break
            if not self._stop.is_requested:
                self._confirm_front(deadline)

    def _confirm_front(self, deadline: float | None) -> None:
        """Time the points of the front once more: the luckiest of many measurements lead it."""
        if not self._record.profile.has_latency:
            return
        waiting = [t for t in self._record.front() if not t.again and not t.is_baseline]
        for place, trial in enumerate(waiting, start=1):
            late = deadline is not None and time.monotonic() >= deadline
            if late or self._stop.is_requested or trial.model_file is None:
                return
            self._observer.preparing(f"timing the front again, {place} of {len(waiting)}")
            model = models_dir(self._storage.url) / trial.model_file
            try:
                latencies = self._objective.measure_again(model)
            except EvaluationError as error:
                self._observer.message(f"Trial {trial.number} could not be timed again: {error}")
                continue
            with self._stop.shield():
                add_latencies(self._storage, self._record.name, trial.number, latencies)
        self.refresh()

    def _use_guide(self) -> None:
        """Let the guide learn; what it advises is tried before the sampler is asked."""
        if self._record.baseline is None:
            return
        if self._guide.is_ready:
            self._guide.learn(self._record)
        else:
            self._planned += self._guide.prepare(self._record)

    def refresh(self) -> StudyRecord:
        """Read the trials again: another process may run some of the same study."""
        known = {trial.number: trial for trial in self._record.trials if trial.state != "running"}
        trials = tuple(
            known.get(trial.number) or trial_record(trial)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state is not TrialState.WAITING
        )
        baseline = next((t for t in trials if t.is_baseline and t.state == "complete"), None)
        trials = with_later_latencies(trials, baseline, self._study.user_attrs)
        self._record = replace(self._record, trials=trials, baseline=baseline)
        return self._record

    def _run_trial(self) -> bool:
        """Run one trial; False if no new candidate can be found."""
        known = self._known()
        asked = self._ask(known)
        if asked is None:
            return False
        trial, candidate = asked
        same = known.get(candidate.digest)
        if same is not None:
            self._n_repeats += 1
            with self._stop.shield():
                self._writer.repeat(trial, candidate, same)
            return True
        self._n_repeats = 0
        self._observer.trial_started(trial.number, candidate)
        start = time.monotonic()
        expected = self._guide.predict_latencies_us(candidate)
        try:
            evaluation = self._objective.evaluate(
                candidate,
                lambda step: self._observer.trial_step(trial.number, step),
                self._gate(candidate, expected),
            )
            further_measures(evaluation, self._record)  # each must be there
        except StoppedEarly as outcome:
            with self._stop.shield():
                self._writer.stop_early(
                    trial,
                    candidate,
                    outcome,
                    self._record,
                    seconds=time.monotonic() - start,
                    expected_us=[mean for mean, _ in expected],
                )
                self._report(trial.number)
            self._n_failures = 0
            return True
        except KeyboardInterrupt:
            self._fail(trial, candidate, INTERRUPTED, start)
            raise
        except OSError as error:
            # A full disk or the like is no fault of the candidate.
            self._fail(trial, candidate, f"{INTERRUPTED}: {error}", start)
            raise
        except Exception as error:  # whatever a candidate provokes is a result of its trial
            if isinstance(error, EvaluationError) and error.reason == "device":
                self._fail(trial, candidate, f"{INTERRUPTED}: {error}", start)
                raise StudyError(
                    f"{error} The study stops in trial {trial.number}; nothing that was finished "
                    "is lost, and the same command goes on."
                ) from error
            self._fail(trial, candidate, _reason(error), start)
            self._after_failure(trial.number, candidate)
            return True
        with self._stop.shield():
            self._writer.complete(
                trial,
                evaluation,
                self._record,
                seconds=time.monotonic() - start,
                expected_us=expected[0][0] if expected else None,
            )
            self._objective.discard(evaluation)
            self._report(trial.number)
        self._n_failures = 0
        return True

    def _gate(self, candidate: Candidate, expected: Sequence[tuple[float, float]]) -> Gate | None:
        """Return what a candidate is compared with; what every study begins with runs whole."""
        record = self._record
        is_compared = record.settings.early_stopping and record.baseline is not None
        if not is_compared or candidate in planned_candidates(self._space):
            return None
        n_latencies = record.n_latencies
        latencies_us = tuple(Belief(mean, deviation) for mean, deviation in expected)
        bounds = record.bounds
        # A bound on latency is one for the first device.
        limits_us = (bounds.max_latency_us or math.inf, *[math.inf] * n_latencies)[:n_latencies]
        sign = -1.0 if record.higher_is_better else 1.0
        # What is worse in these may be better in a further objective: bounds alone stop it then.
        front = () if record.settings.objectives else record.front()
        return Gate(
            costs=record.costs(front)[:, : 2 + n_latencies],
            numbers=[other.number for other in front],
            limits=(
                math.inf if bounds.min_accuracy is None else sign * bounds.min_accuracy,
                bounds.max_size_bytes or math.inf,
                *limits_us,
            ),
            higher_is_better=record.higher_is_better,
            latencies_us=latencies_us or (Belief(0.0),) * n_latencies,
        )

    def _known(self) -> dict[str, TrialRecord]:
        """Return the trials whose result is known, by the candidate's digest."""
        return {
            trial.candidate.digest: trial
            for trial in self._record.trials
            if trial.candidate is not None and trial.is_finished and trial.finetuned_from is None
        }

    def _ask(self, known: dict[str, TrialRecord]) -> tuple[optuna.Trial, Candidate] | None:
        wanted = next((c for c in self._planned if c.digest not in known), None)
        if wanted is None and self._n_repeats >= MAX_REPEATS_IN_A_ROW:
            wanted = self._draw_new(known)
            if wanted is None:
                return None
        if wanted is not None:
            self._study.enqueue_trial(self._params(wanted), {"planned": wanted.to_json()})
        trial = self._study.ask()
        trial.set_user_attr("process", this_process())
        candidate = self._space.suggest(trial)
        # The queue may hold a candidate that a killed run left there; it comes first then.
        planned = trial.user_attrs.get("planned")
        return trial, candidate if planned is None else Candidate.from_json(planned)

    def _draw_new(self, known: dict[str, TrialRecord]) -> Candidate | None:
        for _ in range(MAX_RANDOM_DRAWS):
            candidate = self._space.random(self._rng)
            if candidate.digest not in known:
                return candidate
        return None

    def _params(self, candidate: Candidate) -> dict[str, int]:
        # A space without float has no parameters for the baseline: it stands at the nearest ones.
        is_outside = candidate == self._space.baseline() and any(
            32 not in layer.weight_bits for layer in self._space.layers
        )
        return self._space.params(self._space.uniform(32) if is_outside else candidate)

    def _fail(self, trial: optuna.Trial, candidate: Candidate, reason: str, start: float) -> None:
        with self._stop.shield():
            self._writer.fail(trial, candidate, reason, time.monotonic() - start)
            self._report(trial.number)

    def _after_failure(self, number: int, candidate: Candidate) -> None:
        reason = self._record.trial(number).error
        if candidate == self._space.baseline():
            raise StudyError(
                f"The uncompressed model must run, but its trial failed: {reason} Nothing can be "
                "compared without it."
            )
        self._n_failures += 1
        if self._n_failures >= MAX_FAILURES_IN_A_ROW:
            raise StudyError(
                f"{self._n_failures} trials in a row failed, the last one: {reason} See all with "
                f"`paredown front {self._record.name} --all`."
            )

    def _report(self, number: int) -> None:
        study = self.refresh()
        self._observer.trial_finished(study.trial(number), study)


def planned_candidates(space: SearchSpace) -> Sequence[Candidate]:
    """Return what every study begins with: the uncompressed model and the uniform bit widths."""
    planned = [space.baseline()]
    for bits in UNIFORM_BITS:
        if all(bits in layer.weight_bits for layer in space.layers):
            planned.append(space.uniform(bits))
    return planned


def _reason(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, ParedownError) else f"{type(error).__name__}: {text}"
