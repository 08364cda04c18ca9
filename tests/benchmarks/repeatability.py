"""How well one candidate's latency is measured again while another process disturbs.

    python tests/benchmarks/repeatability.py --measurements 20 --interval 180 --load

Measures one quantized network against its float form so many times, and beside it takes the naive
time: the median of plain calls, without turns. With `--load` another process keeps one core busy
for random stretches. Prints, for the ratio to the baseline and for the naive time, the share of
measurements within 3 % of their median and the largest deviation; writes all of it as JSON.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from paredown.evaluators.latency import measure_latency
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import Compressor
from paredown.search.space import SearchSpace
from paredown.studies.tasks import load_task

WITHIN = 0.03
NAIVE_S = 0.5


def disturb(core: int, seed: int, n_parents: int) -> None:
    """Keep a core busy for random stretches, until the parent is gone."""
    os.sched_setaffinity(0, {core})
    rng = random.Random(seed)
    while os.getppid() == n_parents:
        end = time.monotonic() + rng.uniform(0.5, 20.0)
        while time.monotonic() < end:
            sum(range(1000))
        time.sleep(rng.uniform(0.5, 20.0))


def build(folder: Path, worker: Worker, task_name: str, weight_bits: int) -> tuple[Path, Path]:
    """Compile the float network of a task and one with the same bits in every layer."""
    profile = load_profile("local")
    task = load_task(task_name, data_dir=None, report=print)
    space = SearchSpace.from_model(task.model, task.example_input, profile)
    compressor = Compressor(task, space)
    artifacts = []
    for name, candidate in (
        ("baseline", space.baseline()),
        ("candidate", space.uniform(weight_bits)),
    ):
        model = folder / f"{name}.onnx"
        onnx.save(compressor.compress(candidate).model, model)
        worker.build("tvm", model, folder / f"{name}.so", profile)
        artifacts.append(folder / f"{name}.so")
    return artifacts[0], artifacts[1]


def time_naively(call: Callable[[], object], core: int) -> float:
    """Return the median wall time of a call in microseconds, as a simple loop takes it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    times_ns, end = [], time.perf_counter() + NAIVE_S
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - start)
    os.sched_setaffinity(0, before)
    return statistics.median(times_ns) / 1e3


def describe(values: list[float]) -> dict[str, float]:
    """Return the median, the share of values close to it, and the largest deviation."""
    median = statistics.median(values)
    deviations = [abs(value / median - 1) for value in values]
    return {
        "median": median,
        "share_within": sum(d <= WITHIN for d in deviations) / len(deviations),
        "largest_deviation": max(deviations),
    }


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--measurements", type=int, default=20)
    parser.add_argument("--interval", type=float, default=180.0, help="seconds between two (180)")
    parser.add_argument("--load", action="store_true", help="load one core at random")
    parser.add_argument("--output", type=Path, help="JSON file for all values")
    options = parser.parse_args()
    ratios: list[float] = []
    naive_us: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Worker(1, preload=("tvm",)) as worker:
        baseline, candidate = build(Path(folder), worker, options.task, options.weight_bits)
        session = get_runtime("tvm").load(candidate, 1)
        rng = np.random.default_rng(0)
        call = session.bind(*(spec.random(rng) for spec in session.inputs))
        core = max(os.sched_getaffinity(0))  # where the worker measures
        loader = multiprocessing.Process(target=disturb, args=(core, 0, os.getpid()), daemon=True)
        if options.load:
            loader.start()
        for number in range(options.measurements):
            if number:
                time.sleep(options.interval)
            naive_us.append(time_naively(call, core))
            latency = measure_latency(worker, "tvm", candidate, baseline=baseline)
            assert latency.ratio is not None
            ratios.append(latency.ratio)
            print(
                f"{number + 1:3d}: ratio {latency.ratio:.4f}, {latency.latency_us:.1f} us, "
                f"naive {naive_us[-1]:.1f} us{', noisy' if latency.is_noisy else ''}",
                flush=True,
            )
        if options.load:
            loader.terminate()
    found = {"ratio": describe(ratios), "naive_us": describe(naive_us)}
    for name, numbers in found.items():
        print(
            f"{name}: median {numbers['median']:.4g}, {numbers['share_within']:.0%} within "
            f"{WITHIN:.0%}, largest deviation {numbers['largest_deviation']:.1%}"
        )
    if options.output is not None:
        options.output.write_text(json.dumps({**found, "ratios": ratios, "naive": naive_us}))


if __name__ == "__main__":
    main()
