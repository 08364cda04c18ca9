import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import predict
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.candidate import Candidate, LayerChoice
from paredown.search.compression import slices
from paredown.search.compression.compressor import (
    CompressionSettings,
    Compressor,
    Draft,
)
from paredown.search.compression.pruning import prune, reestimate_batch_norm
from paredown.search.compression.quantizer import along, largest_integer, weight_scales
from paredown.search.compression.shared import SharedNetwork, hat_weights
from paredown.search.compression.surgery import channel_dim
from paredown.search.early_stopping import StoppedEarly
from paredown.search.layers import LAYER_TYPES
from paredown.search.space import SearchSpace
from paredown.search.training import distillation_loss

Build = Callable[[str], tuple[nn.Module, Tensor]]
NAMES = ("residual", "concat", "separable", "grouped", "mlp")


def make(
    build: Build, profile: HardwareProfile, name: str
) -> tuple[SharedNetwork, nn.Module, SearchSpace, Tensor]:
    model, example = build(name)
    space = SearchSpace.from_model(model, example, profile)
    torch.manual_seed(0)
    return SharedNetwork(model, space), model, space, torch.randn(32, *example.shape[1:])


def learned(shared: SharedNetwork) -> list[nn.Parameter]:
    return [parameter for parameter in shared.parameters() if parameter.requires_grad]


def spoil(shared: SharedNetwork) -> None:
    with torch.no_grad():
        for parameter in learned(shared):
            parameter.normal_()


def normalised_by_batch(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.train()(inputs)
    model.eval()
    return output


@pytest.mark.parametrize("name", NAMES)
def test_float_slice_is_the_pruned_model(
    build: Build, profile: HardwareProfile, name: str
) -> None:
    shared, model, space, inputs = make(build, profile, name)
    for ratio in (0.0, 0.5, 1.0):
        candidate = space.uniform(32, pruning_ratio=ratio)
        expected = normalised_by_batch(prune(model, candidate, space), inputs)
        torch.testing.assert_close(shared(inputs, candidate).detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_cut_model_is_the_slice(build: Build, profile: HardwareProfile, name: str) -> None:
    shared, _, space, inputs = make(build, profile, name)
    rng = np.random.default_rng(0)
    for _ in range(4):
        candidate = space.random(rng)
        part = shared.cut(candidate)
        found = normalised_by_batch(part.module, inputs)
        torch.testing.assert_close(found, shared(inputs, candidate).detach())


@pytest.mark.parametrize("name", NAMES)
def test_cut_weights_lie_on_their_grids(build: Build, profile: HardwareProfile, name: str) -> None:
    shared, model, space, _ = make(build, profile, name)
    part = shared.cut(space.uniform(3, pruning_ratio=0.5))
    for layer_name, scale in part.scales.items():
        layer = part.module.get_submodule(layer_name)
        assert isinstance(layer, LAYER_TYPES)
        axis = channel_dim(layer, "out")
        steps = layer.weight.detach() / along(scale, axis, layer.weight.ndim)
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0.0)
        assert steps.abs().max() < largest_integer(3) + 0.5
        whole = model.get_submodule(layer_name).get_parameter("weight")
        assert set(scale.tolist()) <= set(weight_scales(whole, 3, axis).tolist())


def test_the_less_compressed_the_nearer_to_the_trained_weights(
    build: Build, profile: HardwareProfile
) -> None:
    shared, model, space, _ = make(build, profile, "residual")
    with torch.no_grad():
        for shift in learned(shared):
            shift.fill_(0.01)

    def distance(candidate: Candidate) -> float:
        found = shared.cut(candidate).module.get_parameter("stem.1.bias")
        return (found - model.get_parameter("stem.1.bias")).abs().max().item()

    whole = [distance(space.uniform(bits)) for bits in (32, 8, 4, 2)]
    assert whole == sorted(whole)
    assert whole[0] == 0.0
    assert whole[-1] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("degree", "weights"),
    [(0.0, [0.0, 0.0]), (0.25, [0.5, 0.0]), (0.5, [1.0, 0.0]), (0.75, [0.5, 0.5]), (1.0, [0, 1])],
)
def test_shifts_are_straight_between_knots(degree: float, weights: list[float]) -> None:
    assert hat_weights(degree, (0.5, 1.0)) == pytest.approx(weights)


