"""Fine-tuning of a chosen trial: its candidate trained for longer, as a new trial of the study."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import distributed

from ..evaluators.task import Task, check_task
from ..search.compression.compressor import Compressor
from ..search.objective import Evaluation, Objective
from ..search.training import Log, Precision
from .benches import open_benches
from .engine import digest_task
from .errors import StudyError
from .records import StudyRecord, TrialRecord
from .storage import add_complete_trial, load_model, open_storage, read_study
from .tasks import load_task
from .weights import compression_settings, make_space, shared_weights

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How a trial is fine-tuned.

    Attributes:
        epochs: Passes over all of the task's training data.
        lr: Largest learning rate.
        batch_size: Samples of one step, over all processes.
        distill: Whether it follows the outputs of the uncompressed model, not the targets.
        precision: What layers compute in during the training.
        log_dir: Folder for TensorBoard's files; None writes none.
    """

    epochs: int
    lr: float = 2e-3
    batch_size: int = 64
    distill: bool = True
    precision: Precision = "float32"
    log_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(
                "`epochs` and `batch_size` must be 1 or more and `lr` above 0, but got "
                f"{self.epochs}, {self.batch_size} and {self.lr}."
            )


def finetune_trial(
    record: StudyRecord,
    number: int,
    options: FinetuneOptions,
    *,
    report: Report | None = None,
) -> TrialRecord | None:
    """Train the candidate of a trial and add the result to the study as a new trial.

    The training begins with the weights that the study gives the candidate. Under `torchrun` all
    processes train together, and the first one measures and writes.

    Args:
        record: The study.
        number: A complete trial of it.
        options: How to train.
        report: Told what happens.

    Returns:
        The new trial; None in all processes but the first.

    Raises:
        StudyError: If the trial cannot be fine-tuned, or the task changed since the study began.
        ParedownError: If a step fails.
    """
    tell = report or (lambda _: None)
    trial = _check_trial(record, number)
    start = time.monotonic()
    with _process_group() as rank, _writer(options.log_dir if rank == 0 else None) as log:
        tell("loading the task")
        task = load_task(record.task, data_dir=record.settings.data_dir, report=tell)
        check_task(task)
        if digest_task(task) != record.task_digest:
            raise StudyError(
                f"The model and the data of task '{task.name}' must be those of study "
                f"'{record.name}', but changed since it began. Start another study."
            )
        compressor = _compressor(record, task, options, tell, log)
        assert trial.candidate is not None  # checked above
        if rank != 0:
            compressor.compress(trial.candidate)
            return None
        return _measure(record, trial, task, compressor, options, start, tell)


def _check_trial(record: StudyRecord, number: int) -> TrialRecord:
    try:
        trial = record.trial(number)
    except ValueError as error:
        raise StudyError(f"{error} See them with `paredown front {record.name} --all`.") from error
    if trial.state != "complete" or trial.candidate is None:
        raise StudyError(
            f"Trial {number} of study '{record.name}' must be complete to be fine-tuned, but is "
            f"{trial.state}."
        )
    if trial.is_baseline:
        raise StudyError(
            f"Trial {number} of study '{record.name}' must be a compressed one, but is the "
            "uncompressed model. Pick another one."
        )
    return trial


def _compressor(
    record: StudyRecord, task: Task, options: FinetuneOptions, tell: Report, log: Log | None
) -> Compressor:
    if task.train is None:
        raise StudyError(
            f"Task '{task.name}' must have training data to fine-tune on. Set `Task.train`."
        )
    settings = record.settings
    space = make_space(settings, task, record.profile)
    chosen = compression_settings(
        settings,
        task,
        finetune_epochs=options.epochs,
        finetune_lr=options.lr,
        finetune_batch_size=options.batch_size,
        n_finetuning=None,
        distill=options.distill,
        precision=options.precision,
    )
    shared = shared_weights(settings, task, space, tell)
    return Compressor(task, space, chosen, settings.seed, shared, log)


def _measure(
    record: StudyRecord,
    trial: TrialRecord,
    task: Task,
    compressor: Compressor,
    options: FinetuneOptions,
    start: float,
    tell: Report,
) -> TrialRecord:
    """Train, measure beside the study's baseline, and write the new trial."""
    baseline = record.baseline
    assert trial.candidate is not None  # checked before
    assert baseline is not None  # a complete trial was compared with it
    settings = record.settings
    with (
        TemporaryDirectory(prefix="paredown-") as folder,
        open_benches(record, tell) as benches,
        ExitStack() as stack,
    ):
        (first, profile), *others = zip(benches, record.profiles, strict=True)
        objective = stack.enter_context(
            Objective(
                task, compressor, first, settings.runtime, profile, Path(folder), others=others
            )
        )
        latencies = (latency.latency_us for latency in baseline.others)
        objective.use_baseline(load_model(record, baseline), baseline.latency_us, *latencies)
        evaluation = objective.evaluate(trial.candidate, tell)
        number = _add(record, trial, evaluation, options, time.monotonic() - start)
    return read_study(record.storage, record.name).trial(number)


def _add(
    record: StudyRecord,
    trial: TrialRecord,
    evaluation: Evaluation,
    options: FinetuneOptions,
    seconds: float,
) -> int:
    accuracy, size_bytes = evaluation.accuracy, float(evaluation.size_bytes)
    latency, latency_us = evaluation.latency, evaluation.latency_us
    attributes: dict[str, Any] = {
        "candidate": evaluation.candidate.to_json(),
        "accuracy": evaluation.accuracy,
        "size_bytes": evaluation.size_bytes,
        "coded_size_bytes": evaluation.coded_size_bytes,
        "latency_us": evaluation.latency_us,
        "latency_spread_us": evaluation.latency_spread_us,
        "latency": None if latency is None else latency.to_json(),
        "others": [other.to_json() for other in evaluation.others],
        "is_baseline": False,
        "finetuned_from": trial.number,
        "finetune_epochs": options.epochs,
        "seconds": seconds,
    }
    missed = record.settings.constraints.violations(
        accuracy, size_bytes, latency_us, higher_is_better=record.higher_is_better
    )
    latencies = [us for us in (latency_us, *(o.latency_us for o in evaluation.others)) if us]
    values = (accuracy, size_bytes, *latencies)
    storage = open_storage(record.storage, must_exist=True)
    return add_complete_trial(storage, record.name, values, attributes, missed, evaluation.model)


@contextmanager
def _process_group() -> Iterator[int]:
    """Join the processes that `torchrun` started, and yield this one's number."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


@contextmanager
def _writer(folder: Path | None) -> Iterator[Log | None]:
    """Yield what writes figures of an epoch for TensorBoard."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise StudyError(
            "`log_dir` needs the package tensorboard, which is not installed. Install it with "
            "`pip install 'paredown[tensorboard]'`."
        ) from error
    writer: SummaryWriter = SummaryWriter(str(folder))

    def log(epoch: int, figures: Any) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"finetune/{name}", value, epoch)

    try:
        yield log
    finally:
        writer.close()
