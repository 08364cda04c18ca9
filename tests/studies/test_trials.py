import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from paredown.evaluators.measurement import EvaluationError, Latency
from paredown.search.candidate import Candidate
from paredown.search.early_stopping import Gate, StoppedEarly
from paredown.search.guided import ESTIMATES_KEY
from paredown.search.objective import Evaluation
from paredown.search.space import LayerInfo, PruningGroup, SearchSpace
from paredown.studies.errors import StudyError
from paredown.studies.guide import LatencyGuide
from paredown.studies.observer import Observer, StopSignal
from paredown.studies.outcomes import mark_interrupted
from paredown.studies.records import Constraints, StudyRecord, StudySettings, TrialRecord
from paredown.studies.storage import create_study, load_optuna_study, open_storage, read_study
from paredown.studies.trials import TrialLoop, planned_candidates

NewRecord = Callable[..., StudyRecord]

WIDTHS = (2, 4, 7, 8, 32)
SPACE = SearchSpace(
    groups=(PruningGroup("conv1", 64, (16, 24, 32, 40, 48, 56, 64), ("conv1",)),),
    layers=tuple(
        LayerInfo(name, "conv", (64, 64, 3, 3), 1000, (1, 64, 8, 8), WIDTHS, (8,))
        for name in ("conv1", "conv2", "conv3")
    ),
)


class TimedEvaluator:
    """Gives each candidate fixed values, after a pause, and fails where it is told to."""

    def __init__(self, folder: Path, pause_s: float = 0.0) -> None:
        self.folder = folder
        self.pause_s = pause_s
        self.seen: list[Candidate] = []
        self.errors: dict[int, BaseException] = {}
        self.always: BaseException | None = None
        self.gates: list[Gate | None] = []
        self.n_again = 0

    def evaluate(
        self, candidate: Candidate, report: Callable[[str], None], gate: Gate | None = None
    ) -> Evaluation:
        report("measuring")
        self.gates.append(gate)
        self.seen.append(candidate)
        time.sleep(self.pause_s)
        error = self.errors.get(len(self.seen) - 1, self.always)
        if error is not None:
            raise error
        bits = [choice.weight_bits for _, choice in candidate.layers]
        kept = 1.0 - candidate.pruning[0][1]
        latency_us = 10.0 + sum(bits) * kept
        model = self.folder / f"{candidate.digest}.onnx"
        model.write_bytes(b"model")
        return Evaluation(
            candidate=candidate,
            accuracy=1.0 - sum(2.0**-width for width in bits) - 0.1 * (1 - kept),
            size_bytes=round(100 * sum(bits) * kept),
            coded_size_bytes=round(90 * sum(bits) * kept),
            latency_us=latency_us,
            latency_spread_us=0.1,
            latency=Latency(latency_us, 0.1, 100, False, 1, 106.0, latency_us / 106.0),
            model=model,
            artifact=model,
        )

    def measure_again(self, model: Path) -> tuple[Latency, ...]:
        assert model.read_bytes() == b"model"
        self.n_again += 1
        return (Latency(1.0, 0.1, 100, False, 1, 4.0, 0.25),)

    def discard(self, evaluation: Evaluation) -> None:
        evaluation.model.unlink()


class Bench:
    """A study in a folder, and the means to run it."""

    def __init__(self, folder: Path, record: StudyRecord, space: SearchSpace = SPACE) -> None:
        self.url = f"sqlite:///{folder}/paredown.db"
        self.space = space
        self.storage = open_storage(self.url)
        create_study(self.storage, record)
        self.evaluator = TimedEvaluator(folder)
        self.observer = Observer()
        self.stop = StopSignal()

    @property
    def record(self) -> StudyRecord:
        return read_study(self.url, "digits")

    def run(self, n_trials: int, deadline: float | None = None, seed: int = 0) -> StudyRecord:
        study = load_optuna_study(self.storage, "digits", optuna.samplers.TPESampler(seed=seed))
        mark_interrupted(study, self.storage)
        loop = TrialLoop(
            study,
            self.storage,
            self.record,
            self.space,
            self.evaluator,
            self.observer,
            self.stop,
            LatencyGuide(self.space),
        )
        loop.run(n_trials, deadline)
        return self.record


@pytest.fixture
def bench(tmp_path: Path, new_record: NewRecord) -> Bench:
    return Bench(tmp_path, new_record([]))


def test_study_begins_with_the_baseline_and_the_uniform_widths(bench: Bench) -> None:
    record = bench.run(6)

    assert bench.evaluator.seen[:4] == [SPACE.baseline(), *map(SPACE.uniform, (8, 7, 4))]
    assert record.baseline is not None
    assert record.baseline.number == 0
    assert record.baseline.candidate == SPACE.baseline()
    assert record.n_finished == 6


