from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest

from paredown.search.guided import ESTIMATES_KEY, GuidedSampler
from paredown.search.pareto import hypervolume

N = 8  # parameters of the discrete problem
Objective = Callable[[optuna.Trial], Sequence[float]]


def zdt1(trial: optuna.Trial) -> tuple[float, float]:
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(6)])
    g = 1 + 9 * x[1:].mean()
    return float(x[0]), float(g * (1 - np.sqrt(x[0] / g)))


def dtlz2(trial: optuna.Trial) -> tuple[float, float, float]:
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(6)])
    g = 1 + ((x[2:] - 0.5) ** 2).sum()
    a, b = x[0] * np.pi / 2, x[1] * np.pi / 2
    return (
        float(g * np.cos(a) * np.cos(b)), float(g * np.cos(a) * np.sin(b)), float(g * np.sin(a)),
    )  # fmt: skip


WEIGHTS = np.linspace(1.0, 3.0, N)


def widths(trial: optuna.Trial) -> tuple[float, float, float]:
    """A loss, a size and a time that go with bits, each with weights of its own."""
    bits = np.array([trial.suggest_int(f"b{i}", 2, 8) for i in range(N)])
    loss = float((2.0 ** (-1.5 * bits) * WEIGHTS[::-1]).sum())
    return loss, float((bits * WEIGHTS).sum()), float((bits**0.5).sum() + bits[0])


def prior(names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Know the loss up to its scale, and the size but for the weights."""
    order = [int(name[1:]) for name in names]
    loss = (2.0 ** (-1.5 * values) * WEIGHTS[::-1][order]).sum(axis=1)
    return np.stack([7.0 * loss, values.sum(axis=1).astype(float)], axis=1)


def search(
    sampler: optuna.samplers.BaseSampler, objective: Objective, n_trials: int, n_objectives: int
) -> optuna.Study:
    study = optuna.create_study(directions=["minimize"] * n_objectives, sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def volume(study: optuna.Study, reference: Sequence[float]) -> float:
    return hypervolume([t.values for t in study.trials if t.values], reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "reference"), [(zdt1, (1.1, 6.0)), (dtlz2, (1.5, 1.5, 1.5))]
)
def test_it_beats_a_random_search(objective: Objective, reference: Sequence[float]) -> None:
    n = len(reference)
    sampler = GuidedSampler(seed=0, reference=reference)
    ours = volume(search(sampler, objective, 40, n), reference)
    random = optuna.samplers.RandomSampler(seed=0)
    assert ours > volume(search(random, objective, 50, n), reference)


@pytest.mark.slow
def test_a_prior_helps() -> None:
    reference = (0.5, 8 * WEIGHTS.sum(), 40.0)
    found = {}
    for name, known in (("with", prior), ("without", None)):
        runs = [search(GuidedSampler(seed, known, reference), widths, 25, 3) for seed in range(3)]
        found[name] = [volume(run, reference) for run in runs]
    assert min(found["with"]) > max(found["without"])


def test_seeds_decide() -> None:
    first, again, other = (
        [t.params for t in search(GuidedSampler(seed, prior), widths, 6, 3).trials]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_nothing_is_suggested_twice() -> None:
    def small(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_int("x", 0, 3), trial.suggest_int("y", 0, 3)
        return float(x - y), float(y - x * 2)

    study = search(GuidedSampler(0, n_startup_trials=3), small, 3, 2)
    start = {tuple(t.params.values()) for t in study.trials}
    study.optimize(small, n_trials=16 - len(start))
    assert len({tuple(t.params.values()) for t in study.trials}) == 16


@pytest.mark.slow
def test_constraints_are_heeded() -> None:
    def bounded(trial: optuna.Trial) -> tuple[float, float, float]:
        found = widths(trial)
        trial.set_constraint("size", found[1] - 50.0)  # a sixth of all candidates
        return found

    study = search(GuidedSampler(0), bounded, 40, 3)
    share = [all(v <= 0 for v in t.constraints.values()) for t in study.trials]
    assert np.mean(share[10:]) > 2 * np.mean(share[:10]) or np.mean(share[10:]) > 0.6


def test_reference_sets_the_region() -> None:
    # Only points with a size below 60, of 32 to 128, count.
    reference = (3.0, 60.0, 40.0)
    sampler = GuidedSampler(0, prior, reference)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    for bits in (2, 3, 8):
        study.enqueue_trial({f"b{i}": bits for i in range(N)})
    study.optimize(widths, n_trials=15)
    sizes = [t.values[1] for t in study.trials[3:]]
    assert np.median(sizes) < 60.0
    with pytest.raises(ValueError, match="a value for each of the 3 objectives, but has 2"):
        search(GuidedSampler(0, prior, (1.0, 2.0)), widths, 4, 3)


def after_a_stopped_trial(guess: float) -> list[list[float]]:
    """Return the values of what is suggested where a trial's size alone is known."""
    sampler = GuidedSampler(0, prior)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    for bits in (2, 8, 5):
        study.enqueue_trial({f"b{i}": bits for i in range(N)})
    for _ in range(3):
        trial = study.ask()
        found = widths(trial)
        if trial.params["b0"] == 5:
            trial.set_user_attr(ESTIMATES_KEY, [None, found[1], None])
            trial.set_constraint("bound", guess)
            found = (guess, found[1], guess)
        else:
            trial.set_constraint("bound", -1.0)
        study.tell(trial, found)
    study.optimize(widths, n_trials=3)
    return [t.values for t in study.trials[3:]]


def test_guesses_at_stopped_trials_do_not_count() -> None:
    assert after_a_stopped_trial(1e-6) == after_a_stopped_trial(30.0)


def test_running_trials_are_not_repeated() -> None:
    study = search(GuidedSampler(0, prior), widths, 4, 3)
    asked = []
    for _ in range(4):
        trial = study.ask()
        widths(trial)
        asked.append(tuple(trial.params.values()))
    assert len(set(asked)) == 4
