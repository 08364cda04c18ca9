import numpy as np
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import (
    RUNTIMES,
    OnnxRuntime,
    TensorSpec,
    get_runtime,
    installed_runtimes,
    register,
    require_installed,
)


def test_built_in_runtimes_are_registered() -> None:
    assert {"litert", "onnxruntime", "openvino", "tensorrt", "tvm"} <= RUNTIMES.keys()
    assert isinstance(get_runtime("onnxruntime"), OnnxRuntime)


def test_unknown_runtime_names_the_closest() -> None:
    with pytest.raises(
        EvaluationError, match=r"got 'onnxruntim'\. Did you mean 'onnxruntime'"
    ) as info:
        get_runtime("onnxruntim")
    assert info.value.reason == "unavailable"


def test_runtime_of_another_package_joins_by_its_entry_point(ill_behaved: str) -> None:
    assert ill_behaved not in RUNTIMES
    assert get_runtime(ill_behaved).name == ill_behaved


def test_installed_runtimes_are_found(ill_behaved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other packages join; one that lacks something is left out."""
    found = installed_runtimes()
    assert found[:2] == ("tvm", "onnxruntime")
    assert ill_behaved in found
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self: "it is gone.")
    assert "onnxruntime" not in installed_runtimes()


def test_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'onnxruntime' must be unique, but OnnxRuntime has it"):
        register("onnxruntime")(OnnxRuntime)


def test_missing_library_comes_with_the_command_that_installs_it() -> None:
    class Absent(OnnxRuntime):
        def version(self) -> str | None:
            return None

    with pytest.raises(EvaluationError, match=r"'onnxruntime' .* Run `pip install onnxruntime`"):
        require_installed(Absent())


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_random_floats_are_normal(dtype: str) -> None:
    spec = TensorSpec("input", (None, 40, 50), dtype)
    data = spec.random(np.random.default_rng(0))
    assert data.shape == (1, 40, 50)
    assert data.dtype == dtype
    assert abs(float(data.mean())) < 0.1
    assert float(data.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_random_input_of_another_type_is_zero(dtype: str) -> None:
    data = TensorSpec("input", (1, 4), dtype).random(np.random.default_rng(0))
    assert data.dtype == dtype
    assert not data.any()


def test_open_size_other_than_the_batch_names_the_input() -> None:
    spec = TensorSpec("tokens", (None, None, 3), "float32")
    with pytest.raises(EvaluationError, match=r"input 'tokens' has the shape \(1, \?, 3\)"):
        spec.random(np.random.default_rng(0))


def test_type_that_numpy_lacks_names_the_input() -> None:
    with pytest.raises(EvaluationError, match="input 'x' is 'bfloat7'"):
        TensorSpec("x", (1,), "bfloat7").random(np.random.default_rng(0))
