"""Compare samplers: hypervolume against trials, on a table whose true front is known.

    python tests/benchmarks/search.py --trials 500 --seeds 5 -o search.json

measures the table once (a quarter of an hour), then lets each sampler choose among its candidates.
Hypervolumes are shares of that of the true front. All begin with the uniform widths of 8, 7 and 4
bits. "guided" has what a study would know: sensitivities, and a latency model of ten probes.
The curves go to the JSON file and, as a page of plots, beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import plotly.graph_objects as go  # type: ignore[import-untyped]  # plotly has no types
from numpy.typing import NDArray

from paredown.search.guided import GuidedSampler
from paredown.search.knowledge.latency_model import LatencyModel, LatencySample
from paredown.search.knowledge.prior import SpacePrior
from paredown.search.knowledge.warm_starts import knapsack_front, spread
from paredown.search.pareto import hypervolume_history
from paredown.search.samplers import make_sampler
from paredown.studies.tasks.cache import cache_dir

if TYPE_CHECKING:
    from tests.benchmarks.search_table import Table, load_table
else:  # run as a script, this folder is where modules are looked for
    from search_table import Table, load_table

Floats = NDArray[np.float64]
Prior = Callable[[Sequence[str], NDArray[np.int64]], Floats]

N_WARM = 12
CHECKPOINTS = (25, 50, 100, 200, 500)
UNIFORM_BITS = (8, 7, 4)
# Optuna's GP takes seconds for each of its later trials, and ours is to be good early.
LIMITS = {"gp": 100, "guided": 200, "guided-alone": 200}
SAMPLERS = ("guided", "random", "nsga2", "tpe", "guided-alone", "gp")


def make_prior(table: Table) -> SpacePrior:
    """Return what a study knows before its first trial."""
    latency = LatencyModel(table.space, table.baseline_us)
    for row in table.probes:
        candidate = table.space.from_params(row.params)
        latency.add(LatencySample(candidate, row.times, row.latency_us))
    return SpacePrior(table.space, table.sensitivities, [latency], table.size_offset)


def run(
    table: Table, name: str, seed: int, n_trials: int, fixed: dict[str, int] | None = None
) -> tuple[Floats, list[float]]:
    """Let a sampler choose, and return the costs and the seconds of each suggestion."""
    fixed = fixed or {}
    reference = table.reference
    prior = _fixed(make_prior(table), table, fixed)
    if name.startswith("guided"):
        use = prior if name == "guided" else None
        sampler: optuna.samplers.BaseSampler = GuidedSampler(seed, use, reference.tolist())
    else:
        sampler = make_sampler(name, seed)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    for params in _first(table, fixed, prior if name == "guided" else None, seed):
        study.enqueue_trial(params)
    seconds: list[float] = []
    costs = []
    for _ in range(n_trials):
        start = time.perf_counter()
        trial = study.ask()
        params = {
            n: fixed[n] if n in fixed else trial.suggest_int(n, v[0], v[-1], step=v[1] - v[0])
            for n, v in table.options.items()
        }
        seconds.append(time.perf_counter() - start)
        found = table.costs(np.array([[params[n] for n in table.names]]))[0]
        costs.append(found)
        study.tell(trial, found.tolist())
    return np.array(costs), seconds


def _first(
    table: Table, fixed: dict[str, int], prior: Prior | None, seed: int
) -> list[dict[str, int]]:
    """Return the uniform widths, and with a prior a spread of its front."""
    space = table.space
    planned = [space.params(space.uniform(bits)) for bits in UNIFORM_BITS]
    if prior is not None:
        options = {n: v for n, v in table.options.items() if n not in fixed}
        names = list(options)
        values, costs = knapsack_front(options, prior, seed)
        known = prior(names, np.array([[p[n] for n in names] for p in planned]))
        for place in spread(costs, known, N_WARM):
            planned.append(dict(zip(names, values[place].tolist(), strict=True)))
    return [{n: v for n, v in params.items() if n not in fixed} for params in planned]


def _fixed(prior: SpacePrior, table: Table, fixed: dict[str, int]) -> Prior:
    """Return the prior of the parameters that are not fixed."""

    def call(names: Sequence[str], values: NDArray[np.int64]) -> Floats:
        columns = {name: values[:, place] for place, name in enumerate(names)}
        full = [columns.get(n, np.full(len(values), fixed.get(n, 0))) for n in table.names]
        return prior(table.names, np.stack(full, axis=1))

    return call


def history(table: Table, costs: Floats, total: float) -> list[float]:
    """Return the hypervolume after each trial, as a share of the true front's."""
    shares = hypervolume_history(costs, table.reference) / float(np.prod(table.reference))
    return [float(share) for share in shares / total]


