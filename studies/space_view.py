"""A search space as a table: what there is, what it costs, and what may vary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from rich.table import Table

from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import EvaluationError
from ..evaluators.runtimes import get_runtime
from ..evaluators.task import check_task
from ..evaluators.worker import Worker
from ..hw_profiles.profile import HardwareProfile
from ..search.candidate import FLOAT_WIDTHS, HALF_BITS, width_name
from ..search.compression.compressor import Compressor
from ..search.knowledge.sizes import Choices, LayerSizes
from ..search.knowledge.widths import size_only_bits
from ..search.space import SearchSpace
from .checks import check_profiles
from .config import StudyConfig
from .engine import describe_study
from .tasks import load_task
from .weights import make_space


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of the uncompressed model, and what may become of it.

    Attributes:
        name, kind: As in the space.
        weight_shape, output_shape: Before pruning.
        macs: Multiply-accumulate operations.
        size_share: Share of the bytes of all layers.
        latency_share: Share of the time of all kernels; None where it was not timed.
        weight_bits, activation_bits: Widths on offer.
        kept: Output channels that may be kept; empty where they stay.
        follows: Layer whose widths it shares, None if its own.
        group: Group that its outputs belong to.
        reason: Why its outputs are not pruned.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    size_share: float
    latency_share: float | None
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    kept: tuple[int, ...]
    follows: str | None
    group: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class SpaceView:
    """All that `paredown space` shows.

    Attributes:
        task, profile: Names.
        layers: In the order of execution.
        other_latency_share: Share of the time of kernels that are no layer.
        size_only_bits: Widths that are no faster than 8 bits, or than float, on the profile.
        n_parameters: What a sampler is asked for.
        log10_candidates: Logarithm of the number of candidates.
    """

    task: str
    profile: str
    layers: tuple[LayerRow, ...]
    other_latency_share: float | None
    size_only_bits: tuple[int, ...]
    n_parameters: int
    log10_candidates: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def view_space(
    config: StudyConfig, report: Callable[[str], None], *, is_timed: bool = True
) -> SpaceView:
    """Describe the space that a study with these options would search.

    Args:
        config: The study's options; no study is begun.
        report: Told what is being done.
        is_timed: Whether the layers of the uncompressed model are timed.

    Raises:
        ParedownError: If an option or the task is wrong, or the model cannot be built.
    """
    study = describe_study(config, check_profiles(config))
    profile = study.profile
    report("loading the task")
    task = load_task(study.task, data_dir=study.settings.data_dir, report=report)
    check_task(task)
    space = make_space(study.settings, task, profile)
    times = None
    if is_timed:
        report("timing the layers")
        with Worker(profile.threads, preload=(config.runtime,)) as worker:
            worker.start()
            model = Compressor(task, space).compress(space.baseline()).model
            times = _time(model, worker, config.runtime, profile)
    return describe_space(
        space, task.name, profile.name, size_only_bits(profile, _widths(space)), times
    )


def describe_space(
    space: SearchSpace,
    task: str,
    profile: str,
    size_only: tuple[int, ...],
    times: LayerTimes | None,
) -> SpaceView:
    """Put a space and the times of its uncompressed layers into rows."""
    choices = Choices.of(space, [space.baseline()])
    sizes = LayerSizes(space).size_bytes(choices)[0]
    reasons = dict(space.unprunable)
    rows = []
    for place, layer in enumerate(space.layers):
        group = next((g for g in space.groups if layer.name in g.layers), None)
        share = None if times is None else times.layers_us.get(layer.name, 0.0) / times.total_us
        leader = space.layers[space.layer_choices[place]]
        rows.append(
            LayerRow(
                layer.name,
                layer.kind,
                layer.weight_shape,
                layer.output_shape,
                layer.macs,
                float(sizes[place] / sizes.sum()),
                share,
                layer.weight_bits,
                layer.activation_bits,
                () if group is None else group.kept_options,
                None if leader is layer else leader.name,
                None if group is None else group.name,
                reasons.get(layer.name),
            )
        )
    options = space.options()
    return SpaceView(
        task,
        profile,
        tuple(rows),
        None if times is None else times.other_us / times.total_us,
        size_only,
        len(options),
        sum(math.log10(len(values)) for values in options.values()),
    )


def space_table(view: SpaceView) -> Table:
    """Return the layers as a Rich table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for header in ("weights", "output", "MACs", "size", "latency"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("weight bits")
    table.add_column("act. bits")
    table.add_column("channels kept")
    for row in view.layers:
        latency = "" if row.latency_share is None else f"{row.latency_share:.1%}"
        table.add_row(
            row.name,
            "x".join(map(str, row.weight_shape)),
            "x".join(map(str, row.output_shape[1:])),
            _count(row.macs),
            f"{row.size_share:.1%}",
            latency,
            f"as {row.follows}" if row.follows else _bits(row.weight_bits),
            ""
            if row.follows or row.weight_bits[0] in FLOAT_WIDTHS
            else _bits(row.activation_bits),
            _kept(row),
        )
    return table


def space_notes(view: SpaceView) -> list[str]:
    """Return what stands below the table."""
    notes = [
        f"{view.n_parameters} parameters, 10^{view.log10_candidates:.1f} candidates on profile "
        f"'{view.profile}'."
    ]
    if view.other_latency_share is not None:
        notes.append(f"{view.other_latency_share:.1%} of the time is no layer's.")
    few = [bits for bits in view.size_only_bits if bits != HALF_BITS]
    if few:
        widths = ", ".join(map(str, few))
        notes.append(
            f"Weights of {widths} bits are for size only: they run as fast as 8 bits on "
            f"'{view.profile}', whose instructions sum products into 32 bits at every width."
        )
    if HALF_BITS in view.size_only_bits:
        notes.append(
            f"Weights in float16 are for size only: on '{view.profile}' they are widened when the "
            "model is loaded, and run as fast as float."
        )
    for row in view.layers:
        if row.reason is not None:
            notes.append(f"Channels of {row.name} stay: {row.reason}.")
    return notes


def _time(
    model: onnx.ModelProto, worker: Worker, runtime: str, profile: HardwareProfile
) -> LayerTimes | None:
    with TemporaryDirectory(prefix="paredown-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        artifact = Path(folder) / f"built{get_runtime(runtime).suffix}"
        worker.build(runtime, path, artifact, profile)
        try:
            times, _ = worker.time_layers(runtime, artifact, threads=profile.threads)
        except EvaluationError as error:
            if error.reason != "unavailable":
                raise
            return None  # a runtime that cannot tell its layers apart
    return times


def _widths(space: SearchSpace) -> tuple[int, ...]:
    return tuple(sorted({bits for layer in space.layers for bits in layer.weight_bits}))


def _bits(widths: tuple[int, ...]) -> str:
    return " ".join(map(width_name, widths))


def _kept(row: LayerRow) -> str:
    if not row.kept:
        return "all"
    shown = " ".join(map(str, row.kept))
    if len(row.kept) > 4:
        shown = f"{row.kept[0]} {row.kept[1]} .. {row.kept[-1]}"
    return shown if row.group == row.name else f"{shown} (as {row.group})"


def _count(number: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return str(number)
