"""How a running study looks in a terminal, and in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from ..search.candidate import Candidate
from .front import describe_trial, front_table, summarize
from .observer import Observer
from .records import StudyRecord, TrialRecord

_MAX_ROWS = 8


class LogProgress(Observer):
    """One plain line for each event: for logs and pipes.

    Args:
        console: Where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._n_trials = 0
        self._preparing = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: each line is out already."""

    def message(self, text: str) -> None:
        """Print the remark."""
        self._print(text)

    def preparing(self, text: str) -> None:
        """Print what is being done, once for each text."""
        if text != self._preparing:
            self._preparing = text
            self._print(text)

    def started(self, study: StudyRecord, n_trials: int) -> None:
        """Start the clock of the time left."""
        self._n_trials = n_trials
        self._clock.start(study.n_finished)
        self._print(_headline(study, n_trials))

    def trial_finished(self, trial: TrialRecord, study: StudyRecord) -> None:
        """Print the trial's result and the time left."""
        done = study.n_finished
        left = self._clock.text_left(done, self._n_trials)
        self._print(f"[{done}/{self._n_trials}, {left}] {describe_trial(trial, study)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(Observer):
    """A bar with the time left, what the current trial does, and the best points so far.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._bar_id = self._bar.add_task("trials", total=None, visible=False, left="")
        self._trial = ""
        self._step = Text("starting", style="dim")
        self._table: RenderableType = Text("")
        self._n_trials = 0
        self._live = Live(
            get_renderable=self.__rich__, console=console, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def message(self, text: str) -> None:
        """Print the remark above the display."""
        self._console.print(text, markup=False, highlight=False)

    def preparing(self, text: str) -> None:
        """Show what is being done."""
        self._step = Text(text)

    def started(self, study: StudyRecord, n_trials: int) -> None:
        """Show the bar."""
        self._n_trials = n_trials
        done = study.n_finished
        self._clock.start(done)
        self.message(_headline(study, n_trials))
        self._bar.update(self._bar_id, total=n_trials, completed=done, visible=True)
        self._table = front_table(study, max_rows=_MAX_ROWS)

    def trial_started(self, number: int, candidate: Candidate) -> None:
        """Show which trial runs and what it tries."""
        self._trial = f"trial {number}: {summarize(candidate)}"
        self.trial_step(number, "starting")

    def trial_step(self, number: int, step: str) -> None:
        """Show what the trial is doing."""
        self._step = Text.assemble((self._trial, ""), " - ", (step, "cyan"))

    def trial_finished(self, trial: TrialRecord, study: StudyRecord) -> None:
        """Move the bar and the table on."""
        if trial.state == "failed":
            self.message(describe_trial(trial, study))
        done = study.n_finished
        left = self._clock.text_left(done, self._n_trials)
        self._bar.update(self._bar_id, completed=done, left=left)
        self._table = front_table(study, max_rows=_MAX_ROWS)

    def __rich__(self) -> RenderableType:
        """Return the display as it is now."""
        return Group(self._table, self._step, self._bar)


class _Clock:
    """Estimates the time left from the trials of this run."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._done_before = 0

    def start(self, done: int) -> None:
        """Begin to count; `done` trials were finished before."""
        self._start, self._done_before = time.monotonic(), done

    def text_left(self, done: int, n_trials: int) -> str:
        """Return the time left in words."""
        run = done - self._done_before
        if run <= 0:
            return ""
        if done >= n_trials:
            return "done"
        seconds = (time.monotonic() - self._start) / run * (n_trials - done)
        return f"{duration(seconds)} left"


def _headline(study: StudyRecord, n_trials: int) -> str:
    done = study.n_finished
    text = (
        f"study '{study.name}': {n_trials} trials on profile '{study.profile.name}', "
        f"{study.settings.runtime}, {study.threads} thread(s)"
    )
    return f"{text}; {done} done already" if done else text


def duration(seconds: float) -> str:
    """Return a length of time in words, such as "1 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def make_progress(console: Console) -> LiveProgress | LogProgress:
    """Return the display that fits: live in a terminal, lines elsewhere."""
    return LiveProgress(console) if console.is_terminal else LogProgress(console)
