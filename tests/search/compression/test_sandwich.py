import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.accuracy import predict
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.candidate import Candidate
from paredown.search.compression.pruning import reestimate_batch_norm
from paredown.search.compression.sandwich import SandwichTraining, SharedSettings, sandwich
from paredown.search.compression.shared import SharedNetwork
from paredown.search.compression.shared_cache import shared_network
from paredown.search.options import SpaceSettings
from paredown.search.space import SearchSpace
from paredown.search.training import distillation_loss

Build = Callable[[str], tuple[nn.Module, Tensor]]
SETTINGS = SharedSettings(epochs=3, batch_size=32)


@pytest.fixture
def task(build: Build) -> Task:
    model, example = build("mlp")
    inputs = torch.randn(128, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    data = Data(inputs, predict(model, inputs).argmax(1))
    return Task("test", model, example, inputs[:32], data, train=data)


@pytest.fixture
def space(task: Task, profile: HardwareProfile) -> SearchSpace:
    return SearchSpace.from_model(task.model, task.example_input, profile)


def training(task: Task, space: SearchSpace, settings: SharedSettings) -> SandwichTraining:
    assert task.train is not None
    shared = SharedNetwork(task.model, space)
    teacher = copy.deepcopy(task.model)
    return SandwichTraining(shared, teacher, task.train.inputs, settings)


def test_a_step_has_candidates_that_are_alike_in_all_layers_and_one_that_is_not(
    space: SearchSpace,
) -> None:
    candidates = list(sandwich(space, np.random.default_rng(0), 6))
    assert len(candidates) == 7
    for candidate in candidates:
        space.check(candidate)
    n_widths = [len({choice.weight_bits for _, choice in c.layers}) for c in candidates]
    assert n_widths[:2] == n_widths[3:5] == [1, 1]
    assert max(n_widths[2::3]) > 1


def test_the_smallest_leads_in_every_fourth_step(space: SearchSpace) -> None:
    smallest = space.uniform(0, 0, 1.0)
    first = [next(sandwich(space, np.random.default_rng(seed), 3)) for seed in range(200)]
    assert 30 < first.count(smallest) < 90


@pytest.mark.parametrize("tie", ["layer", "stage"])
def test_groups_are_pruned_alike_and_apart(
    build: Build, profile: HardwareProfile, tie: str
) -> None:
    model, example = build("residual")
    space = SearchSpace.from_model(model, example, profile, SpaceSettings(tie=tie))
    pruned = [
        candidate
        for seed in range(60)
        for candidate in sandwich(space, np.random.default_rng(seed), 3)
    ]
    for candidate in pruned:
        space.check(candidate)  # tied groups are cut together
    alike = {space.uniform(8, 8, ratio).pruning for ratio in np.linspace(0, 1, 201)}
    assert 0.3 < np.mean([candidate.pruning in alike for candidate in pruned]) < 0.8


def test_few_bits_are_trained_most(space: SearchSpace) -> None:
    drawn: dict[int, int] = {}
    for seed in range(200):
        _, candidate = sandwich(space, np.random.default_rng(seed), 1)
        (bits,) = {choice.weight_bits for _, choice in candidate.layers}
        drawn[bits] = drawn.get(bits, 0) + 1
    widths = sorted(drawn)
    assert widths[:3] == sorted({bits for layer in space.layers for bits in layer.weight_bits})[:3]
    assert drawn[widths[0]] > 1.5 * drawn[widths[1]] > 2 * drawn[widths[2]]


def test_candidates_see_parts_of_the_batch(task: Task, space: SearchSpace) -> None:
    seen: list[tuple[int, ...]] = []
    run = training(task, space, SharedSettings(epochs=1, batch_size=128))

    def look(_module: nn.Module, inputs: tuple[Tensor, Candidate]) -> None:
        seen.append(tuple(inputs[0].shape))

    run.shared.register_forward_pre_hook(look)
    run.run()
    assert [shape[0] for shape in seen] == [64, 64, 64, 64]


def test_training_brings_candidates_nearer_to_the_model(task: Task, space: SearchSpace) -> None:
    run = training(task, space, SharedSettings(epochs=60, batch_size=32))
    inputs = task.validation.inputs
    wanted = predict(task.model, inputs)

    def losses() -> list[float]:
        found = []
        for candidate in (space.uniform(2), space.uniform(8, pruning_ratio=0.5)):
            module = run.shared.cut(candidate).module
            reestimate_batch_norm(module, inputs)
            found.append(distillation_loss(predict(module, inputs), wanted).item())
        return found

    before = losses()
    run.run()
    torch.testing.assert_close(run.shared.network.state_dict(), task.model.state_dict())
    assert all(after < 0.7 * first for after, first in zip(losses(), before, strict=True))


@pytest.mark.parametrize("n_before", [0, 1, 5])
def test_interrupted_training_ends_with_the_same_weights(
    task: Task, space: SearchSpace, tmp_path: Path, n_before: int
) -> None:
    whole = training(task, space, SETTINGS)
    whole.run()

    def interrupt(_module: nn.Module, _inputs: object) -> None:
        if cut_off.n_done == n_before:
            raise KeyboardInterrupt

    cut_off = training(task, space, SETTINGS)
    cut_off.shared.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut_off.run(tmp_path / "net.pt")
    resumed = training(task, space, SETTINGS)
    said: list[str] = []
    resumed.run(tmp_path / "net.pt", said.append)

    assert said[0] == f"training the shared network: {12 - n_before} of 12 steps to do"
    torch.testing.assert_close(
        resumed.shared.state_dict(), whole.shared.state_dict(), rtol=0.0, atol=0.0
    )


def test_training_says_how_long_it_takes(task: Task, space: SearchSpace) -> None:
    said: list[str] = []
    training(task, space, SETTINGS).run(report=said.append)
    assert said[-1].startswith("training the shared network: 100 %, loss ")
    assert said[-1].endswith("0:00 min left")


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 1}, {"n_random": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SharedSettings(**wrong)  # type: ignore[arg-type]  # each is a number


def test_network_is_trained_once(task: Task, space: SearchSpace, tmp_path: Path) -> None:
    said: list[str] = []
    first = shared_network(task, space, SETTINGS, folder=tmp_path, report=said.append)
    again = shared_network(task, space, SETTINGS, folder=tmp_path, report=said.append)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0.0, atol=0.0)
    assert said[-1].startswith("shared network from the cache")
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".pt"]


def test_broken_file_is_replaced(task: Task, space: SearchSpace, tmp_path: Path) -> None:
    first = shared_network(task, space, SETTINGS, folder=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:-9])
    again = shared_network(task, space, SETTINGS, folder=tmp_path)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0.0, atol=0.0)


def test_other_settings_are_another_network(
    task: Task, space: SearchSpace, tmp_path: Path
) -> None:
    shared_network(task, space, SETTINGS, folder=tmp_path)
    shared_network(task, space, SETTINGS, folder=tmp_path, seed=1)
    shared_network(task, space, SharedSettings(epochs=1, batch_size=32), folder=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_a_task_without_training_data_has_no_shared_network(
    task: Task, space: SearchSpace, tmp_path: Path
) -> None:
    bare = Task("bare", task.model, task.example_input, task.calibration, task.validation)
    with pytest.raises(ValueError, match="'bare' must have training data"):
        shared_network(bare, space, folder=tmp_path)