def test_trials_are_complete_with_their_models(bench: Bench, tmp_path: Path) -> None:
    record = bench.run(3)

    for trial in record.trials:
        assert trial.state == "complete"
        assert trial.model_file is not None
        assert (tmp_path / "paredown-models" / trial.model_file).read_bytes() == b"model"
        assert trial.latency is not None
        assert trial.seconds is not None


def test_asking_again_runs_only_what_is_missing(bench: Bench) -> None:
    bench.run(5)
    record = bench.run(8, seed=1)

    assert record.n_finished == 8
    assert len(bench.evaluator.seen) == len(set(bench.evaluator.seen)) == 8


def test_equal_candidates_are_evaluated_once(tmp_path: Path, new_record: NewRecord) -> None:
    # Two layers of two widths: four candidates, which a sampler soon repeats.
    layers = tuple(
        LayerInfo(name, "conv", (8, 8, 3, 3), 1000, (1, 8, 8, 8), (8, 32), (8,))
        for name in ("conv1", "conv2")
    )
    group = PruningGroup("conv1", 16, (8, 16), ("conv1",))
    bench = Bench(tmp_path, new_record([]), SearchSpace((group,), layers))
    said: list[str] = []

    def listen(text: str) -> None:
        said.append(text)

    bench.observer.message = listen  # type: ignore[method-assign]  # listen in

    record = bench.run(20)

    assert len(bench.evaluator.seen) == len(set(bench.evaluator.seen)) == 8
    assert record.n_finished == 8
    duplicates = [trial for trial in record.trials if trial.state == "duplicate"]
    assert {trial.candidate for trial in duplicates} <= set(bench.evaluator.seen)
    assert "is evaluated" in said[-1]


def test_space_without_float_still_has_its_baseline(tmp_path: Path, new_record: NewRecord) -> None:
    layers = (LayerInfo("conv1", "conv", (8, 8, 3, 3), 1000, (1, 8, 8, 8), (4, 8), (8,)),)
    group = PruningGroup("conv1", 16, (8, 16), ("conv1",))
    bench = Bench(tmp_path, new_record([]), SearchSpace((group,), layers))

    record = bench.run(4)

    assert record.baseline is not None
    assert bench.evaluator.seen[0] == bench.space.baseline()
    assert len(set(bench.evaluator.seen)) == 4


def test_failure_is_recorded_and_the_study_goes_on(bench: Bench) -> None:
    bench.evaluator.errors[2] = EvaluationError("The compiler gave up.", "build")
    bench.evaluator.errors[3] = ZeroDivisionError("by zero")

    record = bench.run(6)

    assert record.n_finished == 6
    assert record.trial(2).error == "The compiler gave up."
    assert record.trial(3).error == "ZeroDivisionError: by zero"
    assert [trial.state for trial in record.trials[2:4]] == ["failed", "failed"]


def test_failed_candidate_is_not_tried_again(bench: Bench) -> None:
    bench.evaluator.errors[1] = EvaluationError("The compiler gave up.", "build")
    bench.run(4)

    bench.run(6, seed=1)

    assert bench.evaluator.seen.count(SPACE.uniform(8)) == 1


def test_failing_baseline_ends_the_study(bench: Bench) -> None:
    bench.evaluator.errors[0] = EvaluationError("No kernel.", "build")

    with pytest.raises(StudyError, match=r"uncompressed model must run.*No kernel"):
        bench.run(5)


def test_many_failures_in_a_row_end_the_study(bench: Bench) -> None:
    bench.run(1)
    bench.evaluator.always = EvaluationError("No kernel.", "build")

    with pytest.raises(StudyError, match="5 trials in a row failed, the last one: No kernel"):
        bench.run(50)
    assert bench.record.n_finished == 6


def test_error_of_the_machine_ends_the_study_and_does_not_count(bench: Bench) -> None:
    bench.evaluator.errors[2] = OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        bench.run(5)
    assert bench.record.n_finished == 2
    assert bench.run(5).n_finished == 5


def test_constraints_decide_what_is_feasible(tmp_path: Path, new_record: NewRecord) -> None:
    settings = StudySettings(constraints=Constraints(min_accuracy=0.9, max_size_bytes=3000))
    bench = Bench(tmp_path, new_record([], settings=settings))

    record = bench.run(12)

    for trial in record.complete:
        accuracy, size_bytes, _ = trial.values
        assert trial.is_feasible == (accuracy >= 0.9 and size_bytes <= 3000)
    assert all(trial.is_feasible for trial in record.front())
    assert not record.trial(0).is_feasible  # the uncompressed model is too large


