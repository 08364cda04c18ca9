"""Measure what the shared network is worth: accuracy without a training run for every candidate.

    python tests/benchmarks/accuracy.py fashion-mnist --candidates 24 --epochs 3 --json out.json

prints, for a task,

- the accuracy of uniform candidates with weights of the shared network, and after quantization
  without any training (PTQ), beside the uncompressed model's;
- for random candidates the shared accuracy beside that after a training of their own, with
  Kendall's tau and the mean difference;
- the seconds that one candidate's accuracy takes, batch-norm statistics included;
- the accuracy in torch beside that of the written file in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from scipy.stats import kendalltau

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.task import Task
from paredown.hw_profiles.catalog import load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import (
    CompressedModel,
    CompressionSettings,
    Compressor,
)
from paredown.search.compression.sandwich import SharedSettings
from paredown.search.compression.shared_cache import shared_network
from paredown.search.space import SearchSpace
from paredown.studies.tasks import load_task
from paredown.studies.tasks.cache import cache_dir

# Widths, pruning ratio, and the loss in points that is aimed at.
UNIFORM = ((8, 0.0, 0.1), (4, 0.0, 0.5), (3, 0.0, 1.0), (2, 0.0, 2.5), (8, 0.5, 1.5))
N_WRITTEN = 10  # candidates whose files are run
N_TIMED = 5


@dataclass(frozen=True)
class Bench:
    """A task and the ways to make its candidates."""

    task: Task
    shared_settings: SharedSettings
    epochs: int
    n_finetuning: int | None

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.from_model(
            self.task.model, self.task.example_input, load_profile("x86-64-v3")
        )

    @cached_property
    def shared(self) -> Compressor:
        folder = cache_dir() / "shared"
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        network = shared_network(
            self.task, self.space, self.shared_settings, folder=folder, report=say
        )
        say(f"shared network: {time.perf_counter() - start:.0f} s")
        return Compressor(self.task, self.space, shared=network)

    @cached_property
    def ptq(self) -> Compressor:
        return Compressor(self.task, self.space)

    @cached_property
    def trained(self) -> Compressor:
        settings = replace(
            CompressionSettings(), finetune_epochs=self.epochs, n_finetuning=self.n_finetuning
        )
        return Compressor(self.task, self.space, settings)

    def accuracy(self, compressed: CompressedModel) -> float:
        return evaluate(compressed.module, self.task.validation, self.task.metric)

    def random(self, n: int) -> list[Candidate]:
        rng = np.random.default_rng(0)
        return [self.space.random(rng) for _ in range(n)]


def say(text: str) -> None:
    print(text, flush=True)


def uniform_rows(bench: Bench, base: float) -> list[dict[str, Any]]:
    """Compare uniform candidates: shared network, PTQ, uncompressed."""
    rows = []
    for bits, ratio, aim in UNIFORM:
        candidate = bench.space.uniform(bits, 8, ratio)
        shared = bench.accuracy(bench.shared.compress(candidate))
        ptq = bench.accuracy(bench.ptq.compress(candidate))
        loss = 100 * (base - shared)
        say(
            f"W{bits}A8 pruned {ratio:3.0%}: shared {shared:.4f} ({-loss:+.2f} points, aim "
            f"{-aim:+.1f}{'' if loss <= aim else ', missed'}), PTQ {ptq:.4f}"
        )
        rows.append(
            {"bits": bits, "pruning_ratio": ratio, "shared": shared, "ptq": ptq, "aim": aim}
        )
    return rows


def candidate_rows(bench: Bench, n: int) -> dict[str, Any]:
    """Compare random candidates: shared network, and a training of their own."""
    rows = []
    for number, candidate in enumerate(bench.random(n)):
        shared = bench.accuracy(bench.shared.compress(candidate))
        start = time.perf_counter()
        own = bench.accuracy(bench.trained.compress(candidate))
        rows.append({"shared": shared, "own": own})
        seconds = time.perf_counter() - start
        say(f"candidate {number}: shared {shared:.4f}, own {own:.4f} ({seconds:.0f} s)")
    shared_values, own_values = ([row[key] for row in rows] for key in ("shared", "own"))
    tau = float(kendalltau(shared_values, own_values).statistic)
    difference = 100 * float(np.mean(np.subtract(own_values, shared_values)))
    say(f"Kendall's tau {tau:.3f}; own minus shared {difference:+.2f} points on average")
    return {"rows": rows, "tau": tau, "mean_difference_points": difference}


def seconds_of_one(bench: Bench) -> float:
    """Time the accuracy of one candidate, from the candidate to the number."""
    seconds = []
    for candidate in bench.random(N_TIMED + 1):
        start = time.perf_counter()
        bench.accuracy(bench.shared.compress(candidate))
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds[1:]))  # the first one finds nothing prepared
    n_images, n_threads = len(bench.task.validation), torch.get_num_threads()
    say(f"one candidate on {n_images} images: {median:.2f} s with {n_threads} thread(s)")
    return median


def written_rows(bench: Bench) -> list[dict[str, float]]:
    """Compare torch with the written file."""
    rows = []
    for candidate in bench.random(N_WRITTEN):
        compressed = bench.shared.compress(candidate)
        rows.append(
            {"torch": bench.accuracy(compressed), "file": file_accuracy(bench, compressed)}
        )
        say(f"torch {rows[-1]['torch']:.4f}, file {rows[-1]['file']:.4f}")
    largest = 100 * max(abs(row["torch"] - row["file"]) for row in rows)
    say(f"largest difference between torch and file: {largest:.3f} points")
    return rows


def file_accuracy(bench: Bench, compressed: CompressedModel) -> float:
    """Return the accuracy of a candidate's file in ONNX Runtime, an image at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        compressed.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    data = bench.task.validation
    outputs = [session.run(None, {name: x[None]})[0][0] for x in data.inputs.numpy()]
    return bench.task.metric(torch.from_numpy(np.stack(outputs)), data.targets)


def main() -> None:
    """Run the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("--candidates", type=int, default=24, help="random candidates; 0: none")
    parser.add_argument("--epochs", type=int, default=3, help="of each one's own training")
    parser.add_argument("--finetune-images", type=int, default=None)
    parser.add_argument("--shared-epochs", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(
        load_task(arguments.task, report=say),
        SharedSettings(epochs=arguments.shared_epochs),
        arguments.epochs,
        arguments.finetune_images,
    )
    base = evaluate(bench.task.model, bench.task.validation, bench.task.metric)
    say(f"{bench.task.name}: uncompressed {base:.4f}")
    result: dict[str, Any] = {"task": bench.task.name, "base": base}
    result["uniform"] = uniform_rows(bench, base)
    result["seconds_of_one"] = seconds_of_one(bench)
    result["written"] = written_rows(bench)
    if arguments.candidates:
        result["candidates"] = candidate_rows(bench, arguments.candidates)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
