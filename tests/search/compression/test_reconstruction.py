from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import predict
from paredown.evaluators.onnx_module import OnnxModule
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.compression.export import BaseGraph
from paredown.search.compression.reconstruction import layer_outputs, reconstruct
from paredown.search.space import SearchSpace

pytestmark = pytest.mark.slow  # each model is exported

Build = Callable[[str], tuple[nn.Module, Tensor]]


@pytest.mark.parametrize("name", ["residual", "concat", "separable", "grouped", "mlp"])
def test_pruned_models_come_nearer_to_the_whole_one(
    build: Build, profile: HardwareProfile, name: str
) -> None:
    model, example = build(name)
    space = SearchSpace.from_model(model, example, profile)
    inputs = torch.randn(64, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    wanted = predict(model, inputs)
    task = Task("test", model, example, inputs, Data(inputs, wanted.argmax(1)))
    errors = []
    for is_reconstructed in (False, True):
        settings = CompressionSettings(reconstruct=is_reconstructed)
        compressor = Compressor(task, space, settings)
        found = compressor.compress(space.uniform(32, pruning_ratio=0.25)).module
        errors.append((predict(found, inputs) - wanted).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_weights_that_were_spoiled_are_found_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    ).eval()
    example = torch.randn(1, 3, 8, 8)
    base = BaseGraph.export(model, example)
    state = model.state_dict()
    inputs = torch.randn(300, 3, 8, 8)
    whole = base.instantiate(state)
    wanted = layer_outputs(whole, OnnxModule(whole), inputs)
    assert set(wanted) == {"0", "3"}
    spoiled = base.instantiate({k: v + 0.1 * torch.randn_like(v) for k, v in state.items()})

    found = reconstruct(spoiled, OnnxModule(spoiled), inputs, wanted)

    assert set(found) == set(state)
    for key in ("0.weight", "0.bias"):  # the damping keeps a little of the old weights
        torch.testing.assert_close(found[key], state[key], atol=0.01, rtol=0.0)
