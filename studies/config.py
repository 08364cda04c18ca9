"""The options of a study and the TOML file that may hold them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..hw_profiles.errors import ParedownError
from ..search.rules import LayerRule
from .records import Constraints, Reference, StudySettings

Location = tuple[str, ...]


class ConfigError(ParedownError):
    """Options of a study are wrong; the message has one line for each fault."""


class ConstraintOptions(BaseModel):
    """Bounds on the trials of the front; a trial outside them is kept, but not feasible."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_accuracy: float | None = None
    max_latency_us: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, gt=0)
    min_speedup: float | None = Field(default=None, gt=0)
    min_shrink: float | None = Field(default=None, gt=0)
    max_accuracy_drop: float | None = None


class ReferenceOptions(BaseModel):
    """What is of no use any more; the search looks for points better than it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    accuracy: float | None = None
    size_bytes: int | None = Field(default=None, gt=0)
    latency_us: float | None = Field(default=None, gt=0)


class LayerOptions(BaseModel):
    """Other limits for the layers that a pattern fits."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    match: str = Field(min_length=1)
    max_pruning_ratio: float | None = Field(default=None, ge=0, lt=1)
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = Field(default=None, min_length=1)
    include_float: bool | None = None


class SpaceOptions(BaseModel):
    """What the search may choose from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    criterion: str = "l2"
    accumulation_run: int | None = Field(default=None, ge=1, le=128)
    sparsity: float | str | None = None
    max_pruning_ratio: float = Field(default=0.75, ge=0, lt=1)
    weight_bits: tuple[int, ...] | None = Field(default=None, min_length=1)
    activation_bits: tuple[int, ...] | None = Field(default=None, min_length=1)
    include_float: bool = True
    exclude: tuple[str, ...] = ()
    tie: Literal["layer", "block", "stage"] | tuple[tuple[str, ...], ...] = "layer"
    layers: tuple[LayerOptions, ...] = ()


class StudyConfig(BaseModel):
    """All options of a study; the command line and a study file both end up here.

    `trials` counts the finished trials of the study over all its runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str = Field(min_length=1)
    study: str | None = Field(default=None, min_length=1)
    trials: int = Field(default=60, ge=1)
    timeout: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    storage: str = Field(default="sqlite:///paredown.db", min_length=1)
    profile: str | tuple[str, ...] = "local"
    threads: int | None = Field(default=None, ge=1)
    runtime: str = "tvm"
    objectives: tuple[str, ...] = ()
    sampler: str = "guided"
    early_stopping: bool = True
    data: str | None = None
    calibration: str | None = None
    accuracy: str | None = None
    shared_epochs: int | None = Field(default=None, ge=1)
    finetune_epochs: int | None = Field(default=None, ge=0)
    constraints: ConstraintOptions = ConstraintOptions()
    reference: ReferenceOptions = ReferenceOptions()
    space: SpaceOptions = SpaceOptions()

    @field_validator("storage")
    @classmethod
    def _no_memory(cls, value: str) -> str:
        if value in ("sqlite://", "sqlite:///:memory:", ":memory:"):
            raise ValueError("a study is kept on disk or in a database, not in memory")
        return value

    @field_validator("profile")
    @classmethod
    def _some_profile(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all((value,) if isinstance(value, str) else value):
            raise ValueError("a profile must have a name")
        return value

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of the study, one or several."""
        return (self.profile,) if isinstance(self.profile, str) else self.profile

    def settings(self) -> StudySettings:
        """Return the part that fixes what the study's numbers mean."""
        return StudySettings(
            seed=self.seed,
            runtime=self.runtime,
            objectives=self.objectives,
            sampler=self.sampler,
            early_stopping=self.early_stopping,
            data_dir=self.data,
            calibration=self.calibration or "default",
            accuracy=self.accuracy or "default",
            shared_epochs=self.shared_epochs,
            finetune_epochs=self.finetune_epochs,
            accumulation_run=self.space.accumulation_run,
            sparsity=None if self.space.sparsity is None else str(self.space.sparsity),
            criterion=self.space.criterion,
            max_pruning_ratio=self.space.max_pruning_ratio,
            weight_bits=self.space.weight_bits,
            activation_bits=self.space.activation_bits,
            include_float=self.space.include_float,
            exclude=self.space.exclude,
            tie=self.space.tie,
            rules=tuple(LayerRule(**rule.model_dump()) for rule in self.space.layers),
            constraints=Constraints(**self.constraints.model_dump()),
            reference=Reference(**self.reference.model_dump()),
        )


def make_config(options: Mapping[str, object], file: Path | None = None) -> StudyConfig:
    """Build the configuration of a study from options, and from a file that they override.

    Args:
        options: Nested like the file; values of None are left out.
        file: A study file in TOML.

    Raises:
        ConfigError: If the file cannot be read, or an option is unknown or wrong; a fault of the
            file is named with its line.
    """
    text = _read(file) if file is not None else ""
    values = _parse(text, file)
    lines = _key_lines(text)
    try:
        # Faults of the file first, with their lines, even where an option overrides the key.
        _Partial.model_validate(values)
        return StudyConfig.model_validate(_merge(_rebase(values, file), _without_none(options)))
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(dict(fault), lines, file) for fault in error.errors())
        ) from error


