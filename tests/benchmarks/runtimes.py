"""TVM with our kernels against ONNX Runtime and OpenVINO, on whole networks.

    python tests/benchmarks/runtimes.py [--networks resnet8,resnet18] [--formats fp32,w7a8]
        [--threads 1,2] [--rounds 40] [--layers] [--cold] [--json FILE] [--plot FILE.html]

Each format of a network is one file, made as a study makes its candidates. The peers run the float
file, and as int8 the file of ONNX Runtime's own quantization with its recommended settings (for
networks without convolutions also the dynamic one), NNCF's where it is installed, and our 8-bit
and 7-bit files; the fastest of them is the best peer. Every file has a pinned process of its own,
and all are timed block by block in turns, so that the drift of the machine hits all alike: a ratio
is the median over rounds of the times in one round.

The limit is what this machine reaches in the same rounds with a loop that uses registers alone:
fused multiply-adds for float; for integers its fastest instructions at the narrowest widths.

With a profile of fewer instructions than this machine has (`--profile x86-64-v3`) the peers are
limited to them as well (`limited_isa.py`); the table and the JSON say so.

A process may be some percent slow for all its life. Where a format seems slower than the next
wider one, both are timed in four further starts, and the step is the median over all starts.

The first build of a file (`build`) chooses settings for the kernels that the cache of kernels has
none for; `--cold` begins with an empty cache. The second (`warm`) finds all.

`--layers` times every call in the network: in place (with about 0.5 us for the clock), and
repeated at once with the same arguments, which finds them in the caches. Layers come first, the
worst share of the limit on top.
"""

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.evaluators.estimates import half_iqr, median_interval, round_ratios
from paredown.evaluators.latency import COMPARISON_PROTOCOL, summarize
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.timing import Rounds
from paredown.evaluators.worker import TVM_POOL, Worker
from paredown.hw_profiles import HardwareProfile, load_profile, this_machine

if TYPE_CHECKING:
    from tests.benchmarks.kernel_times import Limits, show_calls, time_calls
    from tests.benchmarks.limited_isa import limit_peers
    from tests.benchmarks.network_files import FLOATS, FORMATS, Files, make_files, noting
    from tests.benchmarks.networks import NETWORKS
    from tests.benchmarks.runtime_rows import (
        Row,
        complaints,
        grows,
        means,
        plot,
        show,
        show_summary,
    )
else:  # run as a script: its own folder is on the path
    from kernel_times import Limits, show_calls, time_calls
    from limited_isa import limit_peers
    from network_files import FLOATS, FORMATS, Files, make_files, noting
    from networks import NETWORKS
    from runtime_rows import Row, complaints, grows, means, plot, show, show_summary

PEERS = ("onnxruntime", "openvino")
WIDER = {
    "fp16": "fp32",
    "w7a8": "w8a8",
    "w6a8": "w7a8",
    "w4a8": "w6a8",
    "w2a8": "w4a8",
    "w7a7": "w7a8",
    "w4a4": "w4a8",
}
BUILD_S = 900.0
FURTHER_STARTS = 4
ROUNDS_OF_A_START = 10


# ---- timing


class Workers:
    """One pinned process per kind of file, kept from network to network."""

    def __init__(self, threads: int, stack: ExitStack) -> None:
        self.threads, self._stack = threads, stack
        self._workers: dict[str, Worker] = {}

    def get(self, runtime: str, label: str) -> Worker:
        """Return the process that times files of this label in this runtime."""
        key = f"{runtime} {label}"
        if key not in self._workers:
            worker = self._stack.enter_context(Worker(self.threads, preload=(runtime,)))
            worker.start()
            self._workers[key] = worker
        return self._workers[key]


@dataclass
class Runner:
    """One file in one runtime on its way through the rounds."""

    runtime: str
    label: str
    artifact: Path
    worker: Worker | None = None
    build_s: list[float] = field(default_factory=list)
    blocks: list[Rounds] = field(default_factory=list)
    error: str | None = None

    def build(self, model: Path, builder: Worker, profile: HardwareProfile) -> None:
        """Build the artifact, first with what the cache of kernels has, then with all in it."""
        errors: dict[str, str] = {}
        with noting(errors, "build"):
            self.build_s = [
                builder.build(self.runtime, model, self.artifact, profile, timeout_s=BUILD_S)
                for _ in range(2)
            ]
        self.error = errors.get("build")

    def time(self) -> None:
        """Time one block."""
        assert self.worker is not None  # started with the others
        errors: dict[str, str] = {}
        with noting(errors, "run"):
            block = self.worker.time_block(
                self.runtime, self.artifact, protocol=COMPARISON_PROTOCOL
            )
            self.blocks.append(block)
        self.error = errors.get("run")

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.label}"

    @property
    def times_us(self) -> tuple[float, ...]:
        """The times of all rounds."""
        return tuple(block.candidate_us[0] for block in self.blocks)

    def rounds(self, baseline: "Runner | None") -> Rounds:
        """Return the rounds beside those of another runner."""
        contention = sum(block.contention for block in self.blocks) / len(self.blocks)
        n_runs = sum(block.n_runs for block in self.blocks)
        baseline_us = baseline.times_us if baseline else None
        return Rounds(self.times_us, baseline_us, n_runs, contention)


