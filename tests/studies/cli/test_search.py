import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunCli = Callable[..., Any]

TASK = """
import torch
from torch import nn
from paredown.evaluators.task import Data, Task

def make_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(576, 3)).eval()
    inputs = torch.randn(20, 1, 8, 8)
    with torch.no_grad():
        data = Data(inputs, model(inputs).argmax(dim=1))
    return Task("tiny", model, inputs[:1], inputs, data)
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tiny.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return "tiny.py:make_task"


@pytest.mark.slow
def test_search_leaves_a_front_and_says_what_comes_next(run_cli: RunCli, task: str) -> None:
    arguments = ("search", "--task", task, "--runtime", "onnxruntime", "--trials")

    answer = run_cli(*arguments, 2)

    assert answer.status == 0
    assert "uncompressed" in answer.out
    assert "paredown report tiny -o report.html" in answer.out
    assert "[2/2, done] trial 1:" in answer.err
    assert Path("paredown.db").exists()

    answer = run_cli(*arguments, 3, "--format", "json")

    assert len(json.loads(answer.out)["front"]) >= 1
    assert "2 done already" in answer.err

    answer = run_cli(*arguments, 3)

    assert "has its 3 trials already" in answer.err


@pytest.mark.slow
def test_study_file(run_cli: RunCli, task: str) -> None:
    Path("study.toml").write_text(
        f'task = "{task}"\nstudy = "mine"\nruntime = "onnxruntime"\ntrials = 1\n'
    )

    assert run_cli("search", "study.toml").status == 0
    assert json.loads(run_cli("front", "mine", "--format", "json").out)["n_trials"] == 1


def test_wrong_study_file(run_cli: RunCli, task: str) -> None:
    Path("study.toml").write_text(f'task = "{task}"\nbits = 4\n')

    answer = run_cli("search", "study.toml")

    assert answer.status == 1
    assert answer.err.startswith("paredown: study.toml:2: Unknown key `bits`.")
    assert not Path("paredown.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --task TASK or a study file"),
        (("digits",), "Study file 'digits' does not exist"),
        (("--task", "digits", "--trials", "0"), "--trials"),
        (("--task", "digits", "--seed", "x"), "--seed"),
    ],
)
def test_wrong_usage(run_cli: RunCli, arguments: tuple[str, ...], message: str) -> None:
    answer = run_cli("search", *arguments)

    assert answer.status == 2
    assert message in answer.err


def test_unknown_task(run_cli: RunCli, task: str) -> None:
    answer = run_cli("search", "--task", "digit")

    assert answer.status == 1
    assert "Did you mean 'digits'?" in answer.err
    assert not Path("paredown.db").exists()
