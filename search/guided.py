"""A sampler for few, expensive trials of several objectives, which can use what is known before.

Each objective is a Gaussian process over the parameters and over what a prior expects; the prior's
part is a straight line that trials correct, so a prior that only ranks candidates helps from the
first trial on. The next trial is the candidate that adds most hypervolume on average, among
neighbours and offspring of the front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from .boxes import Boxes
from .encoding import Encoding
from .gaussian_process import GaussianProcess, Hyperparameters, fit
from .pareto import is_pareto_optimal

Floats = NDArray[np.float64]
Prior = Callable[[Sequence[str], NDArray[np.int64]], Floats]
"""Expected costs `(n, n_costs)` from parameter names and values `(n, n_parameters)`.

There may be as many costs as objectives, or any other number; each should go up and down with an
objective, but its scale does not matter.
"""

ESTIMATES_KEY = "estimates"
"""Attribute of a trial that was stopped early: what was known of its objectives, or None each.

Where it is None, the trial's value is a guess.
"""

_MAX_TRAINING = 250  # trials that a process is made of
_REFIT_SHARE = 0.15  # more trials after which hyperparameters are looked for again
_N_FIRST, _N_SECOND, _N_ROUNDS, _N_KEPT = 400, 120, 2, 12
_POWERS = (1.0, 0.5, 0.25)  # of a prior's cost, of which one is nearest to a straight line
_LIMIT_MARGIN = 0.5  # beyond the reference point, in widths of the front


class GuidedSampler(BaseSampler):
    """Optuna sampler: expected hypervolume improvement with a prior.

    Args:
        seed: Of its random numbers.
        prior: What is expected of candidates; it needs integer parameters.
        reference: Objective values that are just of no use any more, in the directions of the
            study; None takes the worst values of the front. It sets the region of interest.
        n_startup_trials: Random trials without a prior. With one, the first trials are drawn
            from what the prior takes for the front.
    """

    def __init__(
        self,
        seed: int | None = None,
        prior: Prior | None = None,
        reference: Sequence[float] | None = None,
        n_startup_trials: int = 10,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)
        self._space = IntersectionSearchSpace()
        self._n_startup = n_startup_trials
        self._models: dict[str, _Fitted] = {}
        self.prior = prior
        self.reference = None if reference is None else tuple(reference)

    def reseed_rng(self) -> None:
        """Take new random numbers, in a process that is a copy of another."""
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all complete trials have, and more than one value."""
        space = self._space.calculate(study)
        return {name: d for name, d in space.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters that promise most."""
        if not search_space:
            return {}
        data = _read(study, search_space)
        n_needed = 2 if self.prior is not None else self._n_startup
        if np.isfinite(data.costs).all(axis=1).sum() < n_needed:
            return {}
        return data.encoding.decode(self._suggest(study, data))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that is not modelled."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _suggest(self, study: Study, data: _Data) -> Floats:
        is_full = np.isfinite(data.costs).all(axis=1)
        known = data.costs[is_full & data.is_feasible]
        front = known[is_pareto_optimal(known)] if len(known) else data.costs[is_full]
        low = front.min(axis=0)
        limit = self._limit(study, front)
        width = np.maximum(limit - low, 1e-12)
        # Far beyond the reference it does not matter how bad a trial is.
        scaled = np.minimum((data.costs - low) / width, 1.0 + _LIMIT_MARGIN)
        models = [
            self._model(f"objective {place}", data, scaled[:, place])
            for place in range(scaled.shape[1])
        ]
        bounds = [
            self._model(f"constraint {name}", data, _standard(values))
            for name, values in data.constraints.items()
        ]
        boxes = Boxes.above((known - low) / width, np.ones(len(low)))
        score = _Score(data.encoding, self.prior, models, bounds, boxes, bool(len(known)))
        best_rows = np.flatnonzero(is_full & data.is_feasible)
        if len(best_rows):
            best_rows = best_rows[is_pareto_optimal(data.costs[best_rows])]
        parents = data.points[best_rows] if len(best_rows) else data.points
        return self._search(data, parents, score)

    def _limit(self, study: Study, front: Floats) -> Floats:
        """Return the reference point in costs."""
        low, high = front.min(axis=0), front.max(axis=0)
        default: Floats = high + 0.05 * np.maximum(high - low, 1e-9 + 0.01 * np.abs(high))
        if self.reference is None:
            return default
        if len(self.reference) != len(low):
            raise ValueError(
                f"`reference` must have a value for each of the {len(low)} objectives, but has "
                f"{len(self.reference)}."
            )
        wanted = np.array(self.reference) * _signs(study)
        return np.where(wanted > low, wanted, default)  # nothing is better yet: take what there is

    def _model(self, name: str, data: _Data, values: Floats) -> _Model:
        """Return the model of one quantity; its hyperparameters are looked for now and then."""
        rows = np.flatnonzero(np.isfinite(values))
        if len(rows) > _MAX_TRAINING:
            # The best and the newest: bad old trials say little about the front.
            rank = np.argsort(np.argsort(np.nansum(data.costs[rows], axis=1)))
            rows = np.sort(rows[np.argsort(rank - 2 * rows)[:_MAX_TRAINING]])
        prior = None
        if self.prior is not None:
            prior = self.prior(data.encoding.names, data.encoding.values(data.points[rows]))
        transform = _Transform.fit(prior, values[rows])
        inputs = transform.inputs(data.encoding.inputs(data.points[rows]), prior)
        targets = transform.residual(values[rows], prior)
        fitted = self._models.get(name)
        shape = inputs.shape[1]
        if fitted is None or fitted.hyperparameters.lengths.shape != (shape,):
            fitted = _Fitted(fit(inputs, targets, Hyperparameters.initial(shape)), len(rows))
        elif len(rows) >= fitted.n_trials * (1 + _REFIT_SHARE) and data.may_refit():
            fitted = _Fitted(fit(inputs, targets, fitted.hyperparameters, 12), len(rows))
        self._models[name] = fitted
        return _Model(transform, GaussianProcess(inputs, targets, fitted.hyperparameters))

    def _search(self, data: _Data, parents: Floats, score: _Score) -> Floats:
        """Return the best unseen candidate among offspring of the front and their neighbours."""
        rng, encoding = self._rng, data.encoding
        seen = set(encoding.keys(data.points))

        def unseen(points: Floats) -> Floats:
            fresh: dict[bytes, int] = {}
            for place, key in enumerate(encoding.keys(points)):
                if key not in seen:
                    fresh.setdefault(key, place)
            return points[list(fresh.values())]

        def draw(count: int) -> Floats:
            return parents[rng.integers(0, len(parents), count)]

        near = encoding.mutate(rng, draw(_N_FIRST // 2), 2.0)
        mixed = np.where(
            rng.random((_N_FIRST // 4, len(encoding))) < 0.5,
            draw(_N_FIRST // 4),
            draw(_N_FIRST // 4),
        )
        far = encoding.mutate(rng, draw(_N_FIRST // 8), 0.3 * len(encoding) + 1.0)
        anywhere = encoding.random(rng, _N_FIRST // 8)
        pool = unseen(np.concatenate([near, encoding.mutate(rng, mixed, 1.0), far, anywhere]))
        if not len(pool):
            return np.asarray(encoding.random(rng, 1)[0])
        gains = score(pool)
        for _ in range(_N_ROUNDS):
            best = pool[np.argsort(-gains, kind="stable")[:_N_KEPT]]
            more = encoding.mutate(rng, best[rng.integers(0, len(best), _N_SECOND)], 1.3)
            more = unseen(more)
            if len(more):
                pool = np.concatenate([pool, more])
                gains = np.concatenate([gains, score(more)])
        return np.asarray(pool[int(np.argmax(gains))])


@dataclass
class _Data:
    """The trials of a study as arrays; what is not known is NaN."""

    encoding: Encoding
    points: Floats
    costs: Floats
    is_feasible: NDArray[np.bool_]
    constraints: dict[str, Floats]
    _n_refits: int = 0

    def may_refit(self) -> bool:
        """Allow one refit for each suggestion, so that none takes long."""
        self._n_refits += 1
        return self._n_refits == 1


def _signs(study: Study) -> Floats:
    is_max = [direction is StudyDirection.MAXIMIZE for direction in study.directions]
    return np.where(is_max, -1.0, 1.0)


def _read(study: Study, space: Mapping[str, BaseDistribution]) -> _Data:
    """Read complete trials, what is known of stopped ones, and the parameters of all others.

    Where not all is known of a stopped trial, its constraints rest on guesses and tell nothing.
    """
    encoding = Encoding(space)
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state is not TrialState.WAITING
        and all(n in trial.params and space[n]._contains(space[n].to_internal_repr(v))
                for n, v in trial.params.items() if n in space)
        and space.keys() <= trial.params.keys()
    ]  # fmt: skip
    signs = _signs(study)
    rows: list[Sequence[float | None]] = [
        trial.user_attrs.get(ESTIMATES_KEY, trial.values)
        if trial.state is TrialState.COMPLETE
        else [None] * len(signs)
        for trial in trials
    ]
    # None becomes NaN.
    costs = np.array(rows, np.float64).reshape(len(trials), len(signs)) * signs
    is_full = np.isfinite(costs).all(axis=1)
    names = sorted({name for trial in trials for name in trial.constraints})
    constraints = {
        name: np.where(is_full, [t.constraints.get(name, np.nan) for t in trials], np.nan)
        for name in names
    }
    is_feasible = np.array(
        [all(value <= 0.0 for value in trial.constraints.values()) for trial in trials], np.bool_
    )
    return _Data(
        encoding, encoding.encode([t.params for t in trials]), costs, is_feasible, constraints
    )


def _standard(values: Floats) -> Floats:
    """Scale a constraint: its sign says whether it holds, so 0 stays where it is."""
    scale = np.nanstd(values)
    return np.clip(values / (scale if scale > 0 else 1.0), -3.0, 3.0)


@dataclass(frozen=True)
class _Fitted:
    hyperparameters: Hyperparameters
    n_trials: int


@dataclass(frozen=True)
class _Transform:
    """A straight line through the prior, and how inputs and targets are scaled.

    Attributes:
        powers: Of each cost of the prior.
        low, width: Range of the powers among the trials.
        line: Coefficients of the powers, the constant last.
        scale: Of the residual.
    """

    powers: tuple[float, ...]
    low: Floats
    width: Floats
    line: Floats
    scale: float

    @classmethod
    def fit(cls, prior: Floats | None, values: Floats) -> _Transform:
        """Fit a line; each cost enters with the power that goes best with the values."""
        if prior is None:
            line = np.array([values.mean()])
            scale = max(float(values.std()), 1e-6)
            return cls((), np.empty(0), np.empty(0), line, scale)
        powers = tuple(_best_power(column, values) for column in prior.T)
        raised = np.maximum(prior, 0.0) ** np.array(powers)
        low = raised.min(axis=0)
        width = np.maximum(np.ptp(raised, axis=0), 1e-12)
        design = np.column_stack([(raised - low) / width, np.ones(len(values))])
        # A weak pull to a flat line: with few trials the line must not run away.
        pull = 0.05 * np.diag(np.append(np.ones(len(low)), 0.0))
        line = np.linalg.solve(
            design.T @ design + pull + 1e-9 * np.eye(len(pull)), design.T @ values
        )
        residual = values - design @ line
        return cls(powers, low, width, line, max(float(residual.std()), 1e-6))

    def inputs(self, points: Floats, prior: Floats | None) -> Floats:
        """Return what the process sees."""
        if prior is None:
            return points
        return np.concatenate([points, self._raised(prior)], axis=1)

    def mean(self, prior: Floats | None, n_points: int) -> Floats:
        """Return the line's value."""
        if prior is None:
            return np.full(n_points, self.line[0])
        return np.asarray(self._raised(prior) @ self.line[:-1] + self.line[-1])

    def residual(self, values: Floats, prior: Floats | None) -> Floats:
        """Return what the line leaves, scaled."""
        return (values - self.mean(prior, len(values))) / self.scale

    def _raised(self, prior: Floats) -> Floats:
        raised = np.maximum(prior, 0.0) ** np.array(self.powers)
        return np.asarray((raised - self.low) / self.width)


def _best_power(costs: Floats, values: Floats) -> float:
    """Return the power of a prior's cost that is nearest to a straight line."""
    shares = [_correlation(np.maximum(costs, 0.0) ** power, values) for power in _POWERS]
    return _POWERS[int(np.argmax(shares))]


def _correlation(one: Floats, other: Floats) -> float:
    spread = one.std() * other.std()
    return (
        0.0
        if spread <= 0
        else abs(float(((one - one.mean()) * (other - other.mean())).mean() / spread))
    )


@dataclass(frozen=True)
class _Model:
    transform: _Transform
    process: GaussianProcess

    def predict(self, points: Floats, prior: Floats | None) -> tuple[Floats, Floats]:
        """Return mean and deviation in the scale of the values."""
        mean, deviation = self.process.predict(self.transform.inputs(points, prior))
        line = self.transform.mean(prior, len(points))
        return line + self.transform.scale * mean, self.transform.scale * deviation


@dataclass(frozen=True)
class _Score:
    """How much a candidate promises."""

    encoding: Encoding
    prior: Prior | None
    objectives: Sequence[_Model]
    constraints: Sequence[_Model]
    boxes: Boxes
    has_feasible: bool

    def __call__(self, points: Floats) -> Floats:
        """Return the expected improvement times how likely the constraints are met."""
        prior = None
        if self.prior is not None:
            prior = self.prior(self.encoding.names, self.encoding.values(points))
        inputs = self.encoding.inputs(points)
        found = [model.predict(inputs, prior) for model in self.objectives]
        means = np.stack([mean for mean, _ in found], axis=1)
        deviations = np.stack([deviation for _, deviation in found], axis=1)
        # While nothing is feasible, what is likely to be comes first, whatever its objectives.
        score = (
            self.boxes.expected_improvement(means, deviations)
            if self.has_feasible
            else np.ones(len(points))
        )
        for model in self.constraints:
            mean, deviation = model.predict(inputs, prior)
            score = score * ndtr(-mean / np.maximum(deviation, 1e-9))
        return score
