import json
from collections.abc import Callable
from typing import Any

import pytest

RunCli = Callable[..., Any]


@pytest.mark.slow
def test_json_has_every_layer(run_cli: RunCli) -> None:
    answer = run_cli(
        *("space", "--task", "digits", "--tie", "block", "--exclude", "classifier"),
        *("--no-time", "--format", "json"),
    )
    assert answer.status == 0, answer.err
    rows = {row["name"]: row for row in json.loads(answer.out)["layers"]}
    assert rows["classifier"]["weight_bits"] == [32]
    assert rows["blocks.1.shortcut.0"]["follows"] == "blocks.1.conv1"
    assert rows["blocks.0.conv1"]["latency_share"] is None


def test_a_task_is_needed(run_cli: RunCli) -> None:
    answer = run_cli("space")
    assert answer.status == 2
    assert "Give --task TASK or a study file" in answer.err
