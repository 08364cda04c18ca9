import re
from pathlib import Path

import pytest

from paredown.evaluators.task import TaskError
from paredown.studies.tasks import check_task_spec, load_task

GOOD = """
import torch
from paredown.evaluators.task import Data, Task
from beside import CLASSES

def make_task(data_dir="here"):
    inputs = torch.randn(8, 3)
    return Task(
        name=f"mine in {data_dir}",
        model=torch.nn.Linear(3, CLASSES),
        example_input=inputs[:1],
        calibration=inputs,
        validation=Data(inputs, torch.arange(8) % CLASSES),
    )

def make_number():
    return 3

def make_error():
    return 1 / 0

not_a_function = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("CLASSES = 2\n")
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_task_of_a_file_is_loaded_with_what_lies_beside_it(file: Path) -> None:
    assert load_task(f"{file}:make_task").name == "mine in here"


def test_folder_of_the_data_is_handed_over(file: Path) -> None:
    assert load_task(f"{file}:make_task", data_dir="there").name == "mine in there"


def test_spec_becomes_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)

    assert check_task_spec("mine.py:make_task") == f"{file}:make_task"
    assert check_task_spec("digits") == "digits"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "Did you mean 'digits'"),
        ("nothing/like/it", "Task must be one of digits, fashion-mnist or a function"),
        ("missing.py:make_task", "Task file 'missing.py' must exist"),
        ("", "Task must be one of"),
    ],
)
def test_unknown_tasks(spec: str, message: str) -> None:
    with pytest.raises(TaskError, match=re.escape(message)):
        check_task_spec(spec)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("make_nothing", "'make_nothing' must be a function .* but does not exist"),
        ("not_a_function", "but is not a function"),
        ("make_number", "must return a `paredown.evaluators.task.Task`, but returned int"),
        ("make_error", "line 20: ZeroDivisionError: division by zero"),
        ("not a name", "must name a function"),
    ],
)
def test_wrong_functions(file: Path, function: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(f"{file}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nosuchmodule\n", "must import, but line 1: ModuleNotFoundError"),
        ("def make_task(:\n", "must import, but SyntaxError"),
        ("x = 1\nraise RuntimeError('no')\n", "must import, but line 2: RuntimeError: no"),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)

    with pytest.raises(TaskError, match=message):
        load_task(f"{tmp_path}/broken.py:make_task")
