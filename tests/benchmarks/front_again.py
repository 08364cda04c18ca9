"""How well the latencies of a study's front are found again by another process, later, under load.

    python tests/benchmarks/front_again.py STUDY --storage sqlite:///paredown.db --load

Builds every point of the front anew from its ONNX file and times it in turns with the uncompressed
model, `--rounds` times over. With `--load` another process keeps one core busy for random
stretches. Prints each latency beside the study's, and the share that is within 3 % of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from paredown.evaluators.worker import Worker
from paredown.search.device_timing import DeviceTiming
from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.storage import load_model, open_storage, read_study

if TYPE_CHECKING:
    from tests.benchmarks.repeatability import WITHIN, disturb
else:  # run as a script, this folder is where modules are looked for
    from repeatability import WITHIN, disturb


def save(record: StudyRecord, trial: TrialRecord, folder: Path) -> Path:
    """Write a trial's model into a folder."""
    path = folder / f"{trial.number}.onnx"
    onnx.save(load_model(record, trial), path)
    return path


def measure(record: StudyRecord, worker: Worker, folder: Path, n_rounds: int) -> list[float]:
    """Return how far each new latency is from the study's, relative to it."""
    assert record.baseline is not None
    timing = DeviceTiming(worker, record.settings.runtime, record.profile)
    timing.use_baseline(save(record, record.baseline, folder), record.baseline.latency_us)
    points = [trial for trial in record.front() if not trial.is_baseline]
    artifacts = [timing.build(save(record, trial, folder)) for trial in points]
    gaps = []
    for _ in range(n_rounds):
        for trial, artifact in zip(points, artifacts, strict=True):
            found = timing.measure(artifact)
            assert found is not None
            assert trial.latency_us is not None
            gaps.append(found.latency_us / trial.latency_us - 1.0)
            noisy = ", noisy" if found.latency.is_noisy else ""
            print(
                f"trial {trial.number}: {trial.latency_us:.2f} us in the study, "
                f"{found.latency_us:.2f} us now ({gaps[-1]:+.1%}{noisy})",
                flush=True,
            )
    return gaps


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--storage", default="sqlite:///paredown.db")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--load", action="store_true", help="load one core at random")
    parser.add_argument("--output", type=Path, help="JSON file for all values")
    options = parser.parse_args()
    record = read_study(open_storage(options.storage, must_exist=True), options.study)
    core = max(os.sched_getaffinity(0))  # where the worker measures
    loader = multiprocessing.Process(target=disturb, args=(core, 0, os.getpid()), daemon=True)
    if options.load:
        loader.start()
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(record.threads, preload=(record.settings.runtime,)) as worker,
    ):
        gaps = measure(record, worker, Path(folder), options.rounds)
    if options.load:
        loader.terminate()
    share = sum(abs(gap) <= WITHIN for gap in gaps) / len(gaps)
    largest = max(map(abs, gaps))
    print(
        f"{share:.0%} of {len(gaps)} within {WITHIN:.0%} of the study's, largest gap {largest:.1%}"
    )
    if options.output is not None:
        options.output.write_text(json.dumps({"gaps": gaps, "share_within": share}))


if __name__ == "__main__":
    main()
