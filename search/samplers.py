"""Samplers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from .guided import GuidedSampler

DEFAULT_SAMPLER = "guided"

# A study has some tens to hundreds of trials: with Optuna's default of 50, most of them would be
# the random first generation.
_POPULATION = 20

# Every trial has the same parameters, so none of these needs Optuna's handling of conditional
# ones (`group` of TPE). With several objectives TPE models each parameter by itself, which is
# Optuna's default.
_SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "guided": lambda seed: GuidedSampler(seed),
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=_POPULATION, seed=seed),
    "nsga3": lambda seed: NSGAIIISampler(population_size=_POPULATION, seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "qmc": lambda seed: QMCSampler(scramble=True, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def list_samplers() -> tuple[str, ...]:
    """Return the names `make_sampler` knows, the default first."""
    return tuple(_SAMPLERS)


def make_sampler(name: str = DEFAULT_SAMPLER, seed: int | None = None) -> BaseSampler:
    """Make a sampler for several objectives; all but "qmc" and "random" heed constraints.

    Args:
        name: "guided" (Gaussian processes with a prior, see `GuidedSampler`), "tpe" (density
            estimates), "nsga2" or "nsga3" (evolution), "gp" (Optuna's Gaussian process, slow
            beyond a hundred trials), "qmc" (even cover) or "random".
        seed: Seed of its random numbers; None takes a new one each time.

    Returns:
        An Optuna sampler. Constraints reach it through `Trial.set_constraint`.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _SAMPLERS:
        raise ValueError(f"`sampler` must be one of {list_samplers()}, but got '{name}'.")
    with warnings.catch_warnings():
        # NSGA-III and QMC announce themselves as experimental, which is no news to the user.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _SAMPLERS[name](seed)
