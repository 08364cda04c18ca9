from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go  # type: ignore[import-untyped]  # it has no types
import pytest

from paredown.search.candidate import Candidate, LayerChoice
from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.report import ReportError, build_figures, render_report, write_report
from paredown.studies.report.view import ReportView

NewRecord = Callable[..., StudyRecord]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ALL_FIGURES = {
    "accuracy-latency", "accuracy-size", "size-latency", "front-3d", "hypervolume", "bits-map",
    "pruning-map",
}  # fmt: skip


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self._open = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = f"{tag}#{dict(attrs).get('id', '')}" if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script#paredown-data":
            self.data += data
        elif not self._open:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def studies(record: StudyRecord) -> dict[str, StudyRecord]:
    """Studies at the edges of what a report may meet."""
    baseline = record.baseline
    assert baseline is not None
    failed = tuple(trial for trial in record.trials if trial.state == "failed")
    best = replace(record.trials[1], accuracy=0.99)
    harsh = tuple(
        replace(trial, is_feasible=False) if trial.state == "complete" else trial
        for trial in record.trials
    )
    slow = tuple(
        replace(trial, latency_us=1e3 * trial.latency_us, size_bytes=1000 * trial.size_bytes)
        if trial.latency_us and trial.size_bytes
        else trial
        for trial in record.trials
    )
    return {
        "no trial": replace(record, baseline=None, trials=()),
        "one trial": replace(record, trials=(baseline,)),
        "all failed": replace(record, baseline=None, trials=failed),
        "no baseline": replace(record, baseline=None, trials=record.trials[1:]),
        "one point": replace(record, baseline=None, trials=(best,)),
        "none feasible": replace(record, trials=harsh),
        "milliseconds": replace(record, trials=slow, baseline=slow[0]),
        "lower is better": replace(record, higher_is_better=False, metric_name="error"),
    }


EDGES = (
    "no trial", "one trial", "all failed", "no baseline", "one point", "none feasible",
    "milliseconds", "lower is better",
)  # fmt: skip


