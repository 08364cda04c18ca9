import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import optuna
import pytest
from onnx import TensorProto, helper

from paredown.search.rules import LayerRule
from paredown.studies.errors import StorageError
from paredown.studies.records import Constraints, StudyRecord, StudySettings, TrialRecord
from paredown.studies.storage import (
    create_study,
    has_study,
    list_studies,
    load_model,
    load_optuna_study,
    models_dir,
    open_storage,
    read_study,
    save_model,
    set_trial_attributes,
    sqlite_path,
    storage_url,
    trial_id_of,
)

NewRecord = Callable[..., StudyRecord]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/paredown.db"


def test_description_survives_the_round_trip(url: str, new_record: NewRecord) -> None:
    settings = StudySettings(
        seed=3,
        weight_bits=(4, 8),
        constraints=Constraints(0.9, 50.0, 1000),
        data_dir="/data",
        exclude=("head",),
        tie=(("a.*", "b"),),
        rules=(LayerRule("a", 0.5, (4,)),),
    )
    record = new_record([], settings=settings, task_digest="ab", space_digest="cd")

    create_study(open_storage(url), record)

    found = read_study(url, "digits")
    assert found == replace(record, storage=url, models_dir=str(models_dir(url)))


def test_study_without_description_counts_as_missing(url: str, new_record: NewRecord) -> None:
    storage = open_storage(url)
    optuna.create_study(
        storage=storage, study_name="digits", directions=["maximize", "minimize", "minimize"]
    )

    assert not has_study(storage, "digits")
    create_study(storage, new_record([]))
    assert has_study(storage, "digits")
    assert list_studies(storage) == ["digits"]


def test_trials_are_read_with_all_they_carry(
    url: str, new_record: NewRecord, synthetic_study: StudyRecord
) -> None:
    storage = open_storage(url)
    create_study(storage, new_record([]))
    study = load_optuna_study(storage, "digits", optuna.samplers.RandomSampler(seed=0))
    wanted = synthetic_study.trials[1]
    assert wanted.candidate is not None
    assert wanted.latency is not None
    study.ask()
    trial = study.ask()
    set_trial_attributes(
        storage,
        trial_id_of(storage, "digits", trial.number),
        {
            "candidate": wanted.candidate.to_json(),
            "accuracy": wanted.accuracy,
            "size_bytes": wanted.size_bytes,
            "coded_size_bytes": wanted.coded_size_bytes,
            "latency_us": wanted.latency_us,
            "latency_spread_us": wanted.latency_spread_us,
            "latency": wanted.latency.to_json(),
            "model_file": wanted.model_file,
            "seconds": wanted.seconds,
        },
    )
    trial.set_constraint("min_accuracy", -0.1)
    study.tell(trial, wanted.values)

    running, complete = read_study(url, "digits").trials

    assert running == TrialRecord(0, "running")
    assert complete == wanted


def test_broken_constraint_makes_a_trial_infeasible(url: str, new_record: NewRecord) -> None:
    storage = open_storage(url)
    create_study(storage, new_record([]))
    study = load_optuna_study(storage, "digits", optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    values = {"accuracy": 0.5, "size_bytes": 10, "latency_us": 1.0}
    set_trial_attributes(storage, trial_id_of(storage, "digits", trial.number), values)
    trial.set_constraint("min_accuracy", 0.4)
    study.tell(trial, list(values.values()))

    record = read_study(url, "digits")

    assert not record.trials[0].is_feasible
    assert record.front() == ()


def test_models_are_kept_beside_the_database(
    url: str, tmp_path: Path, new_record: NewRecord
) -> None:
    storage = open_storage(url)
    create_study(storage, new_record([]))
    study = load_optuna_study(storage, "digits", optuna.samplers.RandomSampler(seed=0))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "empty", [value], [value]))
    onnx.save(model, tmp_path / "model.onnx")

    identifier = save_model(storage, study.ask(), tmp_path / "model.onnx")

    record = read_study(url, "digits")
    trial = replace(record.trials[0], model_file=identifier)
    assert load_model(record, trial) == model
    assert (tmp_path / "paredown-models" / identifier).is_file()


def test_missing_model_file_is_named(tmp_path: Path, new_record: NewRecord) -> None:
    record = new_record([], models_dir=str(tmp_path))

    with pytest.raises(StorageError, match=r"trial 3 must be at .*gone', but is missing"):
        load_model(record, TrialRecord(3, "failed", model_file="gone"))


def test_broken_model_file_is_named(tmp_path: Path, new_record: NewRecord) -> None:
    (tmp_path / "broken").write_bytes(b"\xff" * 20)
    record = new_record([], models_dir=str(tmp_path))

    with pytest.raises(StorageError, match="broken' is broken"):
        load_model(record, TrialRecord(3, "failed", model_file="broken"))


def test_trial_without_model(new_record: NewRecord) -> None:
    with pytest.raises(StorageError, match=r"Trial 3 .* is failed and has no model"):
        load_model(new_record([]), TrialRecord(3, "failed"))


def test_models_folder_can_be_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models_dir(url) == tmp_path / "paredown-models"
    monkeypatch.setenv("PAREDOWN_MODELS", "/elsewhere")
    assert models_dir(url) == Path("/elsewhere")


def test_urls_and_paths() -> None:
    assert storage_url("my.db") == "sqlite:///my.db"
    assert storage_url("postgresql://host/db") == "postgresql://host/db"
    assert sqlite_path("sqlite:///my.db") == Path("my.db")
    assert sqlite_path("sqlite:////tmp/my.db") == Path("/tmp/my.db")
    assert sqlite_path("postgresql://host/db") is None


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "paredown.db"
    path.write_bytes(b"this is no database at all" * 100)

    with pytest.raises(StorageError, match="The file is corrupt"):
        open_storage(str(path))
    assert path.read_bytes().startswith(b"this is")


def test_truncated_database(url: str, tmp_path: Path, new_record: NewRecord) -> None:
    create_study(open_storage(url), new_record([]))
    path = tmp_path / "paredown.db"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(StorageError, match="corrupt"):
        read_study(url, "digits")


def test_database_of_something_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE studies (name TEXT)")

    with pytest.raises(StorageError, match="must be a sound database"):
        has_study(open_storage(str(tmp_path / "other.db")), "digits")


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="must exist, but does not"):
        read_study(str(tmp_path / "missing.db"), "digits")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_new_storage_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="needs the folder"):
        open_storage(str(tmp_path / "missing" / "paredown.db"))


def test_folder_is_no_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        open_storage(str(tmp_path))


def test_unknown_study_names_those_that_exist(url: str, new_record: NewRecord) -> None:
    create_study(open_storage(url), new_record([]))

    with pytest.raises(StorageError, match=r"Study 'other' must be in storage .*: 'digits'"):
        read_study(url, "other")


def test_unknown_kind_of_database() -> None:
    with pytest.raises(StorageError, match="nosuch"):
        open_storage("nosuch://host/db")


def test_password_is_not_shown() -> None:
    with pytest.raises(StorageError) as caught:
        open_storage("nosuch://me:secret@host/db")
    assert "secret" not in str(caught.value)
