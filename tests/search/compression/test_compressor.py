import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import predict
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.candidate import FLOAT_LAYER, Candidate, LayerChoice
from paredown.search.compression.compressor import (
    CompressedModel,
    CompressionSettings,
    Compressor,
    Draft,
)
from paredown.search.compression.export import ExportError
from paredown.search.compression.pruning import prune
from paredown.search.errors import SpaceError
from paredown.search.space import SearchSpace, SpaceSettings
from paredown.search.training import distillation_loss

pytestmark = pytest.mark.slow  # each model is exported once, which takes a second or more

Build = Callable[[str], tuple[nn.Module, Tensor]]
HALF_LAYER = LayerChoice(16, 32)
NAMES = ("residual", "concat", "separable", "grouped", "shuffle", "mlp")


@dataclass(frozen=True)
class Bench:
    """A compressor with what it was made of."""

    compressor: Compressor
    space: SearchSpace
    task: Task


Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def cache() -> dict[str, Bench]:
    """Benches without settings of their own: the export takes seconds."""
    return {}


@pytest.fixture
def make(build: Build, profile: HardwareProfile, cache: dict[str, Bench]) -> Make:
    def bench(
        name_or_model: str | nn.Module, example: Tensor | None = None, **settings: Any
    ) -> Bench:
        key = name_or_model if isinstance(name_or_model, str) and not settings else None
        if key in cache:
            return cache[key]
        if isinstance(name_or_model, str):
            model, example = build(name_or_model)
        else:
            model = name_or_model
        assert example is not None
        torch.manual_seed(1)
        inputs = torch.randn(96, *example.shape[1:])
        data = Data(inputs, predict(model, inputs).argmax(1))
        task = Task("test", model, example, inputs[:32], data, train=data)
        widths = SpaceSettings(weight_bits=(*profile.weight_bits, 16))
        space = SearchSpace.from_model(model, example, profile, widths)
        result = Bench(
            Compressor(task, space, CompressionSettings(**settings), seed=3), space, task
        )
        if key is not None:
            cache[key] = result
        return result

    return bench


