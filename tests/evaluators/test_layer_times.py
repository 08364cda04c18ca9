from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.layer_times import LayerTimes, time_layers
from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.worker import Worker
from paredown.hw_profiles.profile import HardwareProfile


class Timer:
    """A network of two layers, one of them called twice, that gets faster with each run."""

    def __init__(self, us: float) -> None:
        self.us = us

    def __call__(self) -> Sequence[tuple[str, float]]:
        self.us -= 1
        return [("", 1.0), ("conv", self.us), ("fc", 3.0), ("conv", 2 * self.us), ("", 0.5)]


def test_the_shortest_time_of_each_call_counts() -> None:
    first, second = time_layers([Timer(10.0), Timer(20.0)], n_runs=2)
    assert first == LayerTimes({"conv": 3 * 7.0, "fc": 3.0}, 1.5)
    assert second.layers_us["conv"] == 3 * 17.0
    assert first.total_us == 25.5
    assert first.scaled(2.0).total_us == 51.0
    assert pickle.loads(pickle.dumps(first)) == first


def test_some_run_must_be_timed() -> None:
    with pytest.raises(ValueError, match="`n_runs` must be 1 or more, but got 0"):
        time_layers([], 0)


def network(folder: Path, channels: int) -> Path:
    """Write two convolutions of the same kernel, the second one with 4 times the work."""
    rng = np.random.default_rng(0)
    shapes = {"small": (channels, channels, 3, 3), "large": (4 * channels, channels, 3, 3)}
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), f"{n}.weight")
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "small.weight"], ["x"], "small", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("Conv", ["y", "large.weight"], ["output"], "large", pads=[1, 1, 1, 1]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 32, 32])
        for n, c in (("input", channels), ("output", 4 * channels))
    ]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    path = folder / f"{channels}.onnx"
    opset = helper.make_opsetid("", 21)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.mark.slow
def test_layers_of_a_compiled_network(tmp_path: Path, profile: HardwareProfile) -> None:
    with Worker(preload=["tvm"]) as worker:
        artifacts = []
        for channels in (32, 16):
            model = network(tmp_path, channels)
            artifacts.append(model.with_suffix(".so"))
            worker.build("tvm", model, artifacts[-1], profile)
        times, baseline = worker.time_layers("tvm", artifacts[0], baseline=artifacts[1])
        assert baseline is not None
        assert times.layers_us.keys() == baseline.layers_us.keys() == {"small", "large"}
        assert times.layers_us["large"] > 2 * times.layers_us["small"]
        assert times.total_us > 1.5 * baseline.total_us
        assert times.other_us > 0  # the input and the output are converted
        with pytest.raises(EvaluationError, match="tells layers apart, but onnxruntime") as info:
            worker.time_layers("onnxruntime", network(tmp_path, 16))
        assert info.value.reason == "unavailable"
