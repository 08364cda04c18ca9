"""Compare samplers on a real task by studies that measure; show what early stopping saves.

    python tests/benchmarks/search_study.py --trials 100 --seeds 3 -o search-study.json

runs a study for each sampler and seed, all of them in one storage beside the output: the same
command goes on after an interruption. Seeds that are in the output file already are not run
again, so that they may come from several machines, each with all samplers. What a study of the
first two samplers has given up is then measured to its end, after it: two studies, one with early
stopping and one without, try other candidates, which take longer or shorter for that alone.

Hypervolumes are shares of what lies between the uncompressed model and nothing: its size, its
latency, a tenth of its accuracy. The curves go to the JSON file and, as a page of plots, beside
it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import RandomSampler

from paredown.search.pareto import hypervolume_history
from paredown.studies.config import make_config
from paredown.studies.engine import run_study
from paredown.studies.records import StudyRecord
from paredown.studies.storage import load_optuna_study, open_storage

if TYPE_CHECKING:
    from tests.benchmarks.search import plot
else:  # run as a script, this folder is where modules are looked for
    from search import plot

SAMPLERS = ("guided", "random", "nsga2", "tpe", "gp")
N_FOLLOWED = 2  # of them, whose given up candidates are measured to their end
CHECKPOINTS = (25, 50, 100)
_INTEREST = 0.1  # of the uncompressed model's accuracy
_N_PLANNED = 4  # trials that every study begins with: the uncompressed model and uniform widths


def losses(record: StudyRecord) -> list[NDArray[np.float64]]:
    """Return accuracy lost, size and latency of finished trials, as shares of what is of interest.

    Trials that are not complete are worse than anything.
    """
    assert record.baseline is not None
    accuracy, size, latency = record.baseline.values
    worst = np.array([_INTEREST * accuracy, size, latency])
    rows: list[NDArray[np.float64]] = []
    for trial in record.trials:
        if trial.is_finished:
            values = np.array(trial.values if trial.state == "complete" else (-1.0, 1e12, 1e12))
            rows.append(np.array([accuracy - values[0], values[1], values[2]]) / worst)
    return rows


def history(rows: list[NDArray[np.float64]]) -> list[float]:
    """Return the hypervolume after each trial."""
    return [round(float(share), 6) for share in hypervolume_history(np.array(rows), np.ones(3))]


def run(study: str, sampler: str, n_trials: int, seed: int, arguments: argparse.Namespace,
        early_stopping: bool = True) -> StudyRecord:  # fmt: skip
    """Run a study to its end, or go on with it."""
    options = {
        "task": arguments.task,
        "study": study,
        "storage": storage_of(arguments),
        "sampler": sampler,
        "early_stopping": early_stopping,
        "trials": n_trials,
        "seed": seed,
    }
    return run_study(make_config(options))


def storage_of(arguments: argparse.Namespace) -> str:
    """Return the URL of the storage."""
    return f"sqlite:///{arguments.output.with_suffix('.db').resolve()}"


def follow(record: StudyRecord, seed: int, arguments: argparse.Namespace) -> StudyRecord:
    """Measure to their end the candidates that a study has given up, as a study of their own."""
    given_up = [trial.number for trial in record.trials if trial.state == "stopped early"]
    name = f"{record.name}-given-up"
    found = run(name, "random", _N_PLANNED, seed, arguments, early_stopping=False)
    if len(found.trials) == _N_PLANNED:
        storage = open_storage(storage_of(arguments))
        sampler = RandomSampler()
        asked = load_optuna_study(storage, record.name, sampler).get_trials(deepcopy=False)
        queue = load_optuna_study(storage, name, sampler)
        for number in given_up:
            queue.enqueue_trial(asked[number].params)
    return run(name, "random", _N_PLANNED + len(given_up), seed, arguments, early_stopping=False)


def add(found: dict[str, list[Any]], record: StudyRecord, whole: StudyRecord | None) -> None:
    """Append the figures of a study to those of the seeds before it."""
    stopped = [trial for trial in record.trials if trial.state == "stopped early"]
    rows = losses(record)
    seconds = sum(trial.seconds or 0.0 for trial in record.trials)
    values = {
        "hypervolume": history(rows),
        "seconds": round(seconds, 1),
        "stopped": len(stopped),
        "cpu": record.profile.target.get("mcpu"),
    }
    if whole is not None:
        taken = sum(trial.seconds or 0.0 for trial in whole.trials[_N_PLANNED:])
        spent = sum(trial.seconds or 0.0 for trial in stopped)
        values["whole_seconds"] = round(seconds - spent + taken, 1)
        values["whole_hypervolume"] = history(rows + losses(whole)[_N_PLANNED:])[-1]
    for name, value in values.items():
        found.setdefault(name, []).append(value)


def row(name: str, found: dict[str, Any], n_trials: int) -> str:
    """Return a line of the table."""
    cells = ""
    for checkpoint in CHECKPOINTS:
        if checkpoint <= n_trials:
            values = [curve[checkpoint - 1] for curve in found["hypervolume"]]
            cells += f"{np.median(values):10.4f} [{min(values):.4f} {max(values):.4f}]"
    seconds, stopped = np.median(found["seconds"]), np.median(found["stopped"])
    return f"{name:22}{cells}{seconds:10.0f}{stopped:9.0f}"


def savings(name: str, found: dict[str, Any]) -> str:
    """Return a line on what early stopping saves, and what it loses."""
    seconds = [1 - a / b for a, b in zip(found["seconds"], found["whole_seconds"], strict=True)]
    pairs = zip(found["hypervolume"], found["whole_hypervolume"], strict=True)
    gains = [one[-1] / other - 1 for one, other in pairs]
    return (
        f"early stopping, {name}: {np.median(seconds):.0%} of the time saved "
        f"[{min(seconds):.0%} {max(seconds):.0%}], hypervolume {np.median(gains):+.2%} "
        f"[{min(gains):+.2%} {max(gains):+.2%}]"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("search-study.json"))
    arguments = parser.parse_args()
    names = arguments.samplers.split(",")
    result: dict[str, Any] = {"trials": arguments.trials, "samplers": {}}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text())
        if result["trials"] != arguments.trials:
            parser.error(f"{arguments.output} is of studies with {result['trials']} trials")
    headers = "".join(f"{n:>26} trials" for n in CHECKPOINTS if n <= arguments.trials)
    print(f"median [least most] of {arguments.seeds} seeds{headers}   seconds  stopped")
    for seed in range(arguments.seeds):  # in turns, so that all samplers see the same machine
        for name in names:
            found = result["samplers"].setdefault(name, {})
            if seed < len(found.get("hypervolume", ())):
                continue
            record = run(f"{name}-{seed}", name, arguments.trials, seed, arguments)
            is_followed = name in SAMPLERS[:N_FOLLOWED]
            add(found, record, follow(record, seed, arguments) if is_followed else None)
            last = {key: values[-1:] for key, values in found.items()}
            print(row(f"{name}, seed {seed}", last, arguments.trials), flush=True)
            arguments.output.write_text(json.dumps(result))
    for name in names:
        print(row(name, result["samplers"][name], arguments.trials), flush=True)
    for name in names:
        if name in SAMPLERS[:N_FOLLOWED]:
            print(savings(name, result["samplers"][name]))
    plot(result, arguments.output.with_suffix(".html"))


if __name__ == "__main__":
    main()
