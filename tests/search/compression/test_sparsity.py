from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.size import coded_size_bytes
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles import ProfileError, check_runs_here
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.compression.sparsity import Sparsity, input_importance, sparsify
from paredown.search.space import SearchSpace, SpaceSettings


def test_a_text_is_a_share_or_a_pattern() -> None:
    assert Sparsity.parse("0.75") == Sparsity(0.75)
    assert Sparsity.parse("2:4") == Sparsity(0.5, 4)
    assert Sparsity.parse("1:4") == Sparsity(0.75, 4)


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:4:8", "half", "1.5", "0", "nan", ""])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a share of zeros .* but got"):
        Sparsity.parse(text)


def test_the_smallest_of_each_output_channel_go() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, -1.0], [10.0, 20.0, -30.0, 40.0]])
    expected = torch.tensor([[4.0, -3.0, 0.0, 0.0], [0.0, 0.0, -30.0, 40.0]])
    assert torch.equal(sparsify(weight, Sparsity(0.5), 0), expected)
    assert torch.equal(sparsify(weight.T, Sparsity(0.5), 1), expected.T)


def test_a_pattern_holds_along_the_input_channels_at_each_place() -> None:
    weight = torch.tensor([[1.0, -4.0], [2.0, 3.0], [3.0, -2.0], [-4.0, 1.0], [1.0, -2.0]])
    weight = weight.reshape(1, 5, 1, 2)
    kept = sparsify(weight, Sparsity.parse("2:4"), 0).reshape(5, 2)
    expected = [[0.0, -4.0], [0.0, 3.0], [3.0, 0.0], [-4.0, 0.0], [1.0, -2.0]]
    assert torch.equal(kept, torch.tensor(expected))


def test_importance_takes_the_place_of_magnitudes() -> None:
    weight = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    scores = input_importance(weight, torch.tensor([[1.0, 10.0]]), 0)
    assert torch.equal(scores, torch.tensor([[3.0, 10.0], [1.0, 30.0]]))
    expected = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert torch.equal(sparsify(weight, Sparsity(0.5), 0, scores), expected)


SPARSITIES = st.one_of(
    st.floats(0.01, 0.99).map(Sparsity), st.sampled_from(["2:4", "1:4", "3:8"]).map(Sparsity.parse)
)


@given(SPARSITIES, st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_shares_hold_and_a_second_time_changes_nothing(
    sparsity: Sparsity, outputs: int, inputs: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs, size, size)
    found = sparsify(weight, sparsity, 0)
    assert torch.equal(sparsify(found, sparsity, 0), found)
    assert torch.equal(found[found != 0], weight[found != 0])
    if sparsity.block is None:
        n_weights = inputs * size * size
        zeros = (found == 0).flatten(1).sum(1)
        assert (zeros == int(n_weights * sparsity.ratio)).all()
    else:
        most = sparsity.block - int(sparsity.block * sparsity.ratio)
        for block in found.split(sparsity.block, dim=1):
            assert ((block != 0).sum(1) <= most).all()


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).relu()
        return torch.as_tensor(self.fc(x.mean((2, 3))))


def make(profile: HardwareProfile, **settings: object) -> tuple[Compressor, SearchSpace, Task]:
    torch.manual_seed(0)
    model = Net().eval()
    inputs = torch.randn(64, 3, 8, 8)
    data = Data.from_model(model, inputs)
    task = Task(
        "net", model, inputs[:1], inputs, data, train=data, metric=lambda a, b: 0.0
    )  # fmt: skip
    space = SearchSpace.from_model(model, inputs[:1], profile, SpaceSettings(weight_bits=(1, 4)))
    chosen = CompressionSettings(**settings)  # type: ignore[arg-type]  # of one field each
    return Compressor(task, space, chosen), space, task


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("text", ["2:4", "0.75"])
def test_integer_weights_of_a_file_hold_the_zeros(
    text: str, epochs: int, profile: HardwareProfile
) -> None:
    sparsity = Sparsity.parse(text)
    compressor, space, _ = make(profile, sparsity=sparsity, finetune_epochs=epochs)
    found = compressor.compress(space.uniform(4))
    integers = {t.name: numpy_helper.to_array(t) for t in found.model.graph.initializer}
    for name in ("a", "b", "fc"):
        values = torch.from_numpy(integers[f"{name}.weight.quantized"].astype("float32"))
        assert torch.equal(sparsify(values, sparsity, 0), values)
        assert values.abs().max() > 1
    dense, _, _ = make(profile, finetune_epochs=epochs)
    whole = dense.compress(space.uniform(4))
    assert whole.size_bytes == found.size_bytes
    assert coded_size_bytes(found.model) == found.coded_size_bytes < whole.coded_size_bytes


@pytest.mark.slow
def test_rounding_makes_up_for_the_zeros(profile: HardwareProfile) -> None:
    errors = {}
    for by_outputs in (False, True):
        compressor, space, task = make(
            profile, sparsity=Sparsity(0.5), round_by_outputs=by_outputs, correction=False
        )
        module = compressor.compress(space.uniform(4)).module
        with torch.inference_mode():
            outputs = module(task.validation.inputs)
        errors[by_outputs] = (outputs - task.validation.targets).square().mean().item()
    assert errors[True] < 0.8 * errors[False]


@pytest.mark.slow
def test_layers_of_a_single_bit_stay_dense(profile: HardwareProfile) -> None:
    compressor, space, _ = make(profile, sparsity=Sparsity(0.5))
    found = compressor.compress(space.uniform(1))
    for tensor in found.model.graph.initializer:
        if tensor.name.endswith("weight.quantized"):
            assert set(numpy_helper.to_array(tensor).astype(int).reshape(-1)) == {-1, 1}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 4])
def test_torch_onnx_runtime_and_tvm_agree(
    bits: int, profile: HardwareProfile, tmp_path: Path
) -> None:
    try:
        check_runs_here(profile)
    except ProfileError as error:
        pytest.skip(str(error))
    compressor, space, task = make(profile, sparsity=Sparsity.parse("1:4"))
    found = compressor.compress(space.uniform(bits))
    onnx.save(found.model, tmp_path / "model.onnx")
    inputs = task.validation.inputs[:8]
    with torch.inference_mode():
        expected = found.module(inputs).numpy()
    spread = float(np.abs(expected).max())
    for name in ("tvm", "onnxruntime"):
        runtime = get_runtime(name)
        artifact = tmp_path / f"built{runtime.suffix}"
        runtime.build(tmp_path / "model.onnx", artifact, profile)
        session = runtime.load(artifact, 1)
        outputs = np.concatenate([session.run(image[None].numpy())[0] for image in inputs])
        # A float sum that lies on a tie may be rounded to either side.
        assert (np.abs(outputs - expected) > 1e-4 * spread).mean() <= 0.1
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=0.02 * spread)
