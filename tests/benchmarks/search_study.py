"""Compare samplers on a real task, and early stopping with whole trials, by studies that measure.

    python tests/benchmarks/search_study.py --trials 100 --seeds 3 -o search-study.json

runs a study for each sampler and seed, all of them in one storage beside the output: the same
command goes on after an interruption. Seeds that are in the output file already are not run
again, so that they may come from several machines, each with all samplers. Hypervolumes are
shares of what lies between the uncompressed model and nothing: its size, its latency, a tenth of
its accuracy. The curves go to the JSON file and, as a page of plots, beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.search.pareto import hypervolume_history
from paredown.studies.config import make_config
from paredown.studies.engine import run_study
from paredown.studies.records import StudyRecord

if TYPE_CHECKING:
    from tests.benchmarks.search import plot
else:  # run as a script, this folder is where modules are looked for
    from search import plot

WHOLE = ", whole trials"
SAMPLERS = ("guided", "guided" + WHOLE, "random", "random" + WHOLE, "nsga2", "tpe", "gp")
CHECKPOINTS = (25, 50, 100)
_INTEREST = 0.1  # of the uncompressed model's accuracy


def history(record: StudyRecord) -> list[float]:
    """Return the hypervolume after each finished trial; one that was stopped early adds none."""
    assert record.baseline is not None
    accuracy, size, latency = record.baseline.values
    worst = np.array([_INTEREST * accuracy, size, latency])
    rows: list[NDArray[np.float64]] = []
    for trial in record.trials:
        if trial.is_finished:
            values = np.array(trial.values if trial.state == "complete" else (-1.0, 1e12, 1e12))
            rows.append(np.array([accuracy - values[0], values[1], values[2]]) / worst)
    return [float(share) for share in hypervolume_history(np.array(rows), np.ones(3))]


def run(name: str, seed: int, arguments: argparse.Namespace) -> StudyRecord:
    """Run a study to its end, or go on with it."""
    sampler, whole, _ = name.partition(WHOLE)
    storage = arguments.output.with_suffix(".db").resolve()
    options = {
        "task": arguments.task,
        "study": f"{sampler}-{'whole-' if whole else ''}{seed}",
        "storage": f"sqlite:///{storage}",
        "sampler": sampler,
        "early_stopping": not whole,
        "trials": arguments.trials,
        "seed": seed,
    }
    return run_study(make_config(options))


def add(found: dict[str, list[Any]], record: StudyRecord) -> None:
    """Append the curve and the seconds of a study to those of the seeds before it."""
    values = {
        "hypervolume": [round(share, 6) for share in history(record)],
        "seconds": round(sum(t.seconds or 0.0 for t in record.trials), 1),
        "stopped": sum(t.state == "stopped early" for t in record.trials),
        "cpu": record.profile.target.get("mcpu"),
    }
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


def savings(name: str, found: dict[str, Any], whole: dict[str, Any]) -> str:
    """Return a line on what early stopping saves, and what it loses."""
    seconds = [1 - a / b for a, b in zip(found["seconds"], whole["seconds"], strict=True)]
    pairs = zip(found["hypervolume"], whole["hypervolume"], strict=True)
    gains = [one[-1] / other[-1] - 1 for one, other in pairs]
    return (
        f"early stopping, {name}: {np.median(seconds):.0%} of the time saved "
        f"[{min(seconds):.0%} {max(seconds):.0%}], hypervolume {np.median(gains):+.2%} "
        f"[{min(gains):+.2%} {max(gains):+.2%}]"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--samplers", default=";".join(SAMPLERS), help="separated by semicolons")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("search-study.json"))
    arguments = parser.parse_args()
    names = arguments.samplers.split(";")
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
            add(found, run(name, seed, arguments))
            last = {key: values[-1:] for key, values in found.items()}
            print(row(f"{name}, seed {seed}", last, arguments.trials), flush=True)
            arguments.output.write_text(json.dumps(result))
    for name in names:
        print(row(name, result["samplers"][name], arguments.trials), flush=True)
    for name in names:
        if name + WHOLE in names:
            print(savings(name, result["samplers"][name], result["samplers"][name + WHOLE]))
    plot(result, arguments.output.with_suffix(".html"))


if __name__ == "__main__":
    main()
