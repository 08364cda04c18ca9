"""Measure what the shared network is worth: accuracy without a training run for every candidate.

    python tests/benchmarks/accuracy.py fashion-mnist --json out.json

prints, for a task,

- `uniform`: the accuracy of uniform candidates as `--accuracy shared` makes them, beside the
  uncompressed model's, and of the two ways that it chooses from: the weights of the shared
  network, and quantization without any training (PTQ);
- `seconds`: the time that one candidate's accuracy takes, from the candidate to the number, batch
  norm included;
- `written`: the accuracy in torch beside that of the written file in ONNX Runtime;
- `finetuned`: of 4-bit candidates of half the size of the unpruned one, random ones, the best by
  its shared accuracy, and what `paredown finetune` makes of it;
- `own`: for random candidates the shared accuracy beside that after a training of their own, with
  Kendall's tau and the mean difference.

What was trained is kept in the cache folder, so a run that was cut off goes on where it stood:
remove `benchmarks` there after a change of the fine-tuning itself. Times mean something on a calm
machine only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy.stats import kendalltau

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.task import Task
from paredown.hw_profiles.catalog import load_profile
from paredown.search.candidate import Candidate, digest_of
from paredown.search.checkpoint import digest_tensors
from paredown.search.compression.compressor import (
    CompressedModel,
    CompressionSettings,
    Compressor,
)
from paredown.search.compression.sandwich import SharedSettings
from paredown.search.compression.shared import SharedNetwork
from paredown.search.compression.shared_cache import shared_network
from paredown.search.knowledge.sizes import Choices, LayerSizes
from paredown.search.space import SearchSpace
from paredown.studies.tasks import load_task
from paredown.studies.tasks.cache import cache_dir

# Widths, pruning ratio, and the loss in points that is aimed at.
UNIFORM = ((8, 0.0, 0.1), (4, 0.0, 0.5), (3, 0.0, 1.0), (2, 0.0, 2.5), (8, 0.5, 1.5))
PARTS = ("uniform", "seconds", "written", "finetuned", "own")
N_WRITTEN = 10  # candidates whose files are run
N_TIMED = 5
N_HALVED = 16  # candidates of half the size that the best is taken from
MAX_SECONDS, MAX_WRITTEN, MAX_FINETUNED = 2.0, 0.03, 0.3  # aims; the last two in points
MIN_TAU, MAX_DIFFERENCE = 0.8, 0.7


@dataclass(frozen=True)
class Bench:
    """A task and the ways to make its candidates."""

    task: Task
    shared_settings: SharedSettings
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
    def cut(self) -> Compressor:
        settings = CompressionSettings(shared_only=True)
        return Compressor(self.task, self.space, settings, shared=self.shared.shared)

    @cached_property
    def ptq(self) -> Compressor:
        return Compressor(self.task, self.space)

    def trainer(self, epochs: int, shared: SharedNetwork | None = None) -> Compressor:
        """Return what trains candidates, beginning with their shared weights or without them."""
        settings = replace(
            CompressionSettings(), finetune_epochs=epochs, n_finetuning=self.n_finetuning
        )
        return Compressor(self.task, self.space, settings, shared=shared)

    def trained_accuracy(self, compressor: Compressor, candidate: Candidate) -> float:
        """Train and measure a candidate, or return the figure of an earlier run."""
        shared = compressor.shared
        key = digest_of(
            {
                "candidate": candidate.to_json(),
                "model": digest_tensors(self.task.model.state_dict()),
                "shared": None if shared is None else digest_tensors(shared.state_dict()),
                "settings": asdict(compressor.settings),
            }
        )
        path = cache_dir() / "benchmarks" / f"trained-{self.task.name}-{key}.json"
        if not path.exists():
            value = self.accuracy(compressor.compress(candidate))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value), encoding="utf-8")
        return float(json.loads(path.read_text(encoding="utf-8")))

    def accuracy(self, compressed: CompressedModel) -> float:
        return evaluate(compressed.module, self.task.validation, self.task.metric)

    def random(self, n: int) -> list[Candidate]:
        rng = np.random.default_rng(0)
        return [self.space.random(rng) for _ in range(n)]


def say(text: str) -> None:
    print(text, flush=True)


def missed(is_missed: bool) -> str:
    return ", missed" if is_missed else ""


def uniform_rows(bench: Bench, base: float) -> list[dict[str, Any]]:
    """Compare uniform candidates: shared network, PTQ, uncompressed."""
    rows = []
    for bits, ratio, aim in UNIFORM:
        candidate = bench.space.uniform(bits, 8, ratio)
        shared = bench.accuracy(bench.shared.compress(candidate))
        cut = bench.accuracy(bench.cut.compress(candidate))
        ptq = bench.accuracy(bench.ptq.compress(candidate))
        loss = 100 * (base - shared)
        say(
            f"W{bits}A8 pruned {ratio:3.0%}: shared {shared:.4f} ({-loss:+.2f} points, aim "
            f"{-aim:+.1f}{missed(loss > aim)}); cut {cut:.4f}, PTQ {ptq:.4f}"
        )
        rows.append(
            {
                "bits": bits,
                "pruning_ratio": ratio,
                "shared": shared,
                "cut": cut,
                "ptq": ptq,
                "aim": aim,
            }
        )
    return rows


def seconds_of_one(bench: Bench) -> dict[str, float]:
    """Time the accuracy of one candidate, from the candidate to the number."""
    elapsed, busy = [], []
    for candidate in bench.random(N_TIMED + 1):
        start, start_busy = time.perf_counter(), time.process_time()
        bench.accuracy(bench.shared.compress(candidate))
        elapsed.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    # The first one finds nothing prepared.
    median, processor = float(np.median(elapsed[1:])), float(np.median(busy[1:]))
    n_images, n_threads = len(bench.task.validation), torch.get_num_threads()
    say(
        f"one candidate on {n_images} images: {median:.2f} s with {n_threads} thread(s) (aim "
        f"{MAX_SECONDS} with 2{missed(median > MAX_SECONDS)}), {processor:.2f} s of processor time"
    )
    return {"elapsed": median, "processor": processor}


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
    say(
        f"largest difference between torch and file: {largest:.3f} points (aim {MAX_WRITTEN}"
        f"{missed(largest > MAX_WRITTEN)})"
    )
    return rows


def finetuned_row(bench: Bench, base: float, epochs: int) -> dict[str, Any]:
    """Fine-tune the best of some candidates that take half of the bytes, at 4 bits."""
    candidates = halved(bench.space)
    before = [bench.accuracy(bench.shared.compress(candidate)) for candidate in candidates]
    best = int(np.argmax(before))
    trainer = bench.trainer(epochs, bench.shared.shared)
    after = bench.trained_accuracy(trainer, candidates[best])
    size, whole = sizes_of(bench.space, [candidates[best], bench.space.uniform(4)])
    loss = 100 * (base - after)
    say(
        f"best of {len(candidates)} W4A8 points of half the size ({size:.0f} of {whole:.0f} "
        f"bytes): shared {before[best]:.4f}, after {epochs} epochs {after:.4f} ({-loss:+.2f} "
        f"points, aim {-MAX_FINETUNED}{missed(loss > MAX_FINETUNED)})"
    )
    return {
        "candidate": candidates[best].to_json(),
        "size_bytes": size,
        "unpruned_size_bytes": whole,
        "shared": before[best],
        "finetuned": after,
    }


def halved(space: SearchSpace) -> list[Candidate]:
    """Return random prunings that take at most half of the bytes, and little less, at 4 bits."""
    whole = space.uniform(4)
    rng = np.random.default_rng(1)
    drawn = {replace(space.random(rng), layers=whole.layers) for _ in range(1000)}
    candidates = sorted(drawn, key=lambda candidate: candidate.digest)
    shares = np.array(sizes_of(space, candidates)) / sizes_of(space, [whole])[0]
    order = np.argsort(np.where(shares <= 0.5, 0.5 - shares, np.inf), kind="stable")
    return [candidates[at] for at in order[:N_HALVED]]


def sizes_of(space: SearchSpace, candidates: list[Candidate]) -> list[float]:
    sizes = LayerSizes(space).size_bytes(Choices.of(space, candidates))
    return [float(size) for size in sizes.sum(axis=1)]


def own_rows(bench: Bench, n: int, epochs: int) -> dict[str, Any]:
    """Compare random candidates: shared network, and a training of their own."""
    trainer = bench.trainer(epochs)
    rows = []
    for number, candidate in enumerate(bench.random(n)):
        shared = bench.accuracy(bench.shared.compress(candidate))
        own = bench.trained_accuracy(trainer, candidate)
        rows.append({"shared": shared, "own": own})
        say(f"candidate {number}: shared {shared:.4f}, own {own:.4f}")
    shared_values, own_values = ([row[key] for row in rows] for key in ("shared", "own"))
    tau = float(kendalltau(shared_values, own_values).statistic)
    difference = 100 * float(np.mean(np.subtract(own_values, shared_values)))
    say(
        f"{n} random candidates, own training of {epochs} epochs: Kendall's tau {tau:.3f} "
        f"(aim {MIN_TAU}{missed(tau < MIN_TAU - 1e-9)}); own minus shared {difference:+.2f} "
        f"points on average (aim {MAX_DIFFERENCE}{missed(abs(difference) > MAX_DIFFERENCE)})"
    )
    return {"rows": rows, "tau": tau, "mean_difference_points": difference}


def file_accuracy(bench: Bench, compressed: CompressedModel) -> float:
    """Return the accuracy of a candidate's file in ONNX Runtime, an image at a time."""
    runtime = get_runtime("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        written, built = Path(folder, "written.onnx"), Path(folder, "built.onnx")
        onnx.save(compressed.model, written)
        runtime.build(written, built, load_profile("local"))
        session = runtime.load(built, 1)
    data = bench.task.validation
    outputs = [session.run(image[None])[0][0] for image in data.inputs.numpy()]
    return bench.task.metric(torch.from_numpy(np.stack(outputs)), data.targets)


def main() -> None:
    """Run the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--candidates", type=int, default=24, help="random candidates")
    parser.add_argument("--epochs", type=int, default=3, help="of each one's own training")
    parser.add_argument("--finetune-epochs", type=int, default=10, help="of the half-size point")
    parser.add_argument("--finetune-images", type=int, default=None)
    parser.add_argument("--shared-epochs", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(
        load_task(arguments.task, report=say),
        SharedSettings(epochs=arguments.shared_epochs),
        arguments.finetune_images,
    )
    base = evaluate(bench.task.model, bench.task.validation, bench.task.metric)
    say(f"{bench.task.name}: uncompressed {base:.4f}")
    measures: dict[str, Callable[[], Any]] = {
        "uniform": lambda: uniform_rows(bench, base),
        "seconds": lambda: seconds_of_one(bench),
        "written": lambda: written_rows(bench),
        "finetuned": lambda: finetuned_row(bench, base, arguments.finetune_epochs),
        "own": lambda: own_rows(bench, arguments.candidates, arguments.epochs),
    }
    result: dict[str, Any] = {"task": bench.task.name, "base": base}
    for part in PARTS:
        if part in arguments.parts:
            result[part] = measures[part]()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
