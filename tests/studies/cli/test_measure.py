import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import installed_runtimes

RunCli = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return path


@pytest.mark.slow
def test_json(run_cli: RunCli, model: Path) -> None:
    answer = run_cli("measure", model, "--runtimes", "onnxruntime", "--format", "json")

    assert answer.status == 0
    measured = json.loads(answer.out)
    assert measured["threads"] == 1
    assert measured["runtimes"]["onnxruntime"]["latency_us"] > 0
    assert measured["runtimes"]["onnxruntime"]["ratio"] == pytest.approx(1.0)
    assert measured["runtimes"]["onnxruntime"]["difference"] == 0
    assert measured["runtimes"]["onnxruntime"]["peak_memory_bytes"] > 0
    energy_mj = measured["runtimes"]["onnxruntime"]["energy_mj"]
    assert energy_mj is None or energy_mj > 0


@pytest.mark.slow
def test_table(run_cli: RunCli, model: Path) -> None:
    assert " us" in run_cli("measure", model, "--runtimes", "onnxruntime").out


def test_truncated_model(run_cli: RunCli, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:100])

    answer = run_cli("measure", model, "--runtimes", "onnxruntime")

    assert answer.status == 1
    assert "model.onnx" in answer.err


def test_unknown_runtime(run_cli: RunCli, model: Path) -> None:
    answer = run_cli("measure", model, "--runtimes", "onnxruntim")

    assert answer.status == 1
    assert "Did you mean 'onnxruntime'" in answer.err


@pytest.mark.slow
def test_all_that_are_installed(run_cli: RunCli, model: Path) -> None:
    answer = run_cli("measure", model, "--runtimes", "all", "--format", "json")

    assert answer.status == 0
    runtimes = json.loads(answer.out)["runtimes"]
    assert list(runtimes) == list(installed_runtimes())
    assert {"tvm", "onnxruntime"} <= runtimes.keys()
    for values in runtimes.values():
        assert values["error"] is None
        assert values["difference"] < 1e-4


def test_repeated_runtime_is_wrong_usage(run_cli: RunCli, model: Path) -> None:
    assert run_cli("measure", model, "--runtimes", "tvm,tvm").status == 2


def test_too_many_threads(run_cli: RunCli, model: Path) -> None:
    answer = run_cli("measure", model, "--threads", "4096", "--runtimes", "onnxruntime")

    assert answer.status == 1
    assert "4096" in answer.err
