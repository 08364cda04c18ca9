"""Records as the JSON attributes that a storage keeps, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import Latency
from ..hw_profiles.profile import HardwareProfile
from ..search.candidate import Candidate
from ..search.device_timing import DeviceLatency
from ..search.guided import ESTIMATES_KEY
from ..search.rules import LayerRule
from .errors import StorageError
from .records import Constraints, Reference, StudyRecord, StudySettings, TrialRecord

META_KEY = "paredown"
META_VERSION = 1
AGAIN_KEY = "paredown:again:"
MEASURES = (
    "accuracy",
    "size_bytes",
    "coded_size_bytes",
    "latency_us",
    "latency_spread_us",
    "seconds",
    "predicted_latency_us",
)

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """Return Optuna's trial as a record."""
    attrs = trial.user_attrs
    state = _STATES.get(trial.state, "running")
    if state == "complete" and ESTIMATES_KEY in attrs:
        state = "stopped early"
    if "duplicate_of" in attrs and trial.state.is_finished():
        state = "duplicate"
    candidate, latency = attrs.get("candidate"), attrs.get("latency")
    measures: dict[str, Any] = {name: attrs.get(name) for name in MEASURES}
    times = attrs.get("layer_times")
    return TrialRecord(
        number=trial.number,
        state=state,
        candidate=None if candidate is None else Candidate.from_json(candidate),
        latency=None if latency is None else Latency.from_json(latency),
        layer_times=None if times is None else LayerTimes.from_json(times),
        error=attrs.get("error"),
        is_baseline=bool(attrs.get("is_baseline", False)),
        model_file=attrs.get("model_file"),
        finetuned_from=attrs.get("finetuned_from"),
        is_feasible=state == "complete"
        and all(value <= 0.0 for value in trial.constraints.values()),
        further=tuple((name, value) for name, value in attrs.get("further", ())),
        others=tuple(DeviceLatency.from_json(data) for data in attrs.get("others", ())),
        **measures,
    )


def with_later_latencies(
    trials: Sequence[TrialRecord], baseline: TrialRecord | None, attrs: Mapping[str, Any]
) -> tuple[TrialRecord, ...]:
    """Return trials with the later measurements that are among a study's attributes."""
    if baseline is None:
        return tuple(trials)
    found = {
        int(key.removeprefix(AGAIN_KEY)): [
            tuple(Latency.from_json(latency) for latency in latencies) for latencies in value
        ]
        for key, value in attrs.items()
        if key.startswith(AGAIN_KEY)
    }
    return tuple(
        trial.with_latencies(found[trial.number], baseline) if trial.number in found else trial
        for trial in trials
    )


def study_record(
    name: str, url: str, models: Path, attrs: Mapping[str, Any], frozen: Sequence[FrozenTrial]
) -> StudyRecord:
    """Return a study as a record.

    Args:
        name: Its name.
        url: Of the storage.
        models: Folder with the trials' ONNX files.
        attrs: The study's attributes.
        frozen: Its trials.

    Raises:
        StorageError: If another version of Paredown wrote it.
    """
    meta = attrs[META_KEY]
    if meta.get("version") != META_VERSION:
        raise StorageError(
            f"Study '{name}' must have version {META_VERSION}, but has {meta.get('version')}. "
            "It was written by another version of Paredown."
        )
    started = [trial for trial in frozen if trial.state is not TrialState.WAITING]
    trials = tuple(trial_record(trial) for trial in started)
    baseline = next((t for t in trials if t.is_baseline and t.state == "complete"), None)
    trials = with_later_latencies(trials, baseline, attrs)
    return StudyRecord(
        name=name,
        task=meta["task"],
        metric_name=meta["metric_name"],
        higher_is_better=meta["higher_is_better"],
        profile=HardwareProfile.from_toml(meta["profile"], source=f"study '{name}'"),
        threads=meta["threads"],
        settings=_settings_from_json(meta["settings"]),
        baseline=baseline,
        trials=trials,
        storage=url,
        models_dir=str(models),
        task_digest=meta["task_digest"],
        validation_digest=meta["validation_digest"],
        space_digest=meta["space_digest"],
        other_profiles=tuple(
            HardwareProfile.from_toml(text, source=f"study '{name}'")
            for text in meta.get("other_profiles", ())
        ),
    )


def describe(record: StudyRecord) -> dict[str, object]:
    """Return what is kept of a study itself; `study_record` reads it."""
    return {
        "version": META_VERSION,
        "task": record.task,
        "metric_name": record.metric_name,
        "higher_is_better": record.higher_is_better,
        "profile": record.profile.to_toml(),
        "threads": record.threads,
        "settings": json.loads(json.dumps(asdict(record.settings))),
        "task_digest": record.task_digest,
        "validation_digest": record.validation_digest,
        "space_digest": record.space_digest,
        "other_profiles": [profile.to_toml() for profile in record.other_profiles],
    }


def _settings_from_json(settings: Mapping[str, Any]) -> StudySettings:
    values = dict(settings)
    for name in ("weight_bits", "activation_bits", "exclude", "objectives"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    if not isinstance(values.get("tie", ""), str):
        values["tie"] = tuple(tuple(patterns) for patterns in values["tie"])
    values["rules"] = tuple(_rule_from_json(rule) for rule in values.get("rules", ()))
    values["constraints"] = Constraints(**values["constraints"])
    values["reference"] = Reference(**values.get("reference", {}))
    return StudySettings(**values)


def _rule_from_json(rule: Mapping[str, Any]) -> LayerRule:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in rule.items()}
    return LayerRule(**values)
