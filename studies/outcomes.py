"""How trials end: what came of each is written down whole before it is told to be over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from ..evaluators.measurement import EvaluationError
from ..search.candidate import Candidate
from ..search.early_stopping import StoppedEarly
from ..search.guided import ESTIMATES_KEY
from ..search.objective import Evaluation
from ..search.space import SearchSpace
from .processes import is_dead
from .records import FURTHER_OBJECTIVES, INTERRUPTED, StudyRecord, TrialRecord
from .storage import save_model, set_trial_attributes, trial_id_of

# A trial without a process's mark is one that was killed within moments of its start.
_UNMARKED_S = 10.0


def evaluation_attributes(evaluation: Evaluation, record: StudyRecord) -> dict[str, Any]:
    """Return what is kept of an evaluation with its trial."""
    latency = evaluation.latency
    return {
        "candidate": evaluation.candidate.to_json(),
        "accuracy": evaluation.accuracy,
        "size_bytes": evaluation.size_bytes,
        "coded_size_bytes": evaluation.coded_size_bytes,
        "latency_us": evaluation.latency_us,
        "latency_spread_us": evaluation.latency_spread_us,
        "latency": None if latency is None else latency.to_json(),
        "others": [other.to_json() for other in evaluation.others],
        "further": further_measures(evaluation, record),
    }


def objective_values(evaluation: Evaluation, record: StudyRecord) -> tuple[float, ...]:
    """Return the values of a study's objectives, in their order."""
    first = () if evaluation.latency_us is None else (evaluation.latency_us,)
    others = (other.latency_us for other in evaluation.others)
    further = (value for _, value in further_measures(evaluation, record))
    return (evaluation.accuracy, float(evaluation.size_bytes), *first, *others, *further)


def further_measures(evaluation: Evaluation, record: StudyRecord) -> list[tuple[str, float]]:
    """Return names and values of the measures that are further objectives of a study.

    Raises:
        EvaluationError: If the device did not tell one.
    """
    found = []
    for name in record.settings.objectives:
        field = FURTHER_OBJECTIVES[name]
        value = None if evaluation.latency is None else getattr(evaluation.latency, field)
        if value is None:
            raise EvaluationError(
                f"Objective '{name}' must be measured, but the device of profile "
                f"'{record.profile.name}' does not tell it. Leave it out of `objectives`.",
                "unavailable",
            )
        found.append((field, float(value)))
    return found


