"""What a running study tells whoever watches it, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..search.candidate import Candidate
from .records import StudyRecord, TrialRecord


class Observer:
    """Receives the events of a run; this one ignores them, so override what matters.

    All methods are called from the thread that runs the study.
    """

    def message(self, text: str) -> None:
        """Take a remark that should stay visible."""

    def preparing(self, text: str) -> None:
        """Take what is being done before the first trial; replaces the text before it."""

    def started(self, study: StudyRecord, n_trials: int) -> None:
        """Learn that trials begin; `n_trials` are asked for, counting those already there."""

    def trial_started(self, number: int, candidate: Candidate) -> None:
        """Learn which trial begins."""

    def trial_step(self, number: int, step: str) -> None:
        """Learn what the current trial is doing."""

    def trial_finished(self, trial: TrialRecord, study: StudyRecord) -> None:
        """Learn how a trial ended; `study` has it among its trials."""


class StopSignal:
    """Ends a study after the trial in hand, or at once the second time.

    Call `interrupt` from a signal handler in the thread that runs the study.

    Args:
        on_request: Called when the first interrupt begins to wait for the trial in hand.
    """

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        self.is_requested = False  # to end after the trial in hand
        self.is_interrupted = False
        self._on_request = on_request
        self._is_in_trials = False
        self._is_shielded = False
        self._pending: list[bool] = []

    def interrupt(self, *, at_once: bool = False) -> None:
        """Ask the study to stop.

        Args:
            at_once: Whether not to wait for the end of the trial in hand.

        Raises:
            KeyboardInterrupt: If no trials are being run, or not to wait for it, or it was asked
                before.
        """
        self.is_interrupted = True
        if self._is_shielded:
            self._pending.append(at_once)
        elif self._is_in_trials and not self.is_requested and not at_once:
            self.is_requested = True
            if self._on_request is not None:
                self._on_request()
        else:
            raise KeyboardInterrupt

    @contextmanager
    def in_trials(self) -> Iterator[None]:
        """Mark the time in which a first interrupt waits for the end of the trial in hand."""
        self._is_in_trials = True
        try:
            yield
        finally:
            self._is_in_trials = False

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold interrupts back while a trial's end is written."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
            pending, self._pending = self._pending, []
            for at_once in pending:
                self.interrupt(at_once=at_once)
