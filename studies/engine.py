"""A study from its options to its record: everything checked first, then run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from optuna.storages import RDBStorage
from torch import Tensor

from ..evaluators.task import Task, check_task
from ..hw_profiles.profile import HardwareProfile
from ..search.checkpoint import digest_tensors
from ..search.compression.compressor import CompressionSettings, Compressor
from ..search.guided import GuidedSampler
from ..search.objective import Objective
from ..search.samplers import make_sampler
from ..search.space import SearchSpace
from .benches import meet_devices, open_benches
from .checks import (
    check_constraints,
    check_objectives,
    check_profiles,
    check_same_study,
    check_settings,
    check_task_bounds,
)
from .config import StudyConfig
from .guide import Guide, LatencyGuide
from .observer import Observer, StopSignal
from .outcomes import mark_interrupted
from .records import StudyRecord, StudySettings
from .storage import (
    create_study,
    has_study,
    load_model,
    load_optuna_study,
    open_storage,
    read_study,
    storage_errors,
)
from .tasks import BUILTIN_TASKS, check_task_spec, load_task
from .trials import TrialLoop
from .weights import compression_settings, make_space, shared_weights


def run_study(
    config: StudyConfig, *, observer: Observer | None = None, stop: StopSignal | None = None
) -> StudyRecord:
    """Run a study, or go on with it, until it has the asked number of finished trials.

    Args:
        config: All options.
        observer: Told what happens.
        stop: Ends the run early; see `StopSignal`.

    Returns:
        The study as it stands in the storage afterwards.

    Raises:
        ParedownError: If an option or the task is wrong (no work is begun then), the
            uncompressed model cannot be evaluated, or too many trials in a row fail.
        KeyboardInterrupt: If the study was stopped at once.
    """
    observer, stop = observer or Observer(), stop or StopSignal()
    deadline = None if config.timeout is None else time.monotonic() + config.timeout
    wanted = describe_study(config, check_profiles(config))
    check_task_bounds(config)
    check_settings(wanted.settings)
    storage = open_storage(config.storage)
    if has_study(storage, wanted.name):
        found = read_study(storage, wanted.name)
        # Whether a device is emulated it tells itself, which comes later.
        known = replace(wanted.profile, emulated=found.profile.emulated)
        check_same_study(found, replace(wanted, profile=known))
        if found.n_finished >= config.trials:
            observer.message(
                f"Study '{found.name}' has its {config.trials} trials already; ask for more "
                "with --trials."
            )
            return found
    with (
        TemporaryDirectory(prefix="paredown-") as folder,
        open_benches(wanted, observer.message) as benches,
    ):
        wanted = meet_devices(wanted, benches, observer)
        check_objectives(wanted.settings.objectives, wanted.profiles)
        run = _prepare(wanted, storage, observer)
        others = list(zip(benches[1:], run.record.other_profiles, strict=True))
        with Objective(
            run.task,
            run.compressor,
            benches[0],
            config.runtime,
            run.record.profile,
            Path(folder),
            others=others,
        ) as objective:
            with storage_errors(storage.url):
                loop = run.loop(objective, observer, stop, config.trials)
                observer.started(loop.refresh(), config.trials)
                loop.run(config.trials, deadline)
    return read_study(storage, wanted.name)


@dataclass(frozen=True)
class _Run:
    """What the trials of a run share."""

    record: StudyRecord
    storage: RDBStorage
    task: Task
    space: SearchSpace
    compressor: Compressor

    def loop(
        self, objective: Objective, observer: Observer, stop: StopSignal, n_trials: int
    ) -> TrialLoop:
        """Return the loop, ready to run: stale trials marked, the baseline built."""
        settings, name = self.record.settings, self.record.name
        # A resumed sampler must not repeat the draws of the run before it.
        seed = np.random.SeedSequence([settings.seed, len(self.record.trials)])
        sampler = make_sampler(settings.sampler, int(seed.generate_state(1)[0]))
        study = load_optuna_study(self.storage, name, sampler, self.record.objectives)
        n_stale = mark_interrupted(study, self.storage)
        if n_stale:
            observer.message(f"{n_stale} trial(s) of an interrupted run are marked as failed.")
        baseline = self.record.baseline
        if baseline is not None:
            observer.preparing("building the uncompressed model")
            others = (latency.latency_us for latency in baseline.others)
            objective.use_baseline(load_model(self.record, baseline), baseline.latency_us, *others)
        guide: LatencyGuide = LatencyGuide(self.space)
        if isinstance(sampler, GuidedSampler):
            # Training each of the models whose outputs are compared would take very long.
            chosen = compression_settings(settings, self.task, finetune_epochs=0)
            quick = Compressor(self.task, self.space, chosen, settings.seed)
            quick.shared = self.compressor.shared
            guide = Guide(
                self.storage, self.space, self.task, quick, objective, sampler, n_trials, observer
            )
        return TrialLoop(
            study, self.storage, self.record, self.space, objective, observer, stop, guide
        )


def describe_study(config: StudyConfig, profiles: tuple[HardwareProfile, ...]) -> StudyRecord:
    """Return the study that the options ask for, as far as it is known without its task."""
    spec = check_task_spec(config.task)
    settings = config.settings()
    if settings.data_dir is not None:
        settings = replace(settings, data_dir=str(Path(settings.data_dir).resolve()))
    return StudyRecord(
        name=config.study or _default_name(spec),
        task=spec,
        metric_name="",
        higher_is_better=True,
        profile=profiles[0],
        other_profiles=profiles[1:],
        threads=profiles[0].threads,
        settings=settings,
        baseline=None,
        trials=(),
    )


def _default_name(spec: str) -> str:
    # The user's own task has its name only once it is loaded; its function names the study.
    return spec if spec in BUILTIN_TASKS else Path(spec.rpartition(":")[0]).stem


def _prepare(wanted: StudyRecord, storage: RDBStorage, observer: Observer) -> _Run:
    """Load the task, find the space, check both against the options and the stored study."""
    settings = wanted.settings
    observer.preparing("loading the task")
    # The base model stands for the user's trained one: the study's seed leaves it as it is.
    task = load_task(wanted.task, data_dir=settings.data_dir, report=observer.preparing)
    observer.preparing("checking the task")
    check_task(task)
    check_constraints(settings.constraints, metric_name=task.metric_name)
    space = make_space(settings, task, wanted.profile)
    chosen = compression_settings(settings, task)
    observer.preparing("exporting the model")
    compressor = Compressor(task, space, chosen, settings.seed)
    _check_smallest(settings, space, task)
    record = replace(
        wanted,
        metric_name=task.metric_name,
        higher_is_better=task.higher_is_better,
        task_digest=digest_task(task),
        validation_digest=digest_validation(task),
        space_digest=space.digest,
    )
    if has_study(storage, record.name):
        found = read_study(storage, record.name)
        check_same_study(found, record)
        # The connections may be other ones than those of the run before.
        record = replace(
            found,
            settings=settings,
            profile=record.profile,
            other_profiles=record.other_profiles,
        )
    else:
        create_study(storage, record)
        record = read_study(storage, record.name)
    compressor.shared = shared_weights(settings, task, space, observer.preparing)
    return _Run(record, storage, task, space, compressor)


def _check_smallest(settings: StudySettings, space: SearchSpace, task: Task) -> None:
    if settings.constraints.max_size_bytes is None:
        return
    compressor = Compressor(task, space, CompressionSettings())
    # The least that is asked for has the smallest option of each choice nearest to it.
    smallest = compressor.compress(space.uniform(0, 0, pruning_ratio=1.0))
    check_constraints(
        settings.constraints,
        metric_name=task.metric_name,
        smallest_size_bytes=smallest.size_bytes,
    )


def digest_task(task: Task) -> str:
    """Return 16 hexadecimal digits that change with the task's weights and its data."""
    weights = {f"model.{name}": tensor for name, tensor in task.model.state_dict().items()}
    return digest_tensors({**weights, "calibration": task.calibration, **_validation(task)})


def digest_validation(task: Task) -> str:
    """Return 16 hexadecimal digits that change with the task's validation data."""
    return digest_tensors(_validation(task))


def _validation(task: Task) -> dict[str, Tensor]:
    data = task.validation
    return {"validation.inputs": data.inputs, "validation.targets": data.targets}