class _Partial(StudyConfig):
    """A study file on its own: the task may still come from the command line."""

    task: str = Field(default="-", min_length=1)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Study file '{file}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Study file '{file}' must be TOML in UTF-8: {error}.") from error


def _parse(text: str, file: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"Study file '{file}' must be valid TOML: {error}.") from error


def _rebase(values: dict[str, Any], file: Path | None) -> dict[str, Any]:
    # A path in a file is meant from where the file lies, so that the folder can move as a whole.
    if file is None:
        return values
    values = dict(values)
    task = values.get("task")
    if isinstance(task, str) and ".py:" in task:
        values["task"] = str(file.parent / task)
    if isinstance(values.get("data"), str):
        values["data"] = str(file.parent / values["data"])
    return values


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _without_none(options: Mapping[str, object]) -> dict[str, Any]:
    cleaned: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            value = _without_none(value) or None
        if value is not None:
            cleaned[key] = value
    return cleaned


def _key_lines(text: str) -> dict[Location, int]:
    """Return the line (from 1) on which each key of a TOML text is set.

    tomllib gives no positions. A text cut after any whole statement is valid TOML, so the keys
    that appear with a statement are the ones it sets; exact for nested and multi-line values.
    """
    found: dict[Location, int] = {}
    rows = text.splitlines(keepends=True)
    start = 0
    for end in range(1, len(rows) + 1):
        try:
            values = tomllib.loads("".join(rows[:end]))
        except tomllib.TOMLDecodeError:
            continue
        for location in _locations(values):
            found.setdefault(location, start + 1)
        start = end
    return found


def _locations(values: Mapping[str, Any], prefix: Location = ()) -> Iterator[Location]:
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from _locations(value, (*prefix, key))
        elif isinstance(value, list):  # of tables, or of plain values
            for place, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _locations(item, (*prefix, key, str(place)))


def _explain(fault: dict[str, Any], lines: Mapping[Location, int], file: Path | None) -> str:
    location: Location = tuple(part for part in fault["loc"] if isinstance(part, str))
    name = ".".join(location)
    row = lines.get(tuple(str(part) for part in fault["loc"]), lines.get(location))
    where = f"{file}:{row}: " if row is not None else ""
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."
        return f"{where}Unknown key `{name}`. {hint}"
    if fault["type"] == "missing":
        return f"`{name}` must be given, as an option or in a study file."
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}`{name}` is wrong: {reason}, but got {fault['input']!r}."


def _known_keys(parents: Location) -> list[str]:
    model: Any = StudyConfig
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        model = next(iter(get_args(annotation)), annotation)  # a list of tables, or a table
    return sorted(model.model_fields)
