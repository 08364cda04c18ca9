"""What a measurement yields, and the error of one that failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..hw_profiles.errors import ParedownError

Reason = Literal[
    "model",
    "unavailable",
    "build",
    "load",
    "run",
    "timeout",
    "memory",
    "crash",
    "worker",
    "device",
]
"""Why an evaluation failed.

`model`: the file is no model that can be measured; `unavailable`: the runtime is not installed;
`build`, `load`, `run`: the runtime refused; `timeout`, `memory`: a limit was hit; `crash`: the
worker process died; `worker`: the worker process could not be started; `device`: a remote device
could not be reached or was lost, which says nothing about the candidate.
"""


class EvaluationError(ParedownError):
    """A candidate could not be built, run or timed.

    Attributes:
        reason: One word of `Reason`, for code that reacts to the kind of failure.
    """

    def __init__(self, message: str, reason: Reason = "run") -> None:
        if reason not in get_args(Reason):
            raise ValueError(f"`reason` must be one of {get_args(Reason)}, but got '{reason}'.")
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[type[EvaluationError], tuple[str, Reason], dict[str, Any]]:
        # The state carries the notes, among them the worker's traceback.
        return type(self), (str(self), self.reason), self.__dict__


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one inference, with all that is needed to judge and compare it.

    The machine drifts by tens of percent between windows, so compare candidates by `ratio`,
    whose two sides were timed within milliseconds of each other.
    """

    latency_us: float  # median over the rounds
    spread_us: float  # half the interquartile range over the rounds
    n_runs: int  # timed inferences of the candidate, over all rounds
    is_noisy: bool  # the confidence interval never became as narrow as the protocol asks
    threads: int
    baseline_us: float | None = None  # median of the baseline in the same window
    ratio: float | None = None  # candidate / baseline, median over the rounds
    notes: tuple[str, ...] = ()  # what may have spoiled it: governor, heat, other load
    peak_memory_bytes: int | None = None  # most that the process holds more with the model
    energy_mj: float | None = None  # of one inference; see `EnergyMeter` for what counts

    def __post_init__(self) -> None:
        for name in ("latency_us", "baseline_us", "ratio"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be finite and above 0, but got {value}.")
        if not (math.isfinite(self.spread_us) and self.spread_us >= 0):
            raise ValueError(f"`spread_us` must be finite and >= 0, but got {self.spread_us}.")
        if self.n_runs < 1 or self.threads < 1:
            raise ValueError(
                "`n_runs` and `threads` must be 1 or more, "
                f"but got {self.n_runs} and {self.threads}."
            )
        if (self.baseline_us is None) != (self.ratio is None):
            raise ValueError(
                "`baseline_us` and `ratio` must be given together, "
                f"but got {self.baseline_us} and {self.ratio}."
            )

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values, with a `version`."""
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Latency:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the version is unknown, or a field is missing, unknown or wrong.
        """
        if data.get("version") != 1:
            raise ValueError(
                f"Version of a latency record must be 1, but got {data.get('version')!r}."
            )
        values = {key: value for key, value in data.items() if key != "version"}
        if "peak_bytes" in values:  # as older records call it
            values["peak_memory_bytes"] = values.pop("peak_bytes")
        values.pop("energy_j", None)  # the same, without Jetsons and GPUs
        known = {field.name for field in fields(cls)}
        later = {"notes", "peak_memory_bytes", "energy_mj"}  # older records have not got these
        if values.keys() | later != known:
            odd = ", ".join(sorted((values.keys() | later) ^ known))
            raise ValueError(f"A latency record must have exactly its own fields, check: {odd}.")
        values["notes"] = tuple(values.get("notes", ()))  # type: ignore[arg-type]  # JSON
        try:
            return cls(**values)  # type: ignore[arg-type]  # `__post_init__` checks the values
        except TypeError as error:
            raise ValueError(
                f"A field of the latency record has a wrong type: {error}."
            ) from error
