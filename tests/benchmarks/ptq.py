"""Compare quantization without training with ONNX Runtime's and NNCF's, on EfficientNet-Lite0.

    python tests/benchmarks/ptq.py --json out.json

The trained weights come from a package (extra `bench`); the images are crops of the photographs
in scikit-learn. With `--split halves` crops of the left halves calibrate and those of the right
halves are judged, so both are alike; with `--split photos` crops of one photograph calibrate and
those of another are judged, which shows how much hangs on the calibration images. There are no
labels, so what counts is how true a quantized model is to the float one: the share of images with
the same largest output, and the ratio of signal to noise of the outputs and of the layers that no
activation follows. ONNX Runtime runs all files with their literal meaning, without changing the
graph. NNCF takes part where it is installed (`pip install nncf`).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from sklearn.datasets import load_sample_image
from torch import Tensor

from paredown.evaluators.accuracy import sqnr_db, top1_agreement
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.catalog import load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.space import SearchSpace, SpaceSettings

if TYPE_CHECKING:
    from tests.benchmarks.networks import load_network
else:  # a script's folder is on the path, not the one above it
    from networks import load_network

PHOTOS = ("china.jpg", "flower.jpg")
SIZE = 224
CROPS = (110, 320)  # pixels of a side; half of a photograph is 320 wide
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_LAYERS = 8  # images that layers are compared on


def load_parts(split: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the pictures that calibrate and those that are judged."""
    photos = [
        torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255.0
        for name in PHOTOS
    ]
    if split == "photos":
        return photos[:1], photos[1:]
    middle = photos[0].shape[3] // 2
    return [p[..., :middle] for p in photos], [p[..., middle:] for p in photos]


def crops(pictures: Sequence[Tensor], n: int, seed: int) -> Tensor:
    """Return square crops of pictures in turn, at random places and sizes, normalised."""
    rng = np.random.default_rng(seed)
    found = []
    for idx in range(n):
        picture = pictures[idx % len(pictures)]
        size = int(rng.integers(*CROPS))
        top, left = (int(rng.integers(0, extent - size + 1)) for extent in picture.shape[2:])
        crop = picture[:, :, top : top + size, left : left + size]
        crop = torch.nn.functional.interpolate(crop, (SIZE, SIZE), mode="bilinear")
        found.append(crop.flip(3) if rng.random() < 0.5 else crop)
    images = torch.cat(found)
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def make_task(split: str, n_calibration: int, n_images: int) -> Task:
    model = load_network("efficientnet-lite0").model
    calibrating, judged = load_parts(split)
    calibration = crops(calibrating, n_calibration, 0)
    data = Data.from_model(model, crops(judged, n_images, 1))
    return Task(
        "efficientnet-lite0", model, calibration[:1], calibration, data,
        metric=top1_agreement, metric_name="agreement",
    )  # fmt: skip


def onnxruntime_files(model: ModelProto, inputs: Tensor) -> Iterator[tuple[str, ModelProto]]:
    """Yield what ONNX Runtime's static quantization makes, with each way to calibrate."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._rest = iter(inputs.numpy())

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._rest, None)
            return None if image is None else {model.graph.input[0].name: image[None]}

    for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
            )
            yield f"ONNX Runtime {method.name}", onnx.load(target)


def nncf_files(model: ModelProto, inputs: Tensor) -> Iterator[tuple[str, ModelProto]]:
    """Yield what NNCF makes, if it is installed."""
    if importlib.util.find_spec("nncf") is None:
        print("NNCF is not installed")
        return
    nncf: Any = importlib.import_module("nncf")
    name = model.graph.input[0].name

    def feed(image: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {name: image[None]}

    data = nncf.Dataset(list(inputs.numpy()), feed)
    yield "NNCF", nncf.quantize(model, data, subset_size=len(inputs))


def run(model: ModelProto, inputs: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Return the values of tensors of a graph, as the file says they are computed."""
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    source = session.get_inputs()[0].name
    rows = [session.run(list(names), {source: image[None].numpy()}) for image in inputs]
    return [torch.from_numpy(np.concatenate(values)) for values in zip(*rows, strict=True)]


def judged_layers(graph: onnx.GraphProto) -> list[str]:
    """Return the outputs of layers that no activation follows.

    Others may be scaled, channel by channel, where the layers behind them make up for it.
    """
    cut = {name for n in graph.node if n.op_type == "Clip" for name in n.input}
    layers = [n.output[0] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    return [name for name in layers if name not in cut]


def judge(
    name: str, task: Task, float_model: ModelProto, make: Callable[[], ModelProto]
) -> dict[str, Any]:
    """Make a file and compare it with the float model."""
    start = time.perf_counter()
    model = make()
    seconds = time.perf_counter() - start
    inputs = task.validation.inputs
    (outputs,) = run(model, inputs, [model.graph.output[0].name])
    made = {n for node in model.graph.node for n in node.output}
    names = [n for n in judged_layers(float_model.graph) if n in made]
    pairs = zip(
        run(model, inputs[:N_LAYERS], names), run(float_model, inputs[:N_LAYERS], names),
        strict=True,
    )  # fmt: skip
    row = {
        "name": name,
        "agreement": top1_agreement(outputs, task.validation.targets),
        "sqnr_db": sqnr_db(outputs, task.validation.targets),
        "layers_sqnr_db": [sqnr_db(found, wanted) for found, wanted in pairs],
        "seconds": seconds,
    }
    layers = np.array(row["layers_sqnr_db"])
    print(
        f"{name:28} agreement {row['agreement']:.3f}, output {row['sqnr_db']:5.1f} dB, layers "
        f"median {np.median(layers):5.1f} dB, least {layers.min():5.1f} dB, {seconds:.1f} s",
        flush=True,
    )
    return row


def compress(compressor: Compressor, candidate: Candidate) -> ModelProto:
    return compressor.compress(candidate).model


def main() -> None:
    """Compare all ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=int, default=32, help="images that calibrate")
    parser.add_argument(
        "--split", choices=("halves", "photos"), default="halves", help="what calibrates"
    )
    parser.add_argument("--images", type=int, default=128, help="images that are judged")
    parser.add_argument("--widths", default="8,4", help="of weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = make_task(arguments.split, arguments.calibration, arguments.images)
    space = SearchSpace.from_model(
        task.model, task.example_input, load_profile("x86-64-v3"), SpaceSettings(0.0)
    )
    compressors = {
        rounding: Compressor(
            task,
            space,
            CompressionSettings(
                n_calibration=arguments.calibration, round_by_outputs=rounding == "by outputs"
            ),
        )
        for rounding in ("to nearest", "by outputs")
    }
    base = compressors["by outputs"].compress(space.baseline()).model
    rows = [
        judge(
            f"Paredown W{bits}A8 {rounding}",
            task,
            base,
            partial(compress, compressor, space.uniform(bits)),
        )
        for bits in map(int, arguments.widths.split(","))
        for rounding, compressor in compressors.items()
    ]
    for files in (onnxruntime_files, nncf_files):
        for name, model in files(base, task.calibration):
            rows.append(judge(name, task, base, partial(copy.copy, model)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
