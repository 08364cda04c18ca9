import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from paredown.studies.records import StudyRecord
from paredown.studies.storage import (
    create_study,
    load_optuna_study,
    open_storage,
    set_trial_attributes,
    trial_id_of,
)

RunCli = Callable[..., Any]


@pytest.fixture
def storage(tmp_path: Path, synthetic_study: StudyRecord) -> str:
    """A storage with the first trials of the synthetic study."""
    url = f"sqlite:///{tmp_path}/paredown.db"
    opened = open_storage(url)
    create_study(opened, synthetic_study)
    study = load_optuna_study(opened, "digits", optuna.samplers.RandomSampler(seed=0))
    for wanted in synthetic_study.trials[:6]:
        assert wanted.candidate is not None
        assert wanted.latency is not None
        trial = study.ask()
        attributes = {
            "candidate": wanted.candidate.to_json(),
            "accuracy": wanted.accuracy,
            "size_bytes": wanted.size_bytes,
            "coded_size_bytes": wanted.coded_size_bytes,
            "latency_us": wanted.latency_us,
            "latency_spread_us": wanted.latency_spread_us,
            "latency": wanted.latency.to_json(),
            "is_baseline": wanted.is_baseline,
        }
        set_trial_attributes(opened, trial_id_of(opened, "digits", trial.number), attributes)
        study.tell(trial, wanted.values)
    return url


def test_json(run_cli: RunCli, storage: str) -> None:
    answer = run_cli("front", "digits", "--storage", storage, "--format", "json", "--all")

    front = json.loads(answer.out)
    assert answer.status == 0
    assert front["study"] == "digits"
    assert len(front["trials"]) == 6
    assert front["baseline"]["speedup"] == 1.0


def test_csv(run_cli: RunCli, storage: str) -> None:
    answer = run_cli("front", "digits", "--storage", storage, "--format", "csv")

    assert answer.out.startswith("trial,state,")


def test_table(run_cli: RunCli, storage: str) -> None:
    answer = run_cli("front", "digits", "--storage", storage)

    assert "uncompressed" in answer.out
    assert answer.err == ""


def test_unknown_study(run_cli: RunCli, storage: str) -> None:
    answer = run_cli("front", "other", "--storage", storage)

    assert answer.status == 1
    assert "which has: 'digits'" in answer.err
