"""Picks one trial of a study by an expression such as "accuracy>=0.97,min:latency_us"."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..hw_profiles.errors import ParedownError
from .records import StudyRecord, TrialRecord

GRAMMAR = (
    "Write conditions and at least one objective, with commas: `accuracy>=0.97,min:latency_us`. "
    "A condition is QUANTITY OP NUMBER with OP one of >=, <=, >, <, ==; an objective is "
    "min:QUANTITY or max:QUANTITY, and later ones break ties. QUANTITY is one of accuracy, "
    "size_bytes, latency_us, speedup, shrink, accuracy_drop (in points), peak_memory_bytes, "
    "energy_mj."
)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": lambda value, bound: math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12),
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|==|>|<)\s*(\S+)\s*")
_OBJECTIVE = re.compile(r"\s*(\w+)\s*:\s*(\w+)\s*")


class SelectionSyntaxError(ParedownError, ValueError):
    """A selection is not written as the grammar asks."""


class SelectionError(ParedownError):
    """No trial fits a selection."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound on one quantity."""

    quantity: str
    op: str
    bound: float

    def __str__(self) -> str:
        return f"{self.quantity}{self.op}{self.bound:g}"

    def holds(self, value: float) -> bool:
        """Say whether a value meets the bound."""
        return OPERATORS[self.op](value, self.bound)

    def violation(self, value: float) -> float:
        """Return how far a value misses the bound, relative to the bound's size; 0 if it holds."""
        if self.holds(value):
            return 0.0
        # The least positive number ranks a value on a strict bound behind one that meets it.
        return max(abs(value - self.bound) / (abs(self.bound) or 1.0), math.ulp(0.0))


@dataclass(frozen=True, slots=True)
class Objective:
    """A quantity to make small or large."""

    quantity: str
    is_maximized: bool

    def cost(self, value: float) -> float:
        """Return the value as something to minimise."""
        return -value if self.is_maximized else value


@dataclass(frozen=True, slots=True)
class Selection:
    """A parsed expression: every condition must hold, the first objective decides."""

    conditions: tuple[Condition, ...]
    objectives: tuple[Objective, ...]


def parse_selection(text: str) -> Selection:
    """Read a `--pick` expression.

    Args:
        text: Conditions and objectives, separated by commas; `GRAMMAR` has the form.

    Raises:
        SelectionSyntaxError: If a part has no such form, or no objective is given.
    """
    conditions: list[Condition] = []
    objectives: list[Objective] = []
    for token in text.split(","):
        part = _parse_token(token, text)
        if isinstance(part, Condition):
            conditions.append(part)
        else:
            objectives.append(part)
    if not objectives:
        raise SelectionSyntaxError(f"'{text}' must have an objective, but has none. {GRAMMAR}")
    return Selection(tuple(conditions), tuple(objectives))


def select_trial(
    record: StudyRecord, selection: Selection | str, *, all_trials: bool = False
) -> TrialRecord:
    """Return the trial that a selection picks.

    Args:
        record: The study.
        selection: What to pick, parsed or as an expression.
        all_trials: Choose among all complete trials instead of the front.

    Raises:
        SelectionSyntaxError: If the expression is wrong.
        SelectionError: If no trial meets the conditions; the message names the nearest one.
    """
    if isinstance(selection, str):
        selection = parse_selection(selection)
    trials = record.complete if all_trials else record.front()
    where = "complete trials" if all_trials else "points on the front"
    if not trials:
        raise SelectionError(
            f"Study '{record.name}' has no {where} to pick from. Run more trials first, or look "
            f"at `paredown front {record.name} --all`."
        )
    fitting = [
        trial
        for trial in trials
        if all(c.holds(quantity(record, trial, c.quantity)) for c in selection.conditions)
    ]
    if not fitting:
        raise SelectionError(_nearest_message(record, trials, selection, where))

    def costs(trial: TrialRecord) -> tuple[float, ...]:
        found = (o.cost(quantity(record, trial, o.quantity)) for o in selection.objectives)
        return (*found, trial.number)

    return min(fitting, key=costs)


def quantity(record: StudyRecord, trial: TrialRecord, name: str) -> float:
    """Return a quantity of a complete trial by its name in the grammar.

    Raises:
        SelectionError: If it compares with the baseline and the study has none.
    """
    return QUANTITIES[name](record, trial)


