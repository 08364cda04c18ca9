"""Studies in an Optuna storage: opening it, writing trials, reading them back as records.

The storage keeps everything: a study's attribute `paredown` says what its numbers mean (task,
profile, settings), each trial's attributes carry the candidate, its measures and the reason of a
failure (`record_json.py` translates). The ONNX files of the trials lie in Optuna's artifact store
beside the SQLite file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy.exc
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection

from ..evaluators.measurement import Latency
from .errors import StorageError
from .record_json import AGAIN_KEY, META_KEY, describe, study_record
from .records import StudyRecord, TrialRecord

if TYPE_CHECKING:
    import onnx

DEFAULT_STORAGE = "sqlite:///paredown.db"
MODELS_DIR_VARIABLE = "PAREDOWN_MODELS"
optuna.logging.set_verbosity(optuna.logging.WARNING)


def storage_url(storage: str) -> str:
    """Return the URL of a storage given as a URL or as the path of an SQLite file."""
    return storage if "://" in storage else f"sqlite:///{storage}"


def sqlite_path(url: str) -> Path | None:
    """Return the file behind an SQLite URL, None for any other storage."""
    scheme, _, path = url.partition("://")
    if scheme.split("+")[0] != "sqlite" or not path.startswith("/"):
        return None
    path = path[1:].partition("?")[0]
    return None if path in ("", ":memory:") else Path(path)


def models_dir(storage: str) -> Path:
    """Return the folder that holds the ONNX files of a storage's trials.

    It lies beside an SQLite file, so that the two move together; for other storages it is
    `paredown-models` in the working folder. `PAREDOWN_MODELS` names another one.
    """
    override = os.environ.get(MODELS_DIR_VARIABLE)
    if override:
        return Path(override)
    path = sqlite_path(storage_url(storage))
    return (path.parent if path is not None else Path()) / "paredown-models"


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what Optuna and SQLAlchemy raise about a storage into a `StorageError`."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        detail = str(getattr(cause, "orig", None) or cause or error).splitlines()[0]
        text = f"Storage '{_without_password(url)}' must be a sound database, but: {detail}."
        if "not a database" in detail or "malformed" in detail:
            text += " The file is corrupt: restore a copy, or name another one with --storage."
        elif "readonly" in detail or "unable to open" in detail:
            text += " Check the folder's permissions, or name another file with --storage."
        else:
            text += " Check the URL and that the database can be reached."
        raise StorageError(text) from error


def open_storage(storage: str, *, must_exist: bool = False) -> RDBStorage:
    """Open a storage, creating its tables when it is new.

    Args:
        storage: URL, or the path of an SQLite file.
        must_exist: Whether a missing SQLite file is an error instead of a new storage.

    Raises:
        StorageError: If it cannot be opened, is corrupt, or was made by another Optuna.
    """
    url = storage_url(storage)
    shown = _without_password(url)
    path = sqlite_path(url)
    if path is not None:
        _check_sqlite_file(path, must_exist)
    try:
        with storage_errors(url):
            return RDBStorage(url, engine_kwargs=_engine_options(path))
    except (ImportError, ValueError) as error:
        raise StorageError(f"Storage '{shown}' cannot be used: {error}") from error
    except RuntimeError as error:
        raise StorageError(
            f"Storage '{shown}' was written by another version of Optuna: {error}"
        ) from error


def list_studies(storage: RDBStorage) -> list[str]:
    """Return the names of all studies in a storage."""
    with storage_errors(storage.url):
        return sorted(study.study_name for study in storage.get_all_studies())


def has_study(storage: RDBStorage, name: str) -> bool:
    """Say whether a storage holds a study of that name with its description written."""
    with storage_errors(storage.url):
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            return False
        # A kill between a study's row and its description leaves an empty study: a new one.
        return META_KEY in storage.get_study_user_attrs(study_id)


def create_study(storage: RDBStorage, record: StudyRecord) -> None:
    """Add a study and its description; one that a kill left without description is completed.

    Args:
        storage: Where it goes.
        record: Describes the study; its trials are ignored.
    """
    first = StudyDirection.MAXIMIZE if record.higher_is_better else StudyDirection.MINIMIZE
    with storage_errors(storage.url):
        try:
            study_id = storage.get_study_id_from_name(record.name)
        except KeyError:
            directions = [first, *[StudyDirection.MINIMIZE] * (len(record.objectives) - 1)]
            study_id = storage.create_new_study(directions, record.name)
        storage.set_study_user_attr(study_id, META_KEY, describe(record))


def load_optuna_study(
    storage: RDBStorage,
    name: str,
    sampler: optuna.samplers.BaseSampler,
    objectives: Sequence[str] = ("accuracy", "size_bytes", "latency_us"),
) -> optuna.Study:
    """Return Optuna's own study object, with names for its objectives."""
    with storage_errors(storage.url):
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(objectives))
        return study


