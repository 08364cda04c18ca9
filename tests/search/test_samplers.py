from __future__ import annotations

import optuna
import pytest

from paredown.search.guided import GuidedSampler
from paredown.search.samplers import DEFAULT_SAMPLER, list_samplers, make_sampler


def run(name: str, seed: int, n_trials: int = 11) -> list[dict[str, int]]:
    """Run a study of three objectives with a constraint, and return the parameters.

    The first ten trials are random with most samplers; only the rest are modelled.
    """
    study = optuna.create_study(directions=["minimize"] * 3, sampler=make_sampler(name, seed))
    for _ in range(n_trials):
        trial = study.ask()
        x = trial.suggest_int("keep/conv", 8, 64, step=8)
        y = trial.suggest_int("weight_bits/conv", 0, 7)
        trial.set_constraint("accuracy", y - 5)
        study.tell(trial, (x, y, -x * y))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "gp" else n for n in list_samplers()],
)
def test_every_sampler_runs_and_repeats_itself(name: str) -> None:
    first = run(name, seed=1)
    assert first == run(name, seed=1)
    assert first != run(name, seed=2)


def test_the_default_comes_first() -> None:
    assert list_samplers()[0] == DEFAULT_SAMPLER
    assert isinstance(make_sampler(), GuidedSampler)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`sampler` must be one of \('guided', .*but got 'grid'"):
        make_sampler("grid")
