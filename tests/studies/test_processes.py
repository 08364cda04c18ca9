import json
import subprocess
import sys

from paredown.studies.processes import is_dead, this_process


def test_this_process_lives() -> None:
    assert not is_dead(this_process())


def test_ended_process_is_dead() -> None:
    code = (
        "import json; from paredown.studies.processes import this_process;"
        "print(json.dumps(this_process()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert is_dead(json.loads(answer.stdout))


def test_other_process_with_the_same_number_is_not_taken_for_it() -> None:
    assert is_dead({**this_process(), "start": 1})


def test_restart_of_the_machine_ends_all_processes() -> None:
    assert is_dead({**this_process(), "boot": "another"})


def test_process_of_another_machine_counts_as_alive() -> None:
    assert not is_dead({**this_process(), "host": "elsewhere", "pid": 1, "boot": "other"})
