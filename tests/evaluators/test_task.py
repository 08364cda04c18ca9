from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from paredown.evaluators.task import Data, Task, TaskError, check_task


def make_task(**changes: Any) -> Task:
    torch.manual_seed(0)
    inputs = torch.randn(12, 4)
    values: dict[str, Any] = {
        "name": "test",
        "model": nn.Linear(4, 3),
        "example_input": inputs[:1],
        "calibration": inputs[:6],
        "validation": Data(inputs, torch.arange(12) % 3),
    }
    return Task(**(values | changes))


def test_a_sound_task_passes_and_its_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    check_task(make_task(model=model))
    assert model.training
    assert model[1].training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda x: x}, "`Task.model` must be a Module"),
        ({"calibration": [1, 2]}, "`Task.calibration` must be a Tensor, but got list"),
        ({"validation": (1, 2)}, "`Task.validation` must be a Data"),
        ({"train": 3}, "`Task.train` must be a Data"),
        ({"metric": "accuracy"}, "`Task.metric` must be a function"),
        ({"name": ""}, "`Task.name` must not be empty"),
        ({"higher_is_better": 1}, "`Task.higher_is_better` must be a bool"),
        ({"example_input": torch.zeros(2, 4)}, "batch dimension of 1"),
        ({"example_input": torch.zeros(1, 5)}, "example input's shape"),
        ({"calibration": torch.zeros(0, 4)}, "at least one sample"),
        ({"calibration": torch.zeros(3, 4, dtype=torch.uint8)}, "float32, but is torch.uint8"),
        ({"finetune_epochs": 1}, "set `Task.train`"),
        ({"finetune_epochs": -1}, "0 or more"),
    ],
)
def test_a_task_of_wrong_types_or_shapes_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_task(**changes)


@pytest.mark.parametrize("count", [1, 5])
def test_broken_weights_are_counted_and_named(count: int) -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.view(-1)[:count] = torch.nan
    with pytest.raises(TaskError, match=f"'weight' holds {count} NaN or infinite values of 12"):
        check_task(make_task(model=model))


def test_a_broken_buffer_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert isinstance(model[0], nn.BatchNorm1d)
    assert model[0].running_var is not None
    model[0].running_var[2] = torch.inf
    with pytest.raises(TaskError, match=r"buffer '0\.running_var'"):
        check_task(make_task(model=model))


def test_a_broken_input_is_found_by_its_index() -> None:
    inputs = torch.zeros(3000, 4)
    inputs[2500, 1] = torch.nan
    data = Data(inputs, torch.zeros(3000, dtype=torch.long))
    with pytest.raises(TaskError, match=r"`validation\.inputs` must be finite, but sample 2500"):
        check_task(make_task(validation=data))


@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_outside_the_outputs_are_mislabelled(wrong: int) -> None:
    targets = torch.arange(12) % 3
    targets[4] = wrong
    with pytest.raises(TaskError, match=r"classes 0\.\.2 of the model's 3 outputs, but 1 of 12"):
        check_task(make_task(validation=Data(torch.zeros(12, 4), targets)))


def test_labels_of_the_training_data_are_checked_too() -> None:
    with pytest.raises(TaskError, match=r"`train\.targets`"):
        check_task(make_task(train=Data(torch.zeros(2, 4), torch.tensor([0, 9]))))


def test_float_labels_need_a_metric_of_their_own() -> None:
    data = Data(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(TaskError, match="class indices"):
        check_task(make_task(validation=data))
    check_task(make_task(validation=data, metric=lambda outputs, targets: 0.5))


class Faulty(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Any:
        match self.fault:
            case "raises":
                raise KeyError("head")
            case "tuple":
                return x, x
            case "scalar":
                return x.sum()
            case "nan":
                return x / 0 * 0
        return x


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "raised KeyError: 'head'"),
        ("tuple", r"a tuple of \(Tensor, Tensor\)"),
        ("scalar", "one row for each"),
        ("nan", "must be finite"),
    ],
)
def test_a_model_that_does_not_return_one_finite_tensor_is_refused(
    fault: str, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        check_task(make_task(model=Faulty(fault)))


def test_anything_but_a_task_is_refused() -> None:
    with pytest.raises(TaskError, match="must be a `Task`, but got dict"):
        check_task({})  # type: ignore[arg-type]  # what a user's function may return


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0), "at least one sample"),
        (torch.zeros(3, 4), torch.zeros(2), "3 inputs and 2 targets"),
        (np.zeros((3, 4)), torch.zeros(3), "must be a tensor, but got ndarray"),
        (torch.tensor(1.0), torch.zeros(1), "at least one sample"),
    ],
)
def test_data_must_pair_inputs_with_targets(inputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Data(inputs, targets)


def test_a_dataset_is_taken_into_memory_in_order() -> None:
    dataset = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([2, 1, 0]))
    data = Data.from_dataset(dataset)
    assert data.inputs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.targets.tolist() == [2, 1, 0]
    assert len(Data.from_dataset(dataset, limit=2)) == 2


class Endless(IterableDataset[tuple[Any, int]]):
    def __iter__(self) -> Iterator[tuple[Any, int]]:
        while True:
            yield np.ones(2, np.float32), 1


class Unbounded(Dataset[tuple[Tensor, int]]):
    """Map-style as many are written: it has a length but never raises IndexError."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index


def test_datasets_without_an_end_are_cut() -> None:
    assert len(Data.from_dataset(Endless(), limit=5)) == 5
    assert Data.from_dataset(Unbounded()).targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "it is empty"),
        ([torch.zeros(3)], "must be pairs"),
        ([("picture", 1)], "sample 0 is a tuple of"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], "one shape"),
    ],
)
def test_datasets_of_other_samples_are_refused(samples: list[Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Data.from_dataset(samples)
