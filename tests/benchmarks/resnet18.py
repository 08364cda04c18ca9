"""ResNet-18 at 224 x 224: how long a candidate takes to make and to build, and how fast it runs.

    python tests/benchmarks/resnet18.py [--profile local] [--threads 1] [--json FILE]

For each bit width the QDQ file runs in TVM with our kernels; as a peer, ONNX Runtime runs
the 7-bit file (its best: exact and fast on every x86 CPU) and the float file. All are timed
in turns, each runtime in its own pinned process; the ratio is the median over rounds of the times
in one round. Weights are random, which changes no time but the number of products that may be
summed in 16 bits on CPUs without a dot-product instruction.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paredown.evaluators.latency import COMPARISON_PROTOCOL
from paredown.evaluators.task import Data, Task
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings

WIDTHS = (32, 8, 7, 6, 5, 4, 2)
ROUNDS = 40


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, ic: int, oc: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ic, oc, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(oc)
        self.conv2 = nn.Conv2d(oc, oc, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(oc)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or ic != oc:
            conv = nn.Conv2d(ic, oc, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(oc))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """Return a ResNet-18 with random weights and batch-norm statistics of random data."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = []
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(channels, width, stride), Block(width, width, 1)]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    model = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 224, 224))
    return model.eval()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    profile = load_profile(options.profile).with_threads(options.threads)

    model, data = resnet18(), torch.randn(8, 3, 224, 224)
    task = Task("resnet18", model, data[:1], data, Data(data, torch.zeros(8, dtype=torch.int64)))
    space = SearchSpace.from_model(model, data[:1], profile, SpaceSettings())
    compressor = Compressor(task, space, CompressionSettings(n_calibration=4))
    compressor.compress(space.uniform(8))  # calibrates; what follows is the cost of a candidate
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, Worker(options.threads, preload=("tvm",)) as tvm:
        folder = Path(name)
        for bits in WIDTHS:
            candidate = space.baseline() if bits == 32 else space.uniform(bits)
            start = time.perf_counter()
            content = compressor.compress(candidate).model.SerializeToString()
            seconds = time.perf_counter() - start
            (folder / f"w{bits}.onnx").write_bytes(content)
            build = [
                tvm.build("tvm", folder / f"w{bits}.onnx", folder / f"w{bits}.so", profile)
                for _ in range(2)
            ]
            figures[f"tvm w{bits}"] = {"make_s": seconds, "build_s": build[0], "warm_s": build[1]}
        _time(folder, tvm, figures, options.threads)
    for label, row in figures.items():
        print(f"{label:18}", "  ".join(f"{k} {v:8.3f}" for k, v in row.items()))
    if options.json:
        options.json.write_text(json.dumps({"profile": profile.name, "figures": figures}))


def _time(folder: Path, tvm: Worker, figures: dict[str, dict[str, float]], threads: int) -> None:
    """Time everything in turns and add medians and ratios to the figures."""
    with Worker(threads, preload=("onnxruntime",)) as peer:
        entries = [(tvm, "tvm", f"w{bits}.so") for bits in WIDTHS]
        entries += [(peer, "onnxruntime", f"w{bits}.onnx") for bits in (32, 7)]
        times: dict[str, list[float]] = {}
        for round_number in range(ROUNDS + 1):
            for worker, runtime, file in entries:
                block = worker.time_block(runtime, folder / file, protocol=COMPARISON_PROTOCOL)
                if round_number:  # the first one came right after loading
                    label = f"{runtime} {Path(file).stem}"
                    times.setdefault(label, []).append(block.candidate_us[0])
    for label, values in times.items():
        peer_label = "onnxruntime w32" if label.endswith("w32") else "onnxruntime w7"
        ratio = np.median(np.array(values) / np.array(times[peer_label]))
        row = figures.setdefault(label, {})
        row |= {"ms": float(np.median(values)) / 1e3, "ratio": float(ratio)}


if __name__ == "__main__":
    main()