def compare(table: Table, names: Sequence[str], n_seeds: int, n_trials: int) -> dict[str, Any]:
    """Run the samplers and print medians and quartiles at some numbers of trials."""
    total = table.hypervolume(table.true_front())
    result: dict[str, Any] = {"true_hypervolume": total, "samplers": {}}
    print(f"{'sampler':14}" + "".join(f"{n:>24}" for n in CHECKPOINTS) + "   ms per trial at 200")
    for name in names:
        curves, pace = [], []
        count = min(n_trials, LIMITS.get(name, n_trials))
        for seed in range(n_seeds):
            costs, seconds = run(table, name, seed, count)
            curves.append(history(table, costs, total))
            pace.append(float(np.median(seconds[max(0, min(count, 210) - 20) : 210])))
        result["samplers"][name] = {"hypervolume": curves, "seconds_per_suggestion": pace}
        cells = ""
        for checkpoint in CHECKPOINTS:
            if checkpoint <= count:
                low, mid, high = np.quantile(
                    [c[checkpoint - 1] for c in curves], (0.25, 0.5, 0.75)
                )
                cells += f"{mid:9.4f} [{low:.4f} {high:.4f}]".rjust(24)
            else:
                cells += " " * 24
        print(f"{name:14}{cells}{1e3 * np.median(pace):12.0f}", flush=True)
    return result


def compare_spaces(table: Table, n_seeds: int, n_trials: int) -> dict[str, Any]:
    """Search pruning alone (at 8 bits), widths alone, and both, with equal trials."""
    total = table.hypervolume(table.true_front())
    largest = {name: values[-1] for name, values in table.options.items()}
    kinds = {
        "pruning": {n: v for n, v in largest.items() if n.startswith("weight_bits/")},
        "widths": {n: v for n, v in largest.items() if n.startswith("keep/")},
        "both": {},
    }
    costs = {
        kind: [run(table, "guided", seed, n_trials, fixed)[0] for seed in range(n_seeds)]
        for kind, fixed in kinds.items()
    }
    result: dict[str, Any] = {}
    print(f"\nwhat is searched, {n_trials} trials; last: share dominated by the joint front")
    for kind, runs in costs.items():
        shares = [history(table, run_costs, total)[-1] for run_costs in runs]
        beaten = [
            _share_dominated(one, joint, table.reference)
            for one, joint in zip(runs, costs["both"], strict=True)
        ]
        result[kind] = {"hypervolume": shares, "share_dominated_by_both": beaten}
        low, mid, high = np.quantile(shares, (0.25, 0.5, 0.75))
        print(f"{kind:14}{mid:9.4f} [{low:.4f} {high:.4f}]{np.median(beaten):9.2f}")
    return result


def _share_dominated(one: Floats, joint: Floats, reference: Floats) -> float:
    """Return the share of the points that count which the other set equals or dominates."""
    inside = one[(one < reference).all(axis=1)]
    # Differences below what a measurement can tell do not count.
    slack = 1.0 + np.array([0.0, 0.001, 0.005])
    allowed = np.array([5e-4, 0.0, 0.0])
    covered = [(joint <= point * slack + allowed).all(axis=1).any() for point in inside]
    return float(np.mean(covered)) if covered else 1.0


def plot(result: dict[str, Any], file: Path) -> None:
    """Write the curves of hypervolume, a list for each seed of each sampler, as a page."""
    figure = go.Figure()
    for place, (name, found) in enumerate(result["samplers"].items()):
        curves = np.array(found["hypervolume"])
        trials = np.arange(1, curves.shape[1] + 1)
        low, mid, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
        color = f"hsl({60 * place % 360}, 60%, 45%)"
        figure.add_scatter(x=trials, y=mid, name=name, line={"color": color})
        band = np.concatenate([high, low[::-1]])
        figure.add_scatter(
            x=np.concatenate([trials, trials[::-1]]), y=band, fill="toself", opacity=0.15,
            line={"width": 0}, fillcolor=color, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(
        xaxis={"title": "trials", "type": "log"},
        yaxis={"title": "hypervolume"},
        template="plotly_white",
    )
    figure.write_html(file, include_plotlyjs=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--profile", default="x86-64-v3")
    parser.add_argument("--table", type=Path, help="file of the table; default: in the cache")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--spaces-trials", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("search.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = f"search-{arguments.task}-{arguments.profile}.json"
    file = arguments.table or cache_dir() / "benchmarks" / name
    table = load_table(file, arguments.task, arguments.profile)
    print(
        f"{table.n_candidates} candidates; median error of the fits: latency "
        f"{table.latency_error:.2%}, accuracy {100 * table.accuracy_error:.2f} points above 0.8"
    )
    result = compare(table, arguments.samplers.split(","), arguments.seeds, arguments.trials)
    if arguments.spaces_trials:
        result["spaces"] = compare_spaces(table, arguments.seeds, arguments.spaces_trials)
    arguments.output.write_text(json.dumps(result))
    plot(result, arguments.output.with_suffix(".html"))


if __name__ == "__main__":
    main()