class TrialWriter:
    """Writes what came of a trial, then ends it.

    A kill in between leaves the trial unfinished, so it is finished either with all its values or
    not at all.

    Args:
        study: Optuna's study.
        storage: Where it lives.
        space: What may be chosen.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, space: SearchSpace) -> None:
        self._study, self._storage, self._space = study, storage, space

    def complete(
        self,
        trial: optuna.Trial,
        evaluation: Evaluation,
        record: StudyRecord,
        *,
        seconds: float,
        expected_us: float | None,
    ) -> None:
        """Write all measures of a candidate and keep its model.

        Args:
            trial: The trial.
            evaluation: What was measured.
            record: The study, whose bounds decide what is feasible.
            seconds: How long the trial took.
            expected_us: What the latency model expected.
        """
        times = evaluation.layer_times
        attributes = {
            **evaluation_attributes(evaluation, record),
            "layer_times": None if times is None else times.to_json(),
            "predicted_latency_us": expected_us,
            "is_baseline": evaluation.candidate == self._space.baseline(),
            "model_file": save_model(self._storage, trial, evaluation.model),
            "seconds": seconds,
        }
        self._write(trial, attributes)
        accuracy, size_bytes = evaluation.accuracy, float(evaluation.size_bytes)
        self._constrain(record, trial, accuracy, size_bytes, evaluation.latency_us)
        self._study.tell(trial, objective_values(evaluation, record))

    def stop_early(
        self,
        trial: optuna.Trial,
        candidate: Candidate,
        outcome: StoppedEarly,
        record: StudyRecord,
        *,
        seconds: float,
        expected_us: Sequence[float],
    ) -> None:
        """Write down what is known of a candidate that is measured no further.

        To Optuna it is a complete trial, as its samplers learn from no others: what is not known
        has the value that is expected, and `estimates` among its attributes says what is. It can
        be on no front: it was beaten by another trial, or breaks a bound.

        Args:
            trial: The trial.
            candidate: What was given up.
            outcome: Why, and what is known.
            record: The study, with a complete trial at least.
            seconds: How long the trial took.
            expected_us: Latency that is expected on each device, empty if nothing is.
        """
        known = list(outcome.estimates)
        known += [None] * (len(self._study.directions) - len(known))
        accuracy, size_bytes, *latencies_us = known
        attributes = {
            "candidate": candidate.to_json(),
            "error": outcome.reason,
            ESTIMATES_KEY: known,
            "accuracy": accuracy,
            "size_bytes": None if size_bytes is None else round(size_bytes),
            "latency_us": latencies_us[0] if record.n_latencies else None,
            "seconds": seconds,
        }
        self._write(trial, attributes)
        values = _with_expected(known, expected_us, record)
        latency_us = values[2] if record.n_latencies else None
        self._constrain(record, trial, values[0], values[1], latency_us)
        self._study.tell(trial, values)

    def repeat(self, trial: optuna.Trial, candidate: Candidate, same: TrialRecord) -> None:
        """Tell the sampler what is known already; the trial does not count."""
        told = self._storage.get_trial(
            trial_id_of(self._storage, self._study.study_name, same.number)
        )
        attributes: dict[str, Any] = {"duplicate_of": same.number, "error": same.error}
        if ESTIMATES_KEY in told.user_attrs:
            attributes[ESTIMATES_KEY] = told.user_attrs[ESTIMATES_KEY]
        self._write(trial, {"candidate": candidate.to_json(), **attributes})
        for name, value in told.constraints.items():
            trial.set_constraint(name, value)
        self._study.tell(trial, told.values, state=told.state)

    def fail(self, trial: optuna.Trial, candidate: Candidate, reason: str, seconds: float) -> None:
        """Write down why a candidate has no measures."""
        attributes = {"candidate": candidate.to_json(), "error": reason, "seconds": seconds}
        self._write(trial, attributes)
        self._study.tell(trial, state=TrialState.FAIL)

    def _constrain(
        self,
        record: StudyRecord,
        trial: optuna.Trial,
        accuracy: float,
        size_bytes: float,
        latency_us: float | None,
    ) -> None:
        bounds = record.bounds
        values = (accuracy, size_bytes, latency_us)
        if record.baseline is None:  # this is it
            bounds = bounds.resolve(values, higher_is_better=record.higher_is_better)
        missed = bounds.violations(*values, higher_is_better=record.higher_is_better)
        for name, value in missed.items():
            trial.set_constraint(name, value)

    def _write(self, trial: optuna.Trial, attributes: dict[str, Any]) -> None:
        trial_id = trial_id_of(self._storage, self._study.study_name, trial.number)
        set_trial_attributes(self._storage, trial_id, attributes)


def _with_expected(
    known: Sequence[float | None], expected_us: Sequence[float], record: StudyRecord
) -> list[float]:
    """Fill what is not known: latencies as expected, all else as of the median trial."""
    medians = np.median([trial.values for trial in record.complete], axis=0).tolist()
    guesses = [*medians[:2], *expected_us, *medians[2 + len(expected_us) :]]
    return [guess if value is None else value for value, guess in zip(known, guesses, strict=True)]


def mark_interrupted(study: optuna.Study, storage: RDBStorage) -> int:
    """Mark the unfinished trials whose process has ended as failed; return how many."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = trial.user_attrs.get("process")
        if process is None:
            assert trial.datetime_start is not None
            age = time.time() - trial.datetime_start.timestamp()
            if age < _UNMARKED_S:
                continue
        elif not is_dead(process):
            continue
        trial_id = trial_id_of(storage, study.study_name, trial.number)
        try:
            storage.set_trial_user_attr(trial_id, "error", INTERRUPTED)
            study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            continue  # another process was faster
        count += 1
    return count