def test_deadline_ends_the_run(bench: Bench) -> None:
    assert bench.run(5, deadline=time.monotonic() - 1).n_finished == 0


def test_interrupt_ends_after_the_trial_in_hand(bench: Bench) -> None:
    def interrupt(number: int, candidate: Candidate) -> None:
        if number == 2:
            bench.stop.interrupt()

    bench.observer.trial_started = interrupt  # type: ignore[method-assign]  # a first Ctrl-C

    record = bench.run(10)

    assert [trial.state for trial in record.trials] == ["complete"] * 3


def test_second_interrupt_stops_at_once(bench: Bench) -> None:
    bench.evaluator.errors[2] = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        bench.run(10)

    assert [trial.state for trial in bench.record.trials] == ["complete", "complete", "failed"]
    assert bench.record.trial(2).error == "interrupted"
    assert bench.record.n_finished == 2
    record = bench.run(4)
    assert record.n_finished == 4
    assert bench.evaluator.seen.count(SPACE.uniform(7)) == 2  # the interrupted one ran again


def test_interrupt_while_a_trial_is_written_does_not_lose_it(bench: Bench) -> None:
    def interrupt(trial: TrialRecord, study: StudyRecord) -> None:
        bench.stop.interrupt(at_once=True)

    bench.observer.trial_finished = interrupt  # type: ignore[method-assign]  # in the shield

    with pytest.raises(KeyboardInterrupt):
        bench.run(10)

    assert [trial.state for trial in bench.record.trials] == ["complete"]


def test_trial_of_a_living_process_is_left_alone(bench: Bench) -> None:
    study = load_optuna_study(bench.storage, "digits", optuna.samplers.RandomSampler(seed=0))
    study.ask().set_user_attr("process", {"host": "elsewhere"})
    study.ask()  # asked for this very moment

    assert mark_interrupted(study, bench.storage) == 0
    assert [trial.state for trial in bench.record.trials] == ["running", "running"]


def test_planned_candidates_skip_widths_that_are_not_offered() -> None:
    layers = (LayerInfo("conv1", "conv", (8, 8, 3, 3), 1000, (1, 8, 8, 8), (4, 6), (8,)),)
    space = SearchSpace((), layers)

    assert planned_candidates(space) == [space.baseline(), space.uniform(4)]


