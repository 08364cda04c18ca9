"""Do torch, ONNX Runtime and TVM agree on a compressed model, over a task's whole validation set?

    python tests/benchmarks/agreement.py [--task fashion-mnist] [--candidates 5] [--json FILE]

For random candidates of the task's space: accuracy in torch, of the file in ONNX Runtime (without
graph optimizations, which saturate 8-bit weights on some CPUs) and of the library in TVM, and how
many predictions are the same as torch's.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from paredown.evaluators.accuracy import Metric, predict
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings
from paredown.studies import load_task


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    profile = load_profile("local")
    task = load_task(options.task)
    settings = SpaceSettings(activation_bits=profile.activation_bits)
    space = SearchSpace.from_model(task.model, task.example_input, profile, settings)
    compressor = Compressor(task, space, CompressionSettings(finetune_epochs=task.finetune_epochs))
    rng = np.random.default_rng(options.seed)
    inputs, targets = task.validation.inputs, task.validation.targets
    rows = []
    with tempfile.TemporaryDirectory() as name, Worker(1) as worker:
        model_file, library = Path(name, "model.onnx"), Path(name, "model.so")
        for _ in range(options.candidates):
            compressed = compressor.compress(space.random(rng))
            onnx.save(compressed.model, model_file)
            worker.build("tvm", model_file, library, profile)
            outputs = {
                "torch": predict(compressed.module, inputs),
                "onnxruntime": _run_onnxruntime(model_file, inputs.numpy()),
                "tvm": torch.from_numpy(
                    worker.predict("tvm", library, inputs.numpy(), threads=1, timeout_s=600)
                ),
            }
            rows.append(_compare(outputs, targets, task.metric))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"task": options.task, "candidates": rows}))


def _compare(
    outputs: Mapping[str, torch.Tensor], targets: torch.Tensor, metric: Metric
) -> dict[str, float]:
    """Return the accuracy in each runtime and the share of predictions that equal torch's."""
    row = {f"accuracy_{name}": float(metric(value, targets)) for name, value in outputs.items()}
    expected = outputs["torch"].argmax(1)
    for name in ("onnxruntime", "tvm"):
        row[f"same_{name}"] = float((outputs[name].argmax(1) == expected).float().mean())
    return row


def _run_onnxruntime(model: Path, inputs: NDArray[np.float32]) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    results = [session.run(None, {name: sample[None]})[0] for sample in inputs]
    return torch.from_numpy(np.concatenate(results))


if __name__ == "__main__":
    main()
