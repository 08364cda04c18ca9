"""Compile an ONNX model for a device."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from ...hw_profiles import HardwareProfile, ProfileError, check_runs_here
from ..measurement import EvaluationError
from ..onnx_graph.graph import Graph, load_model
from .cache import KernelCache, link
from .cuda import compile_for_gpu
from .data_section import DataSection
from .flattening import flatten_pixels
from .knobs import KnobChooser


def compile_onnx(
    model: onnx.ModelProto | Path,
    profile: HardwareProfile,
    artifact: Path,
    cache_folder: Path | None = None,
) -> None:
    """Compile a model to a shared library that TVM's virtual machine runs.

    Args:
        model: Float or QDQ model with static shapes, or its file.
        profile: The device; its `threads` is the number of threads the network will run with.
        artifact: The library to write.
        cache_folder: Where compiled kernels are kept; the default is the user's cache folder.

    Raises:
        EvaluationError: If the model is invalid, an operator is not supported (it is named), or
            the compiler fails.
    """
    from tvm import relax

    from . import across_rules, conv_rules, image_rules, matmul_rules, move_rules  # noqa: F401  # they register
    from .gpu.lowering import GpuLowering
    from .lowering import Lowering
    from .weights import place_weights

    graph = Graph(load_model(model) if isinstance(model, Path) else model, flatten_pixels)
    cache = KernelCache(profile.target, cache_folder)
    chooser = KnobChooser(
        cache,
        profile.isa,
        can_time=_runs_here(profile),
        reads_halves=profile.reads_halves,
    )
    try:
        lower = GpuLowering if profile.device == "cuda" else Lowering
        lowering = lower(graph, cache, chooser, profile)
        module = lowering.run()
        if profile.device == "cpu":
            module = relax.get_pipeline("zero")(module)
        weights = place_weights(module, lowering.emit.weights, profile.device)
        kernels = {**lowering.emit.kernels, **weights.kernels}
        module = cache.with_kernels(weights.module, kernels.values())
        if profile.device == "cuda":
            executable = compile_for_gpu(module, cache.target)
        else:
            executable = cache.compile(module)
        _export(executable, weights.data, artifact, cache)
    except EvaluationError:
        raise
    except Exception as error:  # TVM raises plain exceptions of many types
        raise EvaluationError(f"TVM could not compile the network: {error}", "build") from error
    finally:
        chooser.save()


def _export(executable: Any, data: DataSection, artifact: Path, cache: KernelCache) -> None:
    """Write the library under another name first: an interrupted build leaves no half file."""
    try:
        with tempfile.TemporaryDirectory(dir=artifact.parent, prefix=".build-") as folder:
            temporary = Path(folder) / "network.so"
            further = cache.start_objects()
            if data.size:
                further.append(Path(folder) / "weights.o")
                data.write_object(further[-1], cache.triple)
            executable.export_library(
                str(temporary),
                fcompile=lambda library, objects, **_: link(
                    Path(library), [*objects, *further], cache.linker
                ),
            )
            temporary.replace(artifact)
    except OSError as error:
        raise EvaluationError(
            f"Library '{artifact}' could not be written: {error.strerror}.", "build"
        ) from error


def _runs_here(profile: HardwareProfile) -> bool:
    if profile.connection != "local":
        return False
    try:
        check_runs_here(profile)
    except ProfileError:
        return False
    return True
