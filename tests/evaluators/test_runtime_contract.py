"""What every registered runtime must do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import RUNTIMES, Runtime, get_runtime
from paredown.evaluators.runtimes.base import Array
from paredown.evaluators.timing import LatencyProtocol
from paredown.evaluators.worker import Worker
from paredown.hw_profiles.profile import HardwareProfile

pytestmark = pytest.mark.slow  # tvm takes seconds to import


FLOAT = onnx.TensorProto.FLOAT
ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.device) if name in ON_GPU else name
        for name in sorted(RUNTIMES)
    ]
)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    runtime = get_runtime(request.param)
    lack = runtime.missing()
    if lack is not None:
        pytest.skip(f"runtime '{request.param}': {lack}")
    return runtime


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Share one process among the tests, as slow imports would come with each."""
    with Worker() as worker:
        yield worker


@pytest.fixture
def artifact(
    runtime: Runtime, worker: Worker, small_net: Path, tmp_path: Path, profile: HardwareProfile
) -> Path:
    path = tmp_path / f"artifact{runtime.suffix}"
    worker.build(runtime.name, small_net, path, profile)
    return path


@pytest.fixture
def samples() -> Array:
    return np.random.default_rng(3).standard_normal((4, 2, 12, 12)).astype(np.float32)


def reference(model: Path, samples: Array) -> Array:
    evaluator = ReferenceEvaluator(onnx.load(model))
    outputs: list[Array] = []
    for sample in samples:
        outputs.extend(np.asarray(evaluator.run(None, {"input": sample[None]})))
    return np.concatenate(outputs)


def test_describes_itself(runtime: Runtime) -> None:
    assert RUNTIMES[runtime.name] is type(runtime)
    assert runtime.suffix.startswith(".")
    assert runtime.version()


def test_computes_what_the_file_means(
    runtime: Runtime, worker: Worker, artifact: Path, small_net: Path, samples: Array
) -> None:
    outputs = worker.predict(runtime.name, artifact, samples)
    np.testing.assert_allclose(outputs, reference(small_net, samples), rtol=1e-4, atol=1e-5)


def test_float_weights_may_be_stored_in_float16(
    runtime: Runtime,
    worker: Worker,
    small_net: Path,
    samples: Array,
    tmp_path: Path,
    profile: HardwareProfile,
) -> None:
    model = onnx.load(small_net)
    casts = []
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            halves = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            name = f"{tensor.name}.float16"
            casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=FLOAT))
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, name))
    nodes = [*casts, *model.graph.node]
    assert casts
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path, artifact = tmp_path / "halves.onnx", tmp_path / f"halves{runtime.suffix}"
    onnx.save(model, path)
    worker.build(runtime.name, path, artifact, profile)
    outputs = worker.predict(runtime.name, artifact, samples)
    np.testing.assert_allclose(outputs, reference(path, samples), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 7])
def test_activations_may_have_fewer_bits(
    runtime: Runtime,
    worker: Worker,
    builder: Any,
    bits: int,
    tmp_path: Path,
    profile: HardwareProfile,
) -> None:
    step, middle = 0.03 * 2 ** (8 - bits), 2 ** (bits - 1)
    x = builder.quantized("input", step, middle, bits)
    x = builder.op("Relu", builder.conv(x, (8, 2, 3, 3), 4, step))
    x = builder.quantized(x, step, 0, bits)
    x = builder.quantized(builder.conv(x, (8, 8, 3, 3), 4, step), step, middle, bits)
    model = builder.model((1, 2, 12, 12), builder.op("Flatten", x))
    path, artifact = tmp_path / "few.onnx", tmp_path / f"few{runtime.suffix}"
    onnx.save(model, path)
    worker.build(runtime.name, path, artifact, profile)
    samples = np.random.default_rng(0).normal(0, 3, (8, 2, 12, 12)).astype(np.float32)
    found = np.rint(worker.predict(runtime.name, artifact, samples) / step)
    expected = np.rint(reference(path, samples) / step)
    assert len(np.unique(expected)) > 2 ** (bits - 1)
    assert np.abs(found - expected).max() <= 1  # a tie
    assert (found != expected).mean() < 0.01


def test_session_names_its_inputs_and_outputs(runtime: Runtime, artifact: Path) -> None:
    session = runtime.load(artifact, 1)
    assert [(spec.shape, spec.dtype) for spec in session.inputs] == [((1, 2, 12, 12), "float32")]
    assert [(spec.shape, spec.dtype) for spec in session.outputs] == [((1, 5), "float32")]


def test_outputs_belong_to_the_caller(
    runtime: Runtime, artifact: Path, small_net: Path, samples: Array
) -> None:
    """A later run must not change what an earlier one returned."""
    session = runtime.load(artifact, 1)
    outputs = [session.run(sample[None])[0] for sample in samples]
    session.bind(samples[:1])()
    expected = reference(small_net, samples)
    np.testing.assert_allclose(np.concatenate(outputs), expected, rtol=1e-4, atol=1e-5)


def test_sessions_live_side_by_side(
    runtime: Runtime, artifact: Path, small_net: Path, samples: Array
) -> None:
    first, second = runtime.load(artifact, 1), runtime.load(artifact, 1)
    call = first.bind(samples[:1])
    expected = second.run(samples[:1])[0]
    call()
    del first
    np.testing.assert_array_equal(second.run(samples[:1])[0], expected)


def test_a_rebuilt_artifact_is_loaded_anew(
    runtime: Runtime,
    artifact: Path,
    small_net: Path,
    samples: Array,
    tmp_path: Path,
    profile: HardwareProfile,
) -> None:
    """A new file under an old name counts, though a session of the old one is still open."""
    model = onnx.load(small_net)
    first = runtime.load(artifact, 1)
    for tensor in model.graph.initializer:
        values = -onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    runtime.build(changed, artifact, profile)
    second = runtime.load(artifact, 1)
    expected = reference(changed, samples[:1])
    np.testing.assert_allclose(second.run(samples[:1])[0], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(first.run(samples[:1])[0], expected)


def test_is_timed_against_a_baseline(
    runtime: Runtime,
    worker: Worker,
    artifact: Path,
    large_net: Path,
    tmp_path: Path,
    profile: HardwareProfile,
) -> None:
    baseline = tmp_path / f"baseline{runtime.suffix}"
    worker.build(runtime.name, large_net, baseline, profile)
    rounds = worker.time(
        runtime.name, artifact, baseline=baseline, protocol=LatencyProtocol(budget_s=0.3)
    )
    assert rounds.baseline_us is not None
    assert np.median(rounds.candidate_us) < np.median(rounds.baseline_us)


def test_garbage_is_refused(
    runtime: Runtime, worker: Worker, tmp_path: Path, profile: HardwareProfile
) -> None:
    model = tmp_path / "garbage.onnx"
    model.write_bytes(b"garbage" * 100)
    path = tmp_path / f"artifact{runtime.suffix}"
    with pytest.raises(EvaluationError, match=r"garbage\.onnx"):
        worker.build(runtime.name, model, path, profile)
    assert not path.exists()


def test_missing_artifact_is_named(runtime: Runtime, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / f"nowhere{runtime.suffix}"
    with pytest.raises(EvaluationError, match="nowhere") as info:
        worker.predict(runtime.name, path, np.zeros((1, 1), np.float32))
    assert info.value.reason == "load"
