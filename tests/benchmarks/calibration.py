"""Compare ways to choose ranges and scales: accuracy of post-training quantization.

    python tests/benchmarks/calibration.py digits fashion-mnist

prints, for each task, the validation accuracy of the model quantized with each method of
calibration, each way to choose weight scales, with and without bias correction, at several
widths, and the mean squared error of its outputs against the float model's.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from paredown.evaluators.accuracy import predict
from paredown.evaluators.task import Task
from paredown.hw_profiles.catalog import load_profile
from paredown.search.compression.calibration import CALIBRATION_METHODS
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings
from paredown.studies.tasks import load_task

WIDTHS = ((8, 8), (7, 7), (8, 6), (8, 5), (8, 4), (4, 4), (5, 8), (4, 8), (3, 8), (2, 8))


def compare(task: Task, n_calibration: int | None) -> None:
    """Print one line for each setting: accuracy and relative error at each width."""
    profile, offered = load_profile("x86-64-v3"), SpaceSettings(activation_bits=(4, 5, 6, 7, 8))
    space = SearchSpace.from_model(task.model, task.example_input, profile, offered)
    data = task.validation
    expected = predict(task.model, data.inputs)
    print(f"{task.name}: float {task.metric(expected, data.targets):.4f}, {len(data)} samples")
    print(f"{'':32}" + "".join(f"{f'W{w}A{a}':>17}" for w, a in WIDTHS))
    for method, search, correct in itertools.product(
        CALIBRATION_METHODS, (False, True), (False, True)
    ):
        settings = CompressionSettings(
            calibration=method,  # type: ignore[arg-type]  # one of the listed names
            n_calibration=n_calibration,
            search_scales=search,
            correction=correct,
        )
        compressor = Compressor(task, space, settings)
        name = (
            f"{method:10} {'searched' if search else 'largest':9}{'corrected' if correct else ''}"
        )
        cells = []
        start = time.perf_counter()
        for weight_bits, activation_bits in WIDTHS:
            candidate = space.uniform(weight_bits, activation_bits)
            outputs = predict(compressor.compress(candidate).module, data.inputs)
            error = (outputs - expected).square().mean() / expected.var()
            cells.append(f"{task.metric(outputs, data.targets):9.4f} {error:7.1e}")
        print(f"{name:32}" + "".join(cells) + f"  {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    """Run the comparison for the tasks on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=["digits"])
    parser.add_argument("--n-calibration", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for spec in arguments.tasks:
        compare(load_task(spec, data_dir=None, seed=0, report=print), arguments.n_calibration)


if __name__ == "__main__":
    main()
