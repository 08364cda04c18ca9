"""Two small networks compiled for this machine, and servers to run them on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import HardwareProfile, load_profile
from tests.rpc.processes import DeviceServer, Tracker, free_port


def network(channels: int) -> onnx.ModelProto:
    """Return conv, relu, pool, linear on 2 x 12 x 12 inputs; 5 outputs."""
    rng = np.random.default_rng(channels)
    weights = {
        "conv.weight": rng.standard_normal((channels, 2, 3, 3)),
        "fc.weight": rng.standard_normal((5, channels)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 12, 12])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small network and one several times as slow, compiled for this machine."""
    folder = tmp_path_factory.mktemp("libraries")
    profile = load_profile("local")
    compile_onnx(network(8), profile, folder / "small.so")
    compile_onnx(network(128), profile, folder / "large.so")
    return folder / "small.so", folder / "large.so"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DeviceServer]:
    """Return a server of its own for a test that may spoil it."""
    with DeviceServer(tmp_path, free_port()) as process:
        yield process


@pytest.fixture(scope="module")
def lasting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceServer]:
    """Return a server that several tests share; its key is 'board'."""
    with DeviceServer(tmp_path_factory.mktemp("server"), free_port(), key="board") as process:
        yield process


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    """Return a tracker."""
    with Tracker(tmp_path, free_port()) as process:
        yield process


def profile_of(connection: str, job_timeout_s: int = 60) -> HardwareProfile:
    """Return this machine's profile, reached through a connection."""
    from dataclasses import replace

    return replace(load_profile(f"local@{connection}"), job_timeout_s=job_timeout_s)


@pytest.fixture(name="profile_of")
def profile_of_fixture() -> object:
    """Return the function that makes profiles."""
    return profile_of
