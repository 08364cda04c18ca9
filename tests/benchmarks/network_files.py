"""The files of a network that are timed: ours in each format, and what the peers make of it."""

import contextlib
import importlib
import importlib.util
import io
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from paredown.evaluators.task import Data, Task
from paredown.hw_profiles import HardwareProfile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings

if TYPE_CHECKING:
    from tests.benchmarks.networks import Network, load_network
else:  # scripts run from here: this folder is on the path
    from networks import Network, load_network

FORMATS = {  # bits of weights and activations
    "fp32": (32, 8),
    "fp16": (16, 8),  # weights alone: what is computed stays float32
    "w8a8": (8, 8),
    "w7a8": (7, 8),
    "w6a8": (6, 8),
    "w4a8": (4, 8),
    "w2a8": (2, 8),
    "w7a7": (7, 7),
    "w4a4": (4, 4),
}
FLOATS = ("fp32", "fp16")


@dataclass
class Files:
    """The files of one network; what could not be made has an error instead."""

    network: Network
    formats: dict[str, Path] = field(default_factory=dict)
    peers: dict[str, Path] = field(default_factory=dict)
    make_s: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def make_files(name: str, formats: Sequence[str], profile: HardwareProfile, root: Path) -> Files:
    """Write the files of a network: ours in each format, and what the peers make of it."""
    network, folder = load_network(name), root / name
    folder.mkdir()
    files, inputs = Files(network), network.inputs
    settings = SpaceSettings(
        max_pruning_ratio=0.0,
        weight_bits=tuple(sorted({*profile.weight_bits, 16})),
        activation_bits=profile.activation_bits,
    )
    space = SearchSpace.from_model(network.model, inputs[:1], profile, settings)
    data = Data(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    task = Task(name, network.model, inputs[:1], inputs, data)
    compressor = Compressor(task, space, CompressionSettings(n_calibration=len(inputs)))
    is_integer = any(label not in FLOATS for label in formats)
    if is_integer:
        compressor.compress(space.uniform(8))  # calibrates; what follows is a candidate's cost
    for label in dict.fromkeys(["fp32", *formats, *(["w8a8", "w7a8"] if is_integer else [])]):
        candidate = space.baseline() if label == "fp32" else space.uniform(*FORMATS[label])
        start = time.perf_counter()
        with noting(files.errors, label):
            onnx.save(compressor.compress(candidate).model, folder / f"{label}.onnx")
            files.formats[label] = folder / f"{label}.onnx"
            files.make_s[label] = time.perf_counter() - start
    files.peers = {k: v for k, v in files.formats.items() if k in ("fp32", "w8a8", "w7a8")}
    if is_integer and "fp32" in files.formats:
        _quantize_for_peers(files, profile, folder)
    return files


def _quantize_for_peers(files: Files, profile: HardwareProfile, folder: Path) -> None:
    """Quantize the float file with the tools of the peers, as these recommend it."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.samples = iter([{"input": x[None].numpy()} for x in files.network.inputs])

        def get_next(self) -> Any:
            return next(self.samples, None)

    # Without a dot product, sums of two products of 8 bits saturate in 16.
    has_dot = profile.arch != "x86_64" or not {"avx512_vnni", "avx_vnni"}.isdisjoint(
        profile.features
    )
    narrow = {"per_channel": True, "reduce_range": not has_dot}
    source, prepared = files.formats["fp32"], folder / "prepared.onnx"
    with noting(files.errors, "static"):
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        kinds = {
            "activation_type": quantization.QuantType.QUInt8,
            "weight_type": quantization.QuantType.QInt8,
        }
        quantization.quantize_static(prepared, folder / "static.onnx", Reader(), **kinds, **narrow)
        files.peers["static"] = folder / "static.onnx"
    if all(node.op_type != "Conv" for node in onnx.load(source).graph.node):
        with noting(files.errors, "dynamic"):
            quantization.quantize_dynamic(prepared, folder / "dynamic.onnx", **narrow)
            files.peers["dynamic"] = folder / "dynamic.onnx"
    if importlib.util.find_spec("nncf") is not None:
        with noting(files.errors, "nncf"), contextlib.redirect_stdout(io.StringIO()):
            nncf: Any = importlib.import_module("nncf")
            samples = nncf.Dataset([{"input": x[None].numpy()} for x in files.network.inputs])
            onnx.save(nncf.quantize(onnx.load(source), samples), folder / "nncf.onnx")
            files.peers["nncf"] = folder / "nncf.onnx"


@contextlib.contextmanager
def noting(errors: dict[str, str], label: str) -> Iterator[None]:
    """Note an error of any kind under a label: the rest of the benchmark goes on."""
    logging.disable(logging.WARNING)  # of the quantizers
    try:
        yield
    except Exception as error:  # peers fail in ways of their own
        errors[label] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    finally:
        logging.disable(logging.NOTSET)
