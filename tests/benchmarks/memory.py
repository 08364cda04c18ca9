"""Memory that a network takes in TVM with our kernels, against ONNX Runtime.

    python tests/benchmarks/memory.py [--networks resnet18] [--formats fp32,w8a8,w4a8]
        [--threads 1] [--repeats 3] [--json FILE]

Both run the same file, each in a process of its own. What counts is how far the resident memory
of that process rises above what it was before the file was opened: at most (`peak`, loading
included), and after a few runs (`kept`). The runtime is imported before, and a network of one
layer has run, so that its own code is in memory. What a process maps of a file counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from paredown.evaluators.runtimes import get_runtime
from paredown.hw_profiles import HardwareProfile, load_profile

if TYPE_CHECKING:
    from tests.benchmarks.network_files import make_files
else:  # run as a script: its own folder is on the path
    from network_files import make_files

RUNTIMES = ("tvm", "onnxruntime")
NETWORKS = ("resnet8", "mobilenetv2", "resnet18", "minilm")
LIMIT = 1.2
_RUNS = 3


def status_kib() -> dict[str, int]:
    """Return the memory of this process: `VmHWM` is the peak of what is resident, `VmRSS`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {name: int(value.split()[0]) for name, value in pairs}


def measure_here(runtime_name: str, artifact: Path, first: Path, threads: int) -> dict[str, int]:
    """Load and run a file in this process; return what it added, in KiB."""
    runtime = get_runtime(runtime_name)
    rng = np.random.default_rng(0)
    small = runtime.load(first, threads)
    small.bind(*(spec.random(rng) for spec in small.inputs))()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begins a new peak
    before = status_kib()["VmRSS"]
    session = runtime.load(artifact, threads)
    call = session.bind(*(spec.random(rng) for spec in session.inputs))
    for _ in range(_RUNS):
        call()
    after = status_kib()
    return {"peak": after["VmHWM"] - before, "kept": after["VmRSS"] - before}


def measure(runtime: str, artifact: Path, first: Path, threads: int) -> dict[str, int]:
    """Do the same in a child process."""
    command = [sys.executable, __file__, "--child", runtime, str(artifact), str(first)]
    environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_first(path: Path) -> None:
    """Write a network of one layer, quantized, as a first one."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
        "weights": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
    }
    steps = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", *steps], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *steps], ["x"]),
        helper.make_node("Conv", ["x", "weights"], ["output"]),
    ]
    data, result = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8, size, size])
        for name, size in (("input", 8), ("output", 6))
    )
    tensors = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "first", [data], [result], tensors)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure all networks; print a row for each format."""
    profile = load_profile("local").with_threads(options.threads)
    write_first(folder / "first.onnx")
    firsts = build(folder / "first.onnx", profile)
    rows = []
    print("network       format   file MB     tvm MB peak/kept      ort MB peak/kept     ratios")
    for name in options.networks:
        files = make_files(name, options.formats, profile, folder)
        for label in options.formats:
            artifacts = build(files.formats[label], profile)
            found: dict[str, list[dict[str, int]]] = {runtime: [] for runtime in RUNTIMES}
            for _ in range(options.repeats):
                for runtime, artifact in artifacts.items():
                    memory = measure(runtime, artifact, firsts[runtime], options.threads)
                    found[runtime].append(memory)
            rows.append(make_row(name, label, artifacts, found))
            show(rows[-1])
    return rows


def build(model: Path, profile: HardwareProfile) -> dict[str, Path]:
    """Return what each runtime loads of a file."""
    artifacts = {}
    for name in RUNTIMES:
        runtime = get_runtime(name)
        artifacts[name] = model.with_name(f"{model.stem}-{name}{runtime.suffix}")
        runtime.build(model, artifacts[name], profile)
    return artifacts


def make_row(
    name: str,
    label: str,
    artifacts: Mapping[str, Path],
    found: Mapping[str, list[dict[str, int]]],
) -> dict[str, Any]:
    """Return the medians of a file, in bytes, and their ratios."""
    row: dict[str, Any] = {"network": name, "format": label}
    for runtime, memories in found.items():
        row[f"{runtime}_file_bytes"] = artifacts[runtime].stat().st_size
        for kind in ("peak", "kept"):
            row[f"{runtime}_{kind}_bytes"] = 1024 * median(m[kind] for m in memories)
    for kind in ("peak", "kept"):
        row[f"{kind}_ratio"] = row[f"tvm_{kind}_bytes"] / row[f"onnxruntime_{kind}_bytes"]
    return row


def show(row: Mapping[str, Any]) -> None:
    """Print a row."""
    sizes = [
        f"{row[f'{runtime}_peak_bytes'] / 1e6:8.1f} {row[f'{runtime}_kept_bytes'] / 1e6:8.1f}"
        for runtime in RUNTIMES
    ]
    ratios = f"{row['peak_ratio']:6.2f} {row['kept_ratio']:6.2f}"
    note = "" if row["peak_ratio"] <= LIMIT else f"  above {LIMIT}"
    print(
        f"{row['network']:13} {row['format']:6} {row['tvm_file_bytes'] / 1e6:8.1f}"
        f"   {sizes[0]}    {sizes[1]}   {ratios}{note}",
        flush=True,
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--formats", default="fp32,w8a8,w4a8", help="separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.networks, options.formats = (
        getattr(options, name).split(",") for name in ("networks", "formats")
    )
    return options


def main() -> None:
    """Run the benchmark, or one process of it."""
    options = parse_options()
    if options.child:
        runtime, artifact, first = options.child
        print(json.dumps(measure_here(runtime, Path(artifact), Path(first), options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options, Path(folder))
    mean = geometric_mean(row["peak_ratio"] for row in rows)
    print(f"geometric mean of the peaks' ratios: {mean:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