def read_study(storage: str | RDBStorage, name: str) -> StudyRecord:
    """Read a study as it stands.

    Args:
        storage: URL, path of an SQLite file, or a storage that is open already.
        name: The study's name.

    Raises:
        StorageError: If there is no such storage or study, or it is not one of Paredown.
    """
    opened = open_storage(storage, must_exist=True) if isinstance(storage, str) else storage
    if not has_study(opened, name):
        known = ", ".join(f"'{study}'" for study in list_studies(opened)) or "none"
        raise StorageError(
            f"Study '{name}' must be in storage '{_without_password(opened.url)}', which has: "
            f"{known}. Name another storage with --storage, or run `paredown search` first."
        )
    with storage_errors(opened.url):
        study_id = opened.get_study_id_from_name(name)
        attrs = opened.get_study_user_attrs(study_id)
        frozen = opened.get_all_trials(study_id, deepcopy=False)
    return study_record(name, opened.url, models_dir(opened.url), attrs, frozen)


def load_model(study: StudyRecord, trial: TrialRecord) -> onnx.ModelProto:
    """Read the ONNX model that a trial measured.

    Raises:
        StorageError: If the trial has no model, or its file is missing or broken.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if trial.model_file is None:
        raise StorageError(
            f"Trial {trial.number} of study '{study.name}' is {trial.state} and has no model. "
            "Pick a complete trial."
        )
    path = Path(study.models_dir) / trial.model_file
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(
            f"The model of trial {trial.number} must be at '{path}', but is missing. Keep the "
            f"folder beside the storage, or name it in {MODELS_DIR_VARIABLE}."
        ) from error
    except DecodeError as error:
        raise StorageError(f"The model file '{path}' is broken: {error}.") from error


def add_complete_trial(
    storage: RDBStorage,
    study_name: str,
    values: tuple[float, ...],
    attributes: Mapping[str, object],
    constraints: Mapping[str, float],
    model_file: Path,
) -> int:
    """Add a trial that no sampler has asked for, with its ONNX file, and return its number.

    It has no parameters: a sampler learns nothing from it, since its measures are not what its
    candidate would get in a search.
    """
    study = load_optuna_study(storage, study_name, optuna.samplers.RandomSampler())
    folder = models_dir(storage.url)
    folder.mkdir(parents=True, exist_ok=True)
    with storage_errors(storage.url):
        model = upload_artifact(
            artifact_store=FileSystemArtifactStore(folder),
            file_path=str(model_file),
            study_or_trial=study,
        )
        trial = study.ask()
        trial_id = trial_id_of(storage, study_name, trial.number)
        set_trial_attributes(storage, trial_id, {**attributes, "model_file": model})
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        study.tell(trial, values)
    return trial.number


def save_model(storage: RDBStorage, trial: optuna.Trial, model_file: Path) -> str:
    """Copy a trial's ONNX file into the artifact store and return its identifier.

    A trial names its file only once that is whole: the attribute and the trial's end come later.
    """
    folder = models_dir(storage.url)
    folder.mkdir(parents=True, exist_ok=True)
    return upload_artifact(
        artifact_store=FileSystemArtifactStore(folder),
        file_path=str(model_file),
        study_or_trial=trial,
        storage=storage,
    )


def set_trial_attributes(
    storage: BaseStorage, trial_id: int, attributes: Mapping[str, object]
) -> None:
    """Write several attributes of a running trial."""
    for key, value in attributes.items():
        storage.set_trial_user_attr(trial_id, key, value)


def trial_id_of(storage: BaseStorage, study_name: str, number: int) -> int:
    """Return the storage's identifier of a study's trial."""
    study_id = storage.get_study_id_from_name(study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def add_latencies(
    storage: BaseStorage, study_name: str, number: int, latencies: Sequence[Latency]
) -> None:
    """Keep a later measurement of a trial on all devices; its own attributes are closed."""
    study_id = storage.get_study_id_from_name(study_name)
    key = f"{AGAIN_KEY}{number}"
    known = storage.get_study_user_attrs(study_id).get(key, [])
    new = [latency.to_json() for latency in latencies]
    storage.set_study_user_attr(study_id, key, [*known, new])


def _check_sqlite_file(path: Path, must_exist: bool) -> None:
    if path.is_dir():
        raise StorageError(f"Storage '{path}' must be a file, but is a folder.")
    if path.exists():
        if not os.access(path, os.R_OK if must_exist else os.R_OK | os.W_OK):
            raise StorageError(
                f"Storage '{path}' must be {'readable' if must_exist else 'writable'}, but is "
                "not. Change its permissions, or name another file with --storage."
            )
        return
    if must_exist:
        raise StorageError(
            f"Storage '{path}' must exist, but does not. Run `paredown search` first, or name "
            "the storage with --storage."
        )
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(
            f"Storage '{path}' needs the folder '{folder}', which does not exist. Create it."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(
            f"Storage '{path}' needs a writable folder, but '{folder.resolve()}' is not. "
            "Name another file with --storage."
        )


def _engine_options(path: Path | None) -> dict[str, Any]:
    # Several processes may share one SQLite file: wait for a lock instead of failing.
    return {} if path is None else {"connect_args": {"timeout": 30}}


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{host}"