def run_onnxruntime(model: onnx.ModelProto, inputs: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    outputs = [session.run(None, {"input": x[None].numpy()})[0] for x in inputs]
    return torch.from_numpy(np.concatenate(outputs))


def assert_file_is_what_torch_runs(compressed: CompressedModel, inputs: Tensor) -> None:
    onnx.checker.check_model(compressed.model, full_check=True)
    outputs = predict(compressed.module, inputs)
    expected = run_onnxruntime(compressed.model, inputs)
    step = 0.05 * expected.abs().max()
    assert (outputs - expected).abs().max() < step
    assert ((outputs - expected).abs() < 1e-4 * step).float().mean() > 0.8


def alter(candidate: Candidate, layer: str, choice: LayerChoice) -> Candidate:
    layers = tuple((n, choice if n == layer else c) for n, c in candidate.layers)
    return Candidate(candidate.pruning, layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_is_the_model_itself(name: str, make: Make) -> None:
    bench = make(name)
    compressed = bench.compressor.compress(bench.space.baseline())
    inputs = bench.task.validation.inputs[:8]
    expected = predict(bench.task.model, inputs)
    for outputs in (predict(compressed.module, inputs), run_onnxruntime(compressed.model, inputs)):
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_random_candidates_are_in_the_file_what_they_are_in_torch(name: str, make: Make) -> None:
    bench = make(name)
    generator = np.random.default_rng(0)
    for _ in range(4):
        compressed = bench.compressor.compress(bench.space.random(generator))
        assert_file_is_what_torch_runs(compressed, bench.task.validation.inputs[:16])


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_change_little(name: str, make: Make) -> None:
    bench = make(name)
    inputs = bench.task.validation.inputs
    expected = predict(bench.task.model, inputs)
    outputs = predict(bench.compressor.compress(bench.space.uniform(8)).module, inputs)
    assert (outputs - expected).square().mean() < 5e-3 * expected.var()


def test_float_layers_among_integer_ones_stay_float(make: Make) -> None:
    bench = make("residual")
    candidate = alter(bench.space.uniform(4), "left.0.0", FLOAT_LAYER)
    compressed = bench.compressor.compress(candidate)
    types = {i.name: i.data_type for i in compressed.model.graph.initializer}
    assert types["left.0.0.weight"] == onnx.TensorProto.FLOAT
    assert types["stem.0.weight.quantized"] == onnx.TensorProto.INT4
    assert_file_is_what_torch_runs(compressed, bench.task.validation.inputs[:16])


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_16_bits_are_float16(name: str, make: Make) -> None:
    bench = make(name)
    compressed = bench.compressor.compress(bench.space.uniform(16))
    whole = bench.compressor.compress(bench.space.baseline())
    stored = {i.name: i for i in compressed.model.graph.initializer}
    saved = 0
    for layer in bench.space.layers:
        weight = compressed.module.weights[f"{layer.name}.weight"]
        expected = whole.module.weights[f"{layer.name}.weight"].half().float()
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
        half = stored[f"{layer.name}.weight.float16"]
        assert half.data_type == onnx.TensorProto.FLOAT16
        assert f"{layer.name}.weight" not in stored
        saved += 2 * weight.numel()
    assert whole.size_bytes - compressed.size_bytes == saved
    inputs = bench.task.validation.inputs[:16]
    onnx.checker.check_model(compressed.model, full_check=True)
    outputs = predict(compressed.module, inputs)
    expected = run_onnxruntime(compressed.model, inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_weights_beyond_float16_are_refused(make: Make) -> None:
    torch.manual_seed(0)
    last = nn.Linear(16, 10)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), last).eval()
    with torch.no_grad():
        last.weight[3, 4] = -1e5
    bench = make(model, torch.randn(1, 12))
    message = "must lie between -65504 and 65504, but those of '2.weight' reach 100000"
    with pytest.raises(ValueError, match=message):
        bench.compressor.compress(bench.space.uniform(16))


def test_the_file_says_what_it_is(make: Make) -> None:
    bench = make("residual")
    candidate = alter(bench.space.uniform(5, 7), "head", LayerChoice(8, 8))
    model = bench.compressor.compress(candidate).model
    notes = {p.key: p.value for p in model.metadata_props}
    assert Candidate.from_json(json.loads(notes["paredown.candidate"])) == candidate
    head = next(n for n in model.graph.node if n.name == "head")
    assert {p.key: p.value for p in head.metadata_props} == {
        "paredown.weight_bits": "8",
        "paredown.activation_bits": "8",
    }
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["output"]


def test_smaller_choices_make_smaller_models(make: Make) -> None:
    bench = make("residual")
    choices = [bench.space.uniform(b) for b in (32, 16, 8, 6, 4, 2)]
    choices.append(bench.space.uniform(2, pruning_ratio=0.5))
    sizes = [bench.compressor.compress(c).size_bytes for c in choices]
    assert sizes == sorted(set(sizes), reverse=True)


def test_equal_candidates_become_equal_files_in_any_order(make: Make) -> None:
    bench = make("residual")
    candidates = [bench.space.uniform(b, pruning_ratio=r) for b in (4, 7) for r in (0.0, 0.5)]
    first = [bench.compressor.compress(c).model.SerializeToString() for c in candidates]
    again = [bench.compressor.compress(c).model.SerializeToString() for c in candidates[::-1]]
    assert first == again[::-1]


def test_the_model_of_the_task_stays_as_it_is(make: Make) -> None:
    bench = make("residual")
    before = {k: v.clone() for k, v in bench.task.model.state_dict().items()}
    bench.compressor.compress(bench.space.uniform(3, pruning_ratio=0.5))
    after = bench.task.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_correction_keeps_the_mean_of_the_outputs(make: Make) -> None:
    shifts = []
    for corrected in (True, False):
        bench = make("residual", correction=corrected)
        inputs = bench.task.calibration
        expected = predict(bench.task.model, inputs).mean(0)
        compressed = bench.compressor.compress(bench.space.uniform(3))
        shifts.append((predict(compressed.module, inputs).mean(0) - expected).abs().mean())
    assert shifts[0] < 0.2 * shifts[1]


@pytest.mark.parametrize("distill", [True, False])
def test_fine_tuning_brings_a_narrow_model_nearer_to_the_task(distill: bool, make: Make) -> None:
    losses = []
    for epochs in (0, 15):
        bench = make("residual", finetune_epochs=epochs, finetune_batch_size=16, distill=distill)
        compressed = bench.compressor.compress(bench.space.uniform(2, pruning_ratio=0.25))
        inputs, targets = bench.task.validation.inputs, bench.task.validation.targets
        outputs = predict(compressed.module, inputs)
        if distill:
            losses.append(distillation_loss(outputs, predict(bench.task.model, inputs)))
        else:
            losses.append(nn.functional.cross_entropy(outputs, targets))
        assert_file_is_what_torch_runs(compressed, inputs[:16])
    assert losses[1] < 0.8 * losses[0]


def test_fine_tuning_is_reproducible_and_reports(make: Make) -> None:
    bench = make("mlp", finetune_epochs=2, finetune_batch_size=16)
    candidate = bench.space.uniform(3)
    lines: list[str] = []
    first = bench.compressor.compress(candidate, lines.append).model
    torch.rand(7)  # the global random state must not matter
    again = bench.compressor.compress(candidate).model
    assert first.SerializeToString() == again.SerializeToString()
    assert sum("epoch" in line for line in lines) == 2


def test_fine_tuning_begins_after_a_look_at_what_it_begins_with(make: Make) -> None:
    bench = make("mlp", finetune_epochs=1, finetune_batch_size=16)
    lines: list[str] = []
    n_before: list[int] = []
    compressed = bench.compressor.compress(
        bench.space.uniform(3), lines.append, lambda draft: n_before.append(len(lines))
    )
    assert "fine-tuning" not in lines[: n_before[0]]
    assert "fine-tuning" in lines[n_before[0] :]
    untrained: list[Draft] = []
    whole = make("mlp")
    whole.compressor.compress(whole.space.uniform(3), look=untrained.append)
    assert untrained == []  # it is done at once
    assert compressed.size_bytes > 0


@pytest.mark.parametrize("choice", [FLOAT_LAYER, HALF_LAYER])
def test_fine_tuning_trains_float_layers_with_the_integer_ones(
    choice: LayerChoice, make: Make
) -> None:
    bench = make("mlp", finetune_epochs=1, finetune_batch_size=16)
    candidate = alter(bench.space.uniform(4), "3", choice)
    compressed = bench.compressor.compress(candidate)
    weight = compressed.module.weights["3.weight"].detach()
    original = bench.task.model.state_dict()["3.weight"]
    assert weight.shape == original.shape
    assert not torch.equal(weight, original)
    assert torch.equal(weight, weight.half().float()) == (choice == HALF_LAYER)
    assert_file_is_what_torch_runs(compressed, bench.task.validation.inputs[:16])


def test_fine_tuning_leaves_the_baseline_alone(make: Make) -> None:
    bench = make("mlp", finetune_epochs=1)
    compressed = bench.compressor.compress(bench.space.baseline())
    inputs = bench.task.validation.inputs
    expected = predict(bench.task.model, inputs)
    torch.testing.assert_close(predict(compressed.module, inputs), expected, rtol=1e-5, atol=1e-5)


class ScaledByChannels(nn.Module):
    """Its graph holds a number that follows from the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        out: Tensor = self.head(x * x.shape[1] ** 0.5)
        return out


def test_graphs_with_numbers_of_channels_are_traced_again(make: Make) -> None:
    torch.manual_seed(0)
    bench = make(ScaledByChannels().eval(), torch.randn(1, 12))
    candidate = bench.space.uniform(32, pruning_ratio=0.5)
    outputs = predict(bench.compressor.compress(candidate).module, bench.task.validation.inputs)
    expected = predict(
        prune(bench.task.model, candidate, bench.space), bench.task.validation.inputs
    )
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x + 3 * len(x))
        return out


def test_a_model_that_the_graph_does_not_match_is_refused(make: Make) -> None:
    with pytest.raises(ExportError, match="its outputs differ"):
        make(Random().eval(), torch.randn(1, 12))


def test_layers_whose_weights_are_computed_are_refused(make: Make) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 10)))
    with pytest.raises(ExportError, match=r"\['0'\] are not"):
        make(model.eval(), torch.randn(1, 12))


def test_candidates_of_another_space_are_refused(make: Make) -> None:
    candidate = make("mlp").space.uniform(8)
    with pytest.raises(SpaceError):
        make("residual").compressor.compress(candidate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibration": "guess"}, "`calibration` must be one of"),
        ({"n_calibration": 0}, "1 or more"),
        ({"finetune_epochs": -1}, "0 or more"),
        ({"finetune_lr": 0.0}, "above 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressionSettings(**settings)


def test_fine_tuning_needs_training_data(make: Make) -> None:
    bench = make("mlp")
    task = dataclasses.replace(bench.task, train=None)
    with pytest.raises(ValueError, match="no training data"):
        Compressor(task, bench.space, CompressionSettings(finetune_epochs=1))
