import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from paredown.search.candidate import FLOAT_LAYER, Candidate, LayerChoice
from paredown.studies.front import (
    describe_trial,
    format_bytes,
    front_csv,
    front_json,
    front_table,
    summarize,
)
from paredown.studies.records import StudyRecord


def render(study: StudyRecord, **options: object) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(front_table(study, **options))  # type: ignore[arg-type]  # passed through
    return console.export_text()


def test_json_has_the_documented_form(synthetic_study: StudyRecord) -> None:
    answer = json.loads(json.dumps(front_json(synthetic_study), allow_nan=False))

    assert answer["study"] == "digits"
    assert answer["baseline"]["trial"] == 0
    point = answer["front"][0]
    assert {"trial", "accuracy", "size_bytes", "latency_us", "latency_spread_us"} <= point.keys()
    assert Candidate.from_json(point["candidate"]) is not None
    assert point["speedup"] > 1
    assert (point["peak_memory_bytes"], point["energy_mj"]) == (None, None)
    assert 0 < point["coded_size_bytes"] < point["size_bytes"]
    assert "trials" not in answer


def test_json_of_all_trials_has_the_failed_ones_too(synthetic_study: StudyRecord) -> None:
    trials = front_json(synthetic_study, all_trials=True)["trials"]

    assert len(trials) == 60
    assert "limit of 120 s" in trials[17]["error"]


def test_csv_has_a_column_for_each_layer(synthetic_study: StudyRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(front_csv(synthetic_study, all_trials=True))))

    assert len(rows) == 60
    assert rows[1]["weight_bits/stem"] == "8"
    assert rows[1]["pruning_ratio/stem"] == "0.0"
    assert rows[0]["is_baseline"] == "True"


def test_table_shows_the_front_and_the_baseline(synthetic_study: StudyRecord) -> None:
    text = render(synthetic_study)

    numbers = [int(line.split()[0]) for line in text.splitlines()[1:]]
    points = [trial.number for trial in synthetic_study.front() if not trial.is_baseline]
    assert numbers == [*points, 0]
    assert text.rstrip().endswith("uncompressed")


def test_short_table_keeps_both_ends_of_the_front(synthetic_study: StudyRecord) -> None:
    front = [trial for trial in synthetic_study.front() if not trial.is_baseline]

    lines = render(synthetic_study, max_rows=3).splitlines()[1:]

    numbers = [int(line.split()[0]) for line in lines]
    assert numbers[0] == front[0].number
    assert numbers[2] == front[-1].number
    assert len(numbers) == 4


def test_table_of_a_study_without_trials(new_record: Callable[..., StudyRecord]) -> None:
    assert "accuracy" in render(new_record([]))


def test_lines_say_what_became_of_a_trial(synthetic_study: StudyRecord) -> None:
    assert "x faster" in describe_trial(synthetic_study.trials[1], synthetic_study)
    assert "uncompressed" in describe_trial(synthetic_study.trials[0], synthetic_study)
    assert "killed by SIGSEGV" in describe_trial(synthetic_study.trials[41], synthetic_study)
    infeasible = replace(synthetic_study.trials[1], is_feasible=False)
    assert describe_trial(infeasible, synthetic_study).endswith("not feasible")


def test_summary_of_a_candidate(synthetic_study: StudyRecord) -> None:
    assert synthetic_study.trials[0].candidate is not None
    assert synthetic_study.trials[2].candidate is not None
    assert summarize(synthetic_study.trials[0].candidate) == "float, 0% pruned"
    assert summarize(synthetic_study.trials[2].candidate) == "6 bits, 0% pruned"
    widths = {"a": LayerChoice(16, 32), "b": FLOAT_LAYER, "c": LayerChoice(4)}
    layers = tuple(widths.items())
    assert summarize(Candidate((), layers[:2])) == "float16/float, 0% pruned"
    assert summarize(Candidate((), layers)) == "4/float16/float bits, 0% pruned"


def test_sizes_have_units() -> None:
    assert [format_bytes(n) for n in (12, 12_345, 2_500_000)] == ["12 B", "12.3 kB", "2.50 MB"]