def _accuracy_drop(record: StudyRecord, trial: TrialRecord) -> float:
    baseline = record.baseline
    if baseline is None or baseline.state != "complete":
        raise _no_baseline(record, "accuracy_drop")
    drop = 100.0 * (baseline.values[0] - trial.values[0])
    # 0.97 - 0.965 is not 0.005 in binary: a drop that is 0.5 points in the table must pass as 0.5.
    return round(drop if record.higher_is_better else -drop, 9)


def _latency_us(record: StudyRecord, trial: TrialRecord) -> float:
    if trial.latency_us is None:
        raise SelectionError(
            f"`latency_us` needs a study with latencies. {record.why_no_latency} Select by "
            "accuracy or size_bytes instead."
        )
    return trial.latency_us


def _speedup(record: StudyRecord, trial: TrialRecord) -> float:
    speedup = record.speedup(trial)
    if speedup is None:
        _latency_us(record, trial)
        raise _no_baseline(record, "speedup")
    return speedup


def _shrink(record: StudyRecord, trial: TrialRecord) -> float:
    shrink = record.shrink(trial)
    if shrink is None:
        raise _no_baseline(record, "shrink")
    return shrink


def _beside_latency(field: str) -> Callable[[StudyRecord, TrialRecord], float]:
    def read(record: StudyRecord, trial: TrialRecord) -> float:
        value: float | None = getattr(trial.latency, field, None)
        if value is None:
            raise SelectionError(
                f"`{field}` of trial {trial.number} of study '{record.name}' is not known: the "
                "device does not tell it. Select by another quantity."
            )
        return value

    return read


def _no_baseline(record: StudyRecord, name: str) -> SelectionError:
    return SelectionError(
        f"`{name}` compares with the uncompressed model, but study '{record.name}' has no "
        "finished baseline. Select by accuracy, size_bytes or latency_us instead."
    )


QUANTITIES: dict[str, Callable[[StudyRecord, TrialRecord], float]] = {
    "accuracy": lambda _, trial: trial.values[0],
    "size_bytes": lambda _, trial: trial.values[1],
    "latency_us": _latency_us,
    "speedup": _speedup,
    "shrink": _shrink,
    "accuracy_drop": _accuracy_drop,
    "peak_memory_bytes": _beside_latency("peak_memory_bytes"),
    "energy_mj": _beside_latency("energy_mj"),
}


def _parse_token(token: str, text: str) -> Condition | Objective:
    if match := _CONDITION.fullmatch(token):
        name, op, number = match.groups()
        return Condition(_known(name, token), op, _number(number, token))
    if match := _OBJECTIVE.fullmatch(token):
        direction, name = match.groups()
        if direction not in ("min", "max"):
            raise SelectionSyntaxError(
                f"'{token.strip()}' must begin with min: or max:, but has '{direction}'. {GRAMMAR}"
            )
        return Objective(_known(name, token), direction == "max")
    found = (
        f"but '{token.strip()}' in '{text}' is neither"
        if token.strip()
        else (f"but '{text}' has an empty part")
    )
    raise SelectionSyntaxError(
        f"Each part must be a condition or an objective, {found}. {GRAMMAR}"
    )


def _known(name: str, token: str) -> str:
    if name in QUANTITIES:
        return name
    close = difflib.get_close_matches(name, QUANTITIES, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise SelectionSyntaxError(f"'{token.strip()}' names no known quantity.{hint} {GRAMMAR}")


def _number(text: str, token: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SelectionSyntaxError(
            f"'{token.strip()}' must compare with a finite number, but '{text}' is none. {GRAMMAR}"
        )
    return number


def _nearest_message(
    record: StudyRecord, trials: Sequence[TrialRecord], selection: Selection, where: str
) -> str:
    """Name the trial with the least sum of relative violations, and what it misses."""

    def total(trial: TrialRecord) -> float:
        return sum(c.violation(quantity(record, trial, c.quantity)) for c in selection.conditions)

    nearest = min(trials, key=lambda trial: (total(trial), trial.number))
    misses = []
    for condition in selection.conditions:
        value = quantity(record, nearest, condition.quantity)
        if not condition.holds(value):
            gap = abs(value - condition.bound)
            misses.append(f"{condition} fails by {gap:.4g} (it is {value:.6g})")
    accuracy, size, *_ = nearest.values
    latency = f", latency_us {nearest.latency_us:.1f}" if nearest.latency_us else ""
    return (
        f"None of the {len(trials)} {where} of study '{record.name}' meets "
        f"'{', '.join(map(str, selection.conditions))}'. The nearest is trial {nearest.number} "
        f"with accuracy {accuracy:.4f}, size_bytes {size:.0f}{latency}: "
        f"{'; '.join(misses)}. Relax the condition, or search further."
    )