def run_child(url: str, folder: Path, n_trials: int, seed: int) -> None:
    storage = open_storage(url)
    study = load_optuna_study(storage, "digits", optuna.samplers.TPESampler(seed=seed))
    mark_interrupted(study, storage)
    evaluator = TimedEvaluator(folder, pause_s=0.02)
    record, guide = read_study(storage, "digits"), LatencyGuide(SPACE)
    loop = TrialLoop(study, storage, record, SPACE, evaluator, Observer(), StopSignal(), guide)
    loop.run(n_trials, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_study_resumes_without_loss(bench: Bench, tmp_path: Path) -> None:
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    finished: dict[int, TrialRecord] = {}
    for attempt in range(20):
        child = context.Process(target=run_child, args=(bench.url, tmp_path, 10_000, attempt))
        child.start()
        # On a busy machine the first trial may take long to come.
        time.sleep(rng.uniform(0.05, 0.8) * (1 if finished else attempt + 1))
        child.kill()
        child.join()
        now = {trial.number: trial for trial in bench.record.trials if trial.is_finished}
        assert finished.items() <= now.items()  # nothing that was finished is lost or changed
        finished = now

    n_trials = len(finished) + 7
    run_child(bench.url, tmp_path, n_trials, seed=99)

    record = bench.record
    assert finished
    assert record.n_finished == n_trials
    candidates = [trial.candidate for trial in record.trials if trial.is_finished]
    assert len(set(candidates)) == n_trials
    assert sum(trial.is_baseline and trial.state == "complete" for trial in record.trials) == 1
    for trial in record.complete:
        assert trial.model_file is not None
        assert (tmp_path / "paredown-models" / trial.model_file).read_bytes() == b"model"


# ---- early stopping


def test_candidates_meet_a_gate_with_the_front(bench: Bench) -> None:
    record = bench.run(8)

    assert bench.evaluator.gates[:4] == [None] * 4  # the baseline and the uniform widths
    gate = bench.evaluator.gates[5]
    assert gate is not None
    assert set(gate.numbers) <= {0, 1, 2, 3, 4}
    for number, cost in zip(gate.numbers, gate.costs.tolist(), strict=True):
        accuracy, size_bytes, _ = record.trial(number).values  # its latency was measured again
        assert cost[:2] == [-accuracy, size_bytes]


def test_what_is_known_of_a_stopped_candidate_is_kept(bench: Bench) -> None:
    bench.evaluator.errors[5] = StoppedEarly("trial 3 is better", (0.5, 1000.0, None))
    record = bench.run(7)

    trial = record.trial(5)
    assert trial.state == "stopped early"
    assert trial.is_finished
    assert (trial.accuracy, trial.size_bytes, trial.latency_us) == (0.5, 1000, None)
    assert trial.error == "trial 3 is better"
    assert trial.candidate == bench.evaluator.seen[5]
    assert record.n_finished == 7
    assert len(record.complete) == 6


def test_samplers_learn_from_stopped_candidates(bench: Bench) -> None:
    bench.evaluator.errors[5] = StoppedEarly("trial 3 is better", (0.5, 1000.0, None))
    record = bench.run(7)

    told = optuna.load_study(study_name="digits", storage=bench.storage).trials[5]
    assert told.state is optuna.trial.TrialState.COMPLETE
    accuracy, size_bytes, latency_us = told.values
    assert (accuracy, size_bytes) == (0.5, 1000.0)
    latencies_us = [trial.values[2] for trial in record.complete if not trial.again]
    assert min(latencies_us) <= latency_us <= max(latencies_us)
    assert 5 not in [trial.number for trial in record.front()]


def test_stopped_candidates_break_the_bounds(tmp_path: Path, new_record: NewRecord) -> None:
    settings = StudySettings(constraints=Constraints(max_size_bytes=900))
    bench = Bench(tmp_path, new_record([], settings=settings))
    bench.evaluator.errors[5] = StoppedEarly("its size is 1000", (None, 1000.0, None))
    bench.run(7)

    told = optuna.load_study(study_name="digits", storage=bench.storage).trials[5]
    assert told.constraints == {"max_size_bytes": 100.0}


def test_repeats_of_stopped_candidates(tmp_path: Path, new_record: NewRecord) -> None:
    layers = (LayerInfo("conv1", "conv", (8, 8, 3, 3), 1000, (1, 8, 8, 8), (4, 8, 32), (8,)),)
    group = PruningGroup("conv1", 16, (8, 16), ("conv1",))
    bench = Bench(tmp_path, new_record([]), SearchSpace((group,), layers))
    for place in (3, 4):  # after the baseline and the uniform widths
        bench.evaluator.errors[place] = StoppedEarly("worse", (0.5, 1000.0, None))
    record = bench.run(20)

    study = optuna.load_study(study_name="digits", storage=bench.storage)
    stopped = {t.candidate: t.number for t in record.trials if t.state == "stopped early"}
    repeats = [t for t in record.trials if t.state == "duplicate" and t.candidate in stopped]
    assert repeats
    for trial in repeats:
        told, first = study.trials[trial.number], study.trials[stopped[trial.candidate]]
        assert (told.state, told.values) == (first.state, first.values)
        assert told.user_attrs[ESTIMATES_KEY] == [0.5, 1000.0, None]


def test_whole_trials_on_request(tmp_path: Path, new_record: NewRecord) -> None:
    bench = Bench(tmp_path, new_record([], settings=StudySettings(early_stopping=False)))
    bench.run(6)

    assert bench.evaluator.gates == [None] * 6


# ---- the front, measured again


def test_the_front_is_measured_again_once(bench: Bench) -> None:
    record = bench.run(8)

    confirmed = [trial for trial in record.complete if trial.again]
    assert len(confirmed) == bench.evaluator.n_again > 0
    assert record.baseline is not None
    assert record.baseline.latency_us is not None
    for trial in confirmed:
        assert trial.latency is not None
        assert trial.latency.ratio is not None
        ratio = (trial.latency.ratio + 0.25) / 2
        assert trial.latency_us == pytest.approx(ratio * record.baseline.latency_us)
        reach = abs(trial.latency.ratio - 0.25) / 2 * record.baseline.latency_us
        assert trial.latency_spread_us == pytest.approx(max(reach, 0.1))
    bench.run(8)
    new = [t for t in bench.record.front() if not t.again and not t.is_baseline]
    assert not new or bench.evaluator.n_again > len(confirmed)


def test_bounds_relative_to_the_baseline(tmp_path: Path, new_record: NewRecord) -> None:
    settings = StudySettings(constraints=Constraints(min_speedup=2.0, max_accuracy_drop=40.0))
    bench = Bench(tmp_path, new_record([], settings=settings))
    record = bench.run(10)

    assert record.baseline is not None
    assert not record.baseline.is_feasible
    accuracy, _, latency_us = record.baseline.values
    for trial in record.complete:
        if trial.again:
            continue  # its latency is another one now
        is_fast = trial.values[2] <= latency_us / 2
        assert trial.is_feasible == (is_fast and trial.values[0] >= accuracy - 0.4)