def test_a_layer_s_own_width_counts_half(build: Build, profile: HardwareProfile) -> None:
    shared, model, space, _ = make(build, profile, "residual")
    with torch.no_grad():
        shared.rounding_shifts[0], shared.rounding_shifts[1] = 0.5, 1.0  # one straight line
    name, *others = [layer.name for layer in space.layers]
    layers = dict(space.uniform(2).layers) | {name: LayerChoice.of(32, 32)}
    part = shared.cut(dataclasses.replace(space.baseline(), layers=tuple(layers.items()))).module
    mean = len(others) / len(space.layers)
    for parameter, expected in ((f"{name}.weight", mean / 2), ("stem.1.weight", mean)):
        moved = part.get_parameter(parameter) - model.get_parameter(parameter)
        torch.testing.assert_close(moved, torch.full_like(moved, expected))


def test_gradients_reach_what_a_slice_uses(build: Build, profile: HardwareProfile) -> None:
    shared, _, space, inputs = make(build, profile, "residual")
    candidate = space.uniform(4, pruning_ratio=0.5)
    shared(inputs, candidate).square().sum().backward()
    group = next(g for g in space.groups if g.name == "stem.0")
    names, parameters = zip(*shared.network.named_parameters(), strict=True)
    at = names.index("stem.0.weight")
    for shifts in (shared.pruning_shifts, shared.rounding_shifts):
        assert shifts.grad is not None
        of_layer = shifts.grad.split([p.numel() for p in parameters], dim=1)[at]
        used = of_layer.reshape(2, *parameters[at].shape).abs().sum(dim=(0, 2, 3, 4)) > 0
        assert int(used.sum()) == group.kept(candidate.pruning_ratios["stem.0"])
    scales = {name for name, p in shared.growth.items() if p.grad is not None}
    assert scales == {f"{layer.name.replace('.', '__')}__4" for layer in space.layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_file_of_a_candidate_computes_what_was_cut(
    build: Build, profile: HardwareProfile, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "find_last_layer", lambda model: None)  # leave it
    shared, model, space, inputs = make(build, profile, name)
    with torch.no_grad():  # as after training: other weights, and scales that no search finds
        for shift in learned(shared):
            shift.normal_(std=0.02)
        for growth in shared.growth.values():
            growth.uniform_(-0.2, 0.2)
    data = Data(inputs, predict(model, inputs).argmax(1))
    task = Task("test", model, inputs[:1], inputs, data, train=data)
    settings = CompressionSettings(shared_only=True)
    compressor = Compressor(task, space, settings, shared=shared)
    for candidate in (space.uniform(4, pruning_ratio=0.5), space.uniform(2)):
        compressed = compressor.compress(candidate)
        part = shared.cut(candidate).module
        reestimate_batch_norm(part, inputs)
        expected = predict(part, inputs)
        error = predict(compressed.module, inputs) - expected
        # What is left is the rounding of activations to 8 bits.
        assert error.square().mean() < 0.002 * expected.square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_last_layer_is_fitted_to_the_candidate(
    build: Build, profile: HardwareProfile, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, model, space, inputs = make(build, profile, "residual")
    wanted = predict(model, inputs)
    task = Task("test", model, inputs[:1], inputs, Data(inputs, wanted.argmax(1)))
    task = dataclasses.replace(task, train=task.validation)
    candidate = space.uniform(2, pruning_ratio=0.5)
    choice = LayerChoice.of(bits, 8)
    last = candidate.layers[-1][0]
    candidate = dataclasses.replace(candidate, layers=(*candidate.layers[:-1], (last, choice)))
    compressor = Compressor(task, space, CompressionSettings(shared_only=True), shared=shared)
    fitted = compressor.compress(candidate).module
    monkeypatch.setattr(slices, "find_last_layer", lambda model: None)
    plain = compressor.compress(candidate).module
    near, far = (distillation_loss(predict(m, inputs), wanted).item() for m in (fitted, plain))
    assert near < 0.9 * far
    for name, weight in plain.weights.items():  # what comes before it stays
        same = torch.equal(weight, fitted.weights[name])
        assert same != name.startswith(last)


@pytest.mark.slow
def test_the_baseline_stays_the_task_s_model(build: Build, profile: HardwareProfile) -> None:
    shared, model, space, inputs = make(build, profile, "mlp")
    with torch.no_grad():
        for shift in learned(shared):
            shift.fill_(1.0)
    data = Data(inputs, predict(model, inputs).argmax(1))
    task = Task("test", model, inputs[:1], inputs, data, train=data)
    compressed = Compressor(task, space, shared=shared).compress(space.baseline())
    torch.testing.assert_close(predict(compressed.module, inputs), predict(model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("is_spoiled", [False, True])
def test_the_weights_that_come_nearer_are_taken(
    build: Build, profile: HardwareProfile, is_spoiled: bool
) -> None:
    shared, model, space, inputs = make(build, profile, "residual")
    if is_spoiled:
        spoil(shared)
    wanted = predict(model, inputs)
    task = Task("test", model, inputs[:1], inputs, Data(inputs, wanted.argmax(1)))
    task = dataclasses.replace(task, train=task.validation)
    candidate = space.uniform(2, pruning_ratio=0.25)
    losses = [
        distillation_loss(predict(compressor.compress(candidate).module, inputs), wanted).item()
        for compressor in (
            Compressor(task, space, shared=shared),
            Compressor(task, space, CompressionSettings(shared_only=True), shared=shared),
            Compressor(task, space),
        )
    ]
    assert losses[0] == min(losses)
    if is_spoiled:
        assert losses[0] < losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("is_spoiled", [False, True])
def test_a_way_that_is_never_nearer_is_not_tried(
    build: Build, profile: HardwareProfile, is_spoiled: bool
) -> None:
    shared, model, space, inputs = make(build, profile, "residual")
    data = Data(inputs, predict(model, inputs).argmax(1))
    if is_spoiled:
        spoil(shared)
    calibration = inputs if is_spoiled else torch.zeros_like(inputs)  # which tell nothing
    task = Task("test", model, inputs[:1], calibration, data, train=data)
    compressor = Compressor(task, space, shared=shared)
    steps: list[str] = []
    compressor.compress(space.random(np.random.default_rng(0)), steps.append)
    assert ("pruning" in steps) == is_spoiled
    assert compressor.compress(space.uniform(8)).size_bytes > 0


@pytest.mark.slow
def test_drafts_are_shown_and_may_end_the_work(build: Build, profile: HardwareProfile) -> None:
    shared, model, space, inputs = make(build, profile, "residual")
    data = Data(inputs, predict(model, inputs).argmax(1))
    task = Task("test", model, inputs[:1], inputs, data, train=data)
    compressor = Compressor(task, space, shared=shared)
    candidate = space.uniform(3, pruning_ratio=0.25)
    plain = compressor.compress(candidate)
    drafts: list[Draft] = []
    shown = compressor.compress(candidate, look=drafts.append)
    assert shown.model.SerializeToString() == plain.model.SerializeToString()
    (draft,) = drafts
    assert draft.size_bytes == plain.size_bytes
    distance = distillation_loss(predict(plain.module, inputs), predict(model, inputs)).item()
    assert 0.5 * distance < draft.distance < 2 * distance  # on chosen samples

    def give_up(draft: Draft) -> None:
        raise StoppedEarly("enough", (None,))

    steps: list[str] = []
    with pytest.raises(StoppedEarly):
        compressor.compress(candidate, steps.append, give_up)
    assert "fitting the last layer" not in steps


@pytest.mark.parametrize(("ratio", "is_beyond"), [(0.25, False), (0.75, True)])
def test_much_pruned_candidates_are_made_in_one_way(
    build: Build, profile: HardwareProfile, ratio: float, is_beyond: bool
) -> None:
    shared, model, space, inputs = make(build, profile, "residual")
    data = Data(inputs, predict(model, inputs).argmax(1))
    task = Task("test", model, inputs[:1], inputs, data, train=data)
    compressor = Compressor(task, space, shared=shared)
    low, high = (shared.pruning_degree(space.uniform(3, pruning_ratio=r)) for r in (0.25, 0.75))
    vars(vars(compressor)["_slices"])["_reach_of_rounding"] = (low + high) / 2
    steps: list[str] = []
    compressor.compress(space.uniform(3, pruning_ratio=ratio), steps.append)
    assert ("pruning" in steps) != is_beyond
