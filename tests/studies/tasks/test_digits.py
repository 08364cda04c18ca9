from pathlib import Path

import pytest
import torch

from paredown.evaluators.accuracy import evaluate
from paredown.evaluators.task import check_task
from paredown.studies.tasks import load_task
from paredown.studies.tasks.digits import load_digits_data


def test_split_is_the_same_each_time_and_has_all_classes() -> None:
    train, validation = load_digits_data()
    again, _ = load_digits_data()

    assert (len(train), len(validation)) == (1347, 450)
    assert torch.equal(train.inputs, again.inputs)
    counts = torch.bincount(validation.targets)
    assert counts.min() >= 40
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1


@pytest.mark.slow
def test_base_model_is_good_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))  # none that another test has filled
    said: list[str] = []

    task = load_task("digits", report=said.append)
    check_task(task)

    assert evaluate(task.model, task.validation, task.metric) >= 0.985
    assert any("min left" in line for line in said)
    said.clear()
    again = load_task("digits", report=said.append)
    assert "from the cache" in said[0]
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
