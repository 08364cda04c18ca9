"""How long TVM takes to build a network, its variants, and a network that it knows.

    python tests/benchmarks/builds.py [--network resnet18] [--profile local] [--threads 1]
        [--bits 4] [--variants 3] [--json FILE]

Begins with an empty cache of kernels, in which nothing is compiled and no setting is chosen. Then
the same file again, in a process that has it warm; variants with other channels and the same
widths; and variants with other channels whose layers have random widths. Each build is from the
ONNX file to the library on disk.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from paredown.evaluators.task import Data, Task
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import HardwareProfile, load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace

if TYPE_CHECKING:
    from tests.benchmarks.networks import NETWORKS, load_network
else:  # run as a script: its own folder is on the path
    from networks import NETWORKS, load_network

AIMS = {"cold": 90.0, "warm": 1.5, "pruned": 10.0, "pruned, random widths": 10.0}  # seconds
BUILD_S = 900.0


def candidates(space: SearchSpace, bits: int, n: int) -> list[tuple[str, Candidate]]:
    """Return what is built, in order, each with its kind."""
    rng = np.random.default_rng(0)
    whole = space.uniform(bits)
    random = [space.random(rng) for _ in range(2 * n)]
    return [
        ("cold", whole),
        ("warm", whole),
        *(("pruned", replace(one, layers=whole.layers)) for one in random[:n]),
        *(("pruned, random widths", one) for one in random[n:]),
        ("warm", random[-1]),
    ]


def build_seconds(
    network_name: str, profile: HardwareProfile, bits: int, n: int, folder: Path
) -> dict[str, list[float]]:
    """Build everything once; return the seconds by kind."""
    network = load_network(network_name)
    inputs = network.inputs
    space = SearchSpace.from_model(network.model, inputs[:1], profile)
    data = Data(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    task = Task(network_name, network.model, inputs[:1], inputs, data)
    # How good the weights are does not matter here.
    settings = CompressionSettings(
        n_calibration=len(inputs), reconstruct=False, round_by_outputs=False, correction=False
    )
    compressor = Compressor(task, space, settings)
    seconds: dict[str, list[float]] = {kind: [] for kind in AIMS}
    with Worker(profile.threads, preload=("tvm",)) as worker:
        worker.start()
        for kind, candidate in candidates(space, bits, n):
            model = folder / f"{candidate.digest}.onnx"
            onnx.save(compressor.compress(candidate).model, model)
            artifact = model.with_suffix(".so")
            elapsed = worker.build("tvm", model, artifact, profile, timeout_s=BUILD_S)
            missed = " MISSED" if elapsed > AIMS[kind] else ""
            print(f"{kind:22} {elapsed:6.2f} s (aim {AIMS[kind]:g}){missed}", flush=True)
            seconds[kind].append(elapsed)
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--profile", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4, help="of the weights of all layers")
    parser.add_argument("--variants", type=int, default=3, help="of each kind")
    parser.add_argument("--json", type=Path, help="write the seconds here")
    options = parser.parse_args()
    profile = load_profile(options.profile).with_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
        os.environ["PAREDOWN_CACHE"] = f"{folder}/cache"
        seconds = build_seconds(
            options.network, profile, options.bits, options.variants, Path(folder)
        )
    if options.json:
        options.json.write_text(json.dumps({"profile": profile.name, "seconds": seconds}))


if __name__ == "__main__":
    main()