def test_the_page_shows_the_study(synthetic_study: StudyRecord, tmp_path: Path) -> None:
    path = write_report(synthetic_study, tmp_path / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    data = json.loads(page.data)
    assert set(data["figures"]) == ALL_FIGURES
    assert {dict(a).get("id") for tag, a in page.tags if tag == "div"} >= ALL_FIGURES
    front = [trial.number for trial in synthetic_study.front()]
    rows = [attrs["data-trial"] for tag, attrs in page.tags if tag == "tr" and attrs]
    assert rows == [str(number) for number in front]
    assert set(data["trials"]) == {str(trial.number) for trial in synthetic_study.complete}
    assert f"paredown export digits --trial {front[0]} -o digits-{front[0]}" in page.text
    assert "3 of 60 trials failed" in page.text
    assert "killed by SIGSEGV <while running> the model" in page.text
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_asks_nothing_of_the_network(synthetic_study: StudyRecord) -> None:
    page = Page(render_report(synthetic_study))
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data"):
                assert value == "data:,"
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    styles = re.findall(r"<style>(.*?)</style>", render_report(synthetic_study), re.DOTALL)
    assert not re.search(r"url\(|@import", "".join(styles[:1]))


def test_strings_of_the_user_are_only_text(synthetic_study: StudyRecord) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    trials = (
        *synthetic_study.trials,
        TrialRecord(60, "failed", error=f"{evil}\n{evil}"),
    )
    record = replace(
        synthetic_study, name=evil, task=evil, metric_name=evil, trials=trials, task_digest=evil
    )
    plain = Page(render_report(synthetic_study))
    page = Page(render_report(record))
    assert page.count("script") == plain.count("script") == 3
    assert page.count("img") == 0
    assert page.text.count(evil) >= 4
    titles = json.loads(page.data)["figures"]["accuracy-size"]["figure"]["layout"]["yaxis"]
    assert "<" not in titles["title"]["text"]


def test_figures_are_valid_to_plotly(synthetic_study: StudyRecord) -> None:
    for spec in build_figures(ReportView.from_record(synthetic_study)).values():
        figure = go.Figure(spec["figure"])
        assert figure.data


@pytest.mark.parametrize("edge", EDGES)
def test_a_report_meets_any_study(synthetic_study: StudyRecord, edge: str) -> None:
    record = studies(synthetic_study)[edge]
    assert set(studies(synthetic_study)) == set(EDGES)
    figures = build_figures(ReportView.from_record(record))
    for spec in figures.values():
        go.Figure(spec["figure"])
    page = Page(render_report(record))
    assert record.name in page.text
    assert "nan" not in page.data.lower().replace("alphanan", "")


def test_projections_hold_front_line_and_marks(synthetic_study: StudyRecord) -> None:
    figures = build_figures(ReportView.from_record(synthetic_study))
    traces = {t["name"]: t for t in figures["accuracy-latency"]["figure"]["data"]}
    assert list(traces) == [
        "Dominated", "Front of the two", "Front", "Uniform bits", "Float baseline", "selected",
    ]  # fmt: skip
    line = traces["Front of the two"]
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"])
    assert traces["Front"]["customdata"] == [t.number for t in synthetic_study.front()]
    assert traces["Front"]["error_x"]["array"][0] == synthetic_study.front()[0].latency_spread_us
    assert traces["Float baseline"]["x"] == [synthetic_study.trials[0].latency_us]
    assert "float" in traces["Float baseline"]["text"][0]


def test_neighbours_share_a_label(synthetic_study: StudyRecord) -> None:
    close = [
        replace(trial, latency_us=30.0, accuracy=0.98) if trial.number in (1, 4) else trial
        for trial in synthetic_study.trials
    ]
    record = replace(synthetic_study, trials=tuple(close))
    figures = build_figures(ReportView.from_record(record))

    def labels(name: str) -> list[str]:
        traces = {t["name"]: t for t in figures[name]["figure"]["data"]}
        found: list[str] = traces["Uniform bits"]["text"]
        return found

    assert labels("accuracy-latency") == ["W8 W3", "W6", "W4", ""]
    assert labels("accuracy-size")[3] == "W3"


def test_hypervolume_never_falls(synthetic_study: StudyRecord) -> None:
    figures = build_figures(ReportView.from_record(synthetic_study))
    history = figures["hypervolume"]["figure"]["data"][0]["y"]
    assert history == sorted(history)
    assert 0 <= history[0] <= history[-1] <= 1


def test_maps_have_a_column_for_each_point(synthetic_study: StudyRecord) -> None:
    figures = build_figures(ReportView.from_record(synthetic_study))
    front = synthetic_study.front()
    for name, n_rows in (("bits-map", 10), ("pruning-map", 6)):
        trace = figures[name]["figure"]["data"][0]
        assert figures[name]["columns"] == [trial.number for trial in front]
        assert len(trace["z"]) == n_rows
        assert {len(row) for row in trace["z"]} == {len(front)}
    candidate = front[0].candidate
    assert candidate is not None
    assert figures["bits-map"]["figure"]["data"][0]["text"][1][0] == str(
        candidate.layer_choices["stage1.conv1"].weight_bits
    )


def test_rare_widths_are_in_the_map_where_they_occur(synthetic_study: StudyRecord) -> None:
    def shown(record: StudyRecord) -> tuple[list[str], list[str]]:
        figures = build_figures(ReportView.from_record(record))
        trace = figures["bits-map"]["figure"]["data"][0]
        texts = [text for row in trace["text"] for text in row]
        assert max(place for row in trace["z"] for place in row) < len(trace["colorscale"]) / 2
        return texts, trace["colorbar"]["ticktext"]

    texts, legend = shown(synthetic_study)
    assert not {"1", "16"} & {*texts, *legend}
    first = synthetic_study.front()[0]
    assert first.candidate is not None
    names = [name for name, _ in first.candidate.layers]
    choices = [LayerChoice(1), LayerChoice(16, 32), *[LayerChoice(4)] * (len(names) - 2)]
    rare = Candidate(first.candidate.pruning, tuple(zip(names, choices, strict=True)))
    trials = [replace(t, candidate=rare) if t is first else t for t in synthetic_study.trials]
    texts, legend = shown(replace(synthetic_study, trials=tuple(trials)))
    assert {"1", "16"} <= {*texts}
    assert legend == ["1", "2", "3", "4", "5", "6", "7", "8", "float16", "float"]


def test_the_date_is_in_the_header(synthetic_study: StudyRecord) -> None:
    assert "2 March 2026" in render_report(synthetic_study, written=date(2026, 3, 2))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/report.html", "folder '.*missing' does not exist"),
        (".", "is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_an_error(
    synthetic_study: StudyRecord, tmp_path: Path, place: str, message: str
) -> None:
    with pytest.raises(ReportError, match=message):
        write_report(synthetic_study, tmp_path / place)


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the page's DOM after its scripts ran, and what they said to the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-unsafe-swiftshader", f"--user-data-dir={profile}", "--window-size=1400,3600",
            "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    return done.stdout, said


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("edge", ["full", "one trial", "all failed"])
def test_a_browser_draws_the_page(synthetic_study: StudyRecord, tmp_path: Path, edge: str) -> None:
    record = synthetic_study if edge == "full" else studies(synthetic_study)[edge]
    path = write_report(record, tmp_path / "report.html")
    dom, said = browse(path, tmp_path / "profile")
    faults = [line for line in said if re.search(r"Uncaught|Refused|[Ee]rror|Violat", line)]
    assert not faults
    page = Page(dom)
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    assert body["data-state"] == "drawn"
    drawn = {
        attributes.get("id")
        for _, attributes in page.tags
        if "js-plotly-plot" in (attributes.get("class") or "").split()
    }
    assert drawn == set(build_figures(ReportView.from_record(record)))