def start_runners(
    files: Files, formats: Sequence[str], workers: Workers, profile: HardwareProfile
) -> list[Runner]:
    """Build the files of a network and start the processes that will time them."""
    runners = []
    # While kernels are chosen nothing else may run, so one process builds, and the others start
    # afterwards.
    builder = workers.get("tvm", "builder")
    for label in formats:
        if model := files.formats.get(label):
            artifact = model.with_name(f"{label}-{profile.threads}.so")
            runners.append(Runner("tvm", label, artifact))
            runners[-1].build(model, builder, profile)
    for runtime in PEERS:
        runners += [
            Runner(runtime, label, model)
            for label, model in files.peers.items()
            if label != "fp32" or {*FLOATS} & {*formats}
        ]
    for runner in runners:
        runner.worker = workers.get(runner.runtime, runner.label)
    return runners


def race(
    runners: list[Runner], rounds: int, limits: "Limits | None" = None
) -> dict[str, list[float]]:
    """Time the runners in turns; return the machine's limit in each round, by kind."""
    found: dict[str, list[float]] = {"float": [], "integer": []} if limits else {}
    for number in range(rounds + 1):
        for runner in runners if number % 2 else reversed(runners):
            if runner.error is None:
                runner.time()
            if number == 0:
                runner.blocks.clear()  # the first one came right after loading
        for kind, values in found.items():
            if number and limits:
                values.append(limits.measure(kind))
    return found


def step_to(runner: Runner, wider: Runner, threads: int) -> tuple[float, float, int]:
    """Return the time of a file over that of the wider one: median, lower end, and of how many.

    The lower end is that of the 95 % confidence interval: over the rounds of one start, or, where
    they say that the time grows, over further starts of both processes.
    """
    ratios = round_ratios(runner.times_us, wider.times_us).tolist()
    starts = 1
    if grows(float(np.median(ratios)), median_interval(ratios)[0]):
        further = [_step_again(runner, wider, threads) for _ in range(FURTHER_STARTS)]
        ratios = [float(np.median(ratios)), *(step for step in further if step is not None)]
        starts = len(ratios)
    return float(np.median(ratios)), median_interval(ratios)[0], starts


def _step_again(runner: Runner, wider: Runner, threads: int) -> float | None:
    """Return the time of a file over that of the wider one, with new processes for both.

    None if one of them fails.
    """
    pair = [Runner("tvm", again.label, again.artifact) for again in (wider, runner)]
    with ExitStack() as stack:
        workers = Workers(threads, stack)
        for again in pair:
            again.worker = workers.get(again.runtime, again.label)
        race(pair, ROUNDS_OF_A_START)
    if pair[0].error or pair[1].error:
        return None
    return float(np.median(round_ratios(pair[1].times_us, pair[0].times_us)))


# ---- results


def make_rows(
    files: Files,
    formats: Sequence[str],
    runners: list[Runner],
    limits: Mapping[str, list[float]],
    threads: int,
) -> list[Row]:
    """Return a row for each format."""
    ours = {runner.label: runner for runner in runners if runner.runtime == "tvm"}
    rows = []
    for label in formats:
        runner, identity = ours.get(label), (files.network.name, threads, label)
        if runner is None or runner.error is not None:
            rows.append(Row(*identity, error=runner.error if runner else files.errors[label]))
            continue
        peer, wider = best_peer(runners, label), _next_wider(label, ours)
        latency = summarize(runner.rounds(peer), COMPARISON_PROTOCOL.tolerance, threads)
        limit = np.array(limits["float" if label in FLOATS else "integer"])
        step, step_low, step_starts = step_to(runner, wider, threads) if wider else (None, None, 1)
        speeds = 2e-3 * files.network.macs / np.array(runner.times_us)
        row = Row(
            *identity,
            latency_us=latency.latency_us,
            spread_us=latency.spread_us,
            is_noisy=latency.is_noisy,
            peer=peer.name if peer else None,
            ratio=latency.ratio,
            share=float(np.median(speeds / limit)),
            step=step,
            step_low=step_low,
            step_starts=step_starts,
            make_s=files.make_s[label],
            build_s=runner.build_s[0],
            warm_s=runner.build_s[1],
        )
        rows.append(row)
    return rows


def best_peer(runners: list[Runner], label: str) -> Runner | None:
    """Return the fastest peer for a format: on the float file, or on any integer one."""
    peers = [r for r in runners if r.runtime in PEERS and r.error is None and r.blocks]
    rivals = [r for r in peers if (r.label in FLOATS) == (label in FLOATS)]
    return min(rivals, key=lambda r: float(np.median(r.times_us)), default=None)


def _next_wider(label: str, ours: Mapping[str, Runner]) -> Runner | None:
    while label in WIDER:
        label = WIDER[label]
        if label in ours and ours[label].error is None:
            return ours[label]
    return None


