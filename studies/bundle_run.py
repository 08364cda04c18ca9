"""Runs the exported model in this folder. Needs Python, numpy and tvm; nothing else.

Examples:
    python run.py                                       # random input
    python run.py --input samples.npy --output out.npy  # samples, shape (n, ...)
    python run.py --time 200                            # latency
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).resolve().parent
CPUINFO = Path("/proc/cpuinfo")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SHOWN_VALUES = 10


class RunError(Exception):
    """The model cannot run here, or not on this input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except RunError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Check the machine and the input, then load the library and run it."""
    bundle = read_bundle(HERE / "bundle.json")
    check_cpu(bundle)
    threads = options.threads or bundle["threads"]
    spec = bundle["inputs"][0]
    samples = read_input(options.input, spec, options.seed)
    model = Model(HERE / bundle["library"], threads)
    outputs = model.run(samples)
    if options.output is not None:
        save(options.output, outputs)
        print(f"{len(outputs)} output(s) of shape {outputs.shape[1:]} in {options.output}")
    else:
        show(outputs)
    if options.time is not None:
        show_time(model.bind(samples[:1]), options.time, threads, bundle)


def read_bundle(path: Path) -> dict[str, Any]:
    """Read the description that lies beside this file."""
    try:
        bundle: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' must be the bundle's description, but: {error}") from error
    return bundle


def check_cpu(bundle: dict[str, Any], cpuinfo: Path = CPUINFO) -> None:
    """Refuse to run where the library would: a missing instruction ends a process unexplained."""
    machine = MACHINES.get(platform.machine().lower(), platform.machine().lower())
    if machine != bundle["arch"]:
        raise RunError(
            f"The library is for {bundle['arch']}, but this machine is {machine}. "
            "Export the trial for this machine."
        )
    if not cpuinfo.exists():  # not Linux
        print("run.py: the CPU's features cannot be checked here.", file=sys.stderr)
        return
    missing = sorted(set(bundle["features"]) - cpu_flags(cpuinfo))
    if missing:
        raise RunError(
            f"The library needs CPU features that this machine lacks: {', '.join(missing)}. "
            "Export the trial for this machine."
        )


def cpu_flags(cpuinfo: Path) -> set[str]:
    """Return the flags of the first CPU; Linux calls `sse3` by its code name."""
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            return flags | {"sse3"} if flags & {"pni", "ssse3"} else flags
    return set()


def read_input(path: Path | None, spec: dict[str, Any], seed: int) -> np.ndarray:
    """Return samples of shape `(n, ...)`: from a file, or one of random numbers."""
    import numpy as np

    shape = tuple(spec["shape"])
    if path is None:
        generator = np.random.default_rng(seed)
        return generator.standard_normal(shape).astype(spec["dtype"])
    try:
        samples: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"'{path}' must be an array in .npy form, but: {error}") from error
    if samples.shape == shape[1:]:
        samples = samples[None]
    if samples.shape[1:] != shape[1:] or not len(samples):
        raise RunError(
            f"The input must have the shape {('n', *shape[1:])}, but '{path}' has {samples.shape}."
        )
    return np.ascontiguousarray(samples, dtype=spec["dtype"])


class Model:
    """The library in TVM's virtual machine."""

    def __init__(self, library: Path, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)  # read once, when tvm starts
        try:
            import tvm
            from tvm import relax
        except ImportError as error:
            raise RunError(
                f"tvm must be installed, but: {error}. Its version is in bundle.json."
            ) from error
        self._tensor = tvm.runtime.tensor
        try:
            module = tvm.runtime.load_module(str(library))
            machine = relax.VirtualMachine(module, tvm.cpu())
            weights = machine["paredown_weights"]()  # unpacked from the bits they are stored in
            self._network = functools.partial(machine["main"], *weights)
        except Exception as error:  # tvm raises plain errors of many types
            raise RunError(f"'{library}' could not be loaded: {error}") from error

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Run sample by sample and stack the first output of each."""
        import numpy as np

        outputs = []
        for i in range(len(samples)):
            result = self._network(self._tensor(samples[i : i + 1]))
            outputs.append((result if hasattr(result, "numpy") else result[0]).numpy())
        return np.concatenate(outputs)

    def bind(self, sample: np.ndarray) -> Callable[[], object]:
        """Return a call that runs on a sample that is on the device already."""
        return functools.partial(self._network, self._tensor(sample))


def save(path: Path, outputs: np.ndarray) -> None:
    """Write the outputs to an .npy file."""
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, outputs)
    except OSError as error:
        raise RunError(f"'{path}' cannot be written: {error.strerror}.") from error


def show(outputs: np.ndarray) -> None:
    """Print the outputs, a line for each sample."""
    for output in outputs:
        flat = output.ravel()
        values = " ".join(f"{value:.6g}" for value in flat[:SHOWN_VALUES])
        more = f" ... ({flat.size} values)" if flat.size > SHOWN_VALUES else ""
        print(f"{values}{more}  argmax {int(flat.argmax())}")


def show_time(
    call: Callable[[], object], n_runs: int, threads: int, bundle: dict[str, Any]
) -> None:
    """Time single inferences and print them beside the trial's latency."""
    for _ in range(max(10, n_runs // 10)):
        call()
    times_us = []
    for _ in range(n_runs):
        start = time.perf_counter_ns()
        call()
        times_us.append((time.perf_counter_ns() - start) / 1e3)
    times_us.sort()
    low, high = times_us[len(times_us) // 4], times_us[3 * len(times_us) // 4]
    print(
        f"{statistics.median(times_us):.1f} us median of {n_runs} runs on {threads} thread(s), "
        f"quartiles {low:.1f} and {high:.1f}; the trial had "
        f"{bundle['metrics']['latency_us']:.1f} us"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, metavar="FILE.npy", help="one sample, or (n, ...)")
    parser.add_argument("--output", type=Path, metavar="FILE.npy", help="where outputs are saved")
    parser.add_argument("--time", type=_count, metavar="N", help="time N inferences")
    parser.add_argument("--threads", type=_count, metavar="N", help="default: as in the trial")
    parser.add_argument("--seed", type=int, default=0, help="of the random input (0)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