def peer_rows(files: Files, runners: list[Runner], threads: int) -> list[dict[str, Any]]:
    """Return the times of the peers."""
    return [
        {
            "network": files.network.name,
            "threads": threads,
            "runtime": runner.runtime,
            "file": runner.label,
            "error": runner.error,
            "latency_us": float(np.median(runner.times_us)) if runner.blocks else None,
            "spread_us": half_iqr(runner.times_us) if runner.blocks else None,
        }
        for runner in runners
        if runner.runtime != "tvm"
    ]


# ---- main


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, known in (("networks", NETWORKS), ("formats", FORMATS)):
        parser.add_argument(f"--{name}", default=",".join(known), help="separated by commas")
    parser.add_argument("--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("--profile", default="local")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layers", action="store_true", help="time every call as well")
    parser.add_argument("--cold", action="store_true", help="begin with an empty kernel cache")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="write a plot here (HTML)")
    options = parser.parse_args()
    options.threads = [int(n) for n in options.threads.split(",")]
    for name, known in (("networks", NETWORKS), ("formats", FORMATS)):
        chosen = getattr(options, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name} must be among {', '.join(known)}, but got {unknown}")
        setattr(options, name, chosen)
    return options


class Benchmark:
    """The run of all networks; figures gather in lists."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.profile = load_profile(options.profile)
        self.peers_isa = limit_peers(self.profile, folder)
        self.rows: list[Row] = []
        self.peers: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self._files: dict[str, Files | str] = {}

    def run(self) -> None:
        """Run it."""
        if self.peers_isa:
            print(f"The peers are limited to {self.peers_isa}, the profile's instruction set.")
        for threads in self.options.threads:
            profile = self.profile.with_threads(threads)
            limits = Limits(profile)
            with ExitStack() as stack:
                workers = Workers(threads, stack)
                for name in self.options.networks:
                    files = self.files(name)
                    if isinstance(files, str):
                        formats = self.options.formats
                        self.rows += [Row(name, threads, label, files) for label in formats]
                        print(f"\n{name}, threads {threads}: {files}")
                    else:
                        self.run_network(files, workers, profile, limits)

    def files(self, name: str) -> Files | str:
        """Return the files of a network, made at the first use, or why there are none."""
        if name not in self._files:
            errors: dict[str, str] = {}
            with noting(errors, name):
                self._files[name] = make_files(
                    name, self.options.formats, self.profile, self.folder
                )
            if errors:
                self._files[name] = errors[name]
        return self._files[name]

    def run_network(
        self, files: Files, workers: Workers, profile: HardwareProfile, limits: Limits
    ) -> None:
        """Build, time and show one network at one number of threads."""
        formats, name, threads = self.options.formats, files.network.name, profile.threads
        runners = start_runners(files, formats, workers, profile)
        found = race(runners, self.options.rounds, limits)
        rows = make_rows(files, formats, runners, found, threads)
        typical = {kind: float(np.median(values)) for kind, values in found.items()}
        show(rows, name, typical, files.network.macs)
        failed = {r.name: r.error for r in runners if r.runtime in PEERS}
        failed |= {label: error for label, error in files.errors.items() if label not in formats}
        for label, error in failed.items():
            if error is not None:
                print(f"  {label}: {error}")
        self.rows += rows
        self.peers += peer_rows(files, runners, threads)
        for row in rows if self.options.layers else ():
            if row.error is None:
                errors: dict[str, str] = {}
                with noting(errors, row.format):
                    calls = time_calls(files.formats[row.format], profile, typical)
                    show_calls(calls, f"{name}, threads {threads}, {row.format}")
                    key = {"network": name, "threads": threads, "format": row.format}
                    self.calls += [{**key, **call} for call in calls]
                for error in errors.values():
                    print(f"\n{name}, {row.format}: {error}")


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each network shows as soon as it is done
    # Read by TVM when it is imported, here for the limits and the calls.
    os.environ |= {"TVM_NUM_THREADS": str(max(options.threads)), **TVM_POOL}
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
        if options.cold:
            os.environ["PAREDOWN_CACHE"] = f"{folder}/cache"
        benchmark = Benchmark(options, Path(folder))
        try:
            benchmark.run()
        finally:  # also after Ctrl-C: what was measured is not lost
            show_summary(benchmark.rows)
            if options.json:
                options.json.write_text(json.dumps(_as_json(benchmark), indent=1))
            if options.plot and benchmark.rows:
                plot(benchmark.rows, options.plot)


def _as_json(benchmark: Benchmark) -> dict[str, Any]:
    machine = this_machine()
    return {
        "version": 1,
        "machine": machine.brand,
        "cores": machine.cores,
        "profile": benchmark.profile.name,
        "isa": benchmark.profile.isa,
        "peers_limited_to": benchmark.peers_isa,
        "runtimes": {name: get_runtime(name).version() for name in ("tvm", *PEERS)},
        "rounds": benchmark.options.rounds,
        "means": [asdict(mean) for mean in means(benchmark.rows)],
        "complaints": complaints(benchmark.rows),
        "rows": [asdict(row) for row in benchmark.rows],
        "peers": benchmark.peers,
        "calls": benchmark.calls,
    }


if __name__ == "__main__":
    main()
