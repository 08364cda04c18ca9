from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paredown.evaluators.measurement import EvaluationError, Latency
from paredown.evaluators.task import Data, Task
from paredown.hw_profiles import load_profile
from paredown.search.candidate import Candidate
from paredown.search.compression.compressor import Compressor
from paredown.search.device_timing import DeviceLatency
from paredown.search.guided import GuidedSampler
from paredown.search.knowledge.latency_model import LatencySample
from paredown.search.space import SearchSpace
from paredown.studies.guide import (
    LOSSES_KEY,
    Guide,
    LatencyGuide,
    read_knowledge,
    reference_values,
)
from paredown.studies.observer import Observer
from paredown.studies.records import (
    Constraints,
    Reference,
    StudyRecord,
    StudySettings,
    TrialRecord,
)
from paredown.studies.storage import create_study, open_storage

NewRecord = Callable[..., StudyRecord]


class Prober:
    """Latency goes with the bits; every fourth candidate cannot be built."""

    def __init__(self) -> None:
        self.seen: list[Candidate] = []

    def probe(self, candidate: Candidate) -> tuple[LatencySample, ...]:
        self.seen.append(candidate)
        if len(self.seen) % 4 == 0:
            raise EvaluationError("The compiler is out of order.", "build")
        return (LatencySample(candidate, None, latency_us(candidate)),)


def latency_us(candidate: Candidate) -> float:
    return 10.0 + sum(choice.weight_bits for _, choice in candidate.layers)


def trial(
    number: int, candidate: Candidate, size: int, *, is_baseline: bool = False
) -> TrialRecord:
    return TrialRecord(
        number,
        "complete",
        candidate,
        accuracy=0.9,
        size_bytes=size,
        latency_us=latency_us(candidate),
        is_baseline=is_baseline,
        is_feasible=True,
    )


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    inputs = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(dim=1)
    task = Task("small", model, inputs[:1], inputs, Data(inputs, targets))
    profile = load_profile("x86-64-v3")
    return Compressor(task, SearchSpace.from_model(model, inputs[:1], profile))


@pytest.mark.slow
def test_it_learns_once_and_leads_the_sampler(
    compressor: Compressor, tmp_path: Path, new_record: NewRecord
) -> None:
    space = compressor.space
    storage = open_storage(f"sqlite:///{tmp_path}/paredown.db")
    baseline = trial(0, space.baseline(), 5000, is_baseline=True)
    record = new_record([baseline, trial(1, space.uniform(4), 900)])
    create_study(storage, record)
    said: list[str] = []

    class Listener(Observer):
        def message(self, text: str) -> None:
            said.append(text)

    def make(prober: Prober) -> tuple[Guide, GuidedSampler]:
        sampler = GuidedSampler(seed=0)
        guide = Guide(storage, space, compressor.task, compressor, prober, sampler, 24, Listener())
        return guide, sampler

    prober = Prober()
    guide, sampler = make(prober)
    assert not guide.predict_latencies_us(space.uniform(4))
    starts = guide.prepare(record)

    assert guide.is_ready
    assert 2 <= len(starts) <= 6
    assert len(set(starts)) == len(starts)
    for candidate in starts:
        space.check(candidate)
    assert len(prober.seen) == 4
    assert said == ["A candidate could not be timed: The compiler is out of order."]
    assert sampler.prior is not None
    assert sampler.reference == pytest.approx((0.81, 5000.0, latency_us(space.baseline())))
    names = list(space.options())
    params = space.params(space.uniform(4))
    expected = sampler.prior(names, np.array([[params[n] for n in names]]))[0]
    assert expected[1] == pytest.approx(900.0)  # what belongs to no layer is learnt from trials
    ((mean, _),) = guide.predict_latencies_us(space.uniform(4))
    assert 0 < mean < 0.6 * latency_us(space.baseline())

    knowledge = read_knowledge(storage, record.name)
    assert knowledge is not None
    assert len(knowledge.probes) == 3
    assert knowledge.channels["0"] == (16, ("0",))

    again = Prober()
    later, _ = make(again)
    assert later.prepare(record) == starts
    assert again.seen == []


def test_any_study_learns_what_latency_to_expect(
    compressor: Compressor, new_record: NewRecord
) -> None:
    space = compressor.space
    guide = LatencyGuide(space)
    assert not guide.predict_latencies_us(space.uniform(4))
    trials = [trial(0, space.baseline(), 5000, is_baseline=True)]
    assert guide.prepare(new_record(trials)) == ()
    assert guide.is_ready
    gaps = []
    for number, bits in enumerate((8, 3, 6), start=1):
        ((before, _),) = guide.predict_latencies_us(space.uniform(5))
        gaps.append(abs(before - latency_us(space.uniform(5))))
        trials.append(trial(number, space.uniform(bits), 900))
        guide.learn(new_record(trials))
    ((mean, deviation),) = guide.predict_latencies_us(space.uniform(5))
    assert abs(mean - latency_us(space.uniform(5))) < 0.5 * gaps[0]
    assert 0 < deviation < 0.5 * mean


def test_the_reference_is_the_tightest_of_what_is_said(new_record: NewRecord) -> None:
    baseline = TrialRecord(0, "complete", None, 0.9, 5000, 80.0, is_baseline=True)

    def values(constraints: Constraints, reference: Reference) -> tuple[float, ...]:
        settings = StudySettings(constraints=constraints, reference=reference)
        return reference_values(new_record([baseline], settings=settings), baseline)

    assert values(Constraints(), Reference()) == pytest.approx((0.81, 5000, 80.0))
    assert values(Constraints(min_shrink=4.0, min_accuracy=0.85), Reference()) == (
        0.85,
        1250,
        80.0,
    )
    wanted = Reference(accuracy=0.88, size_bytes=2000, latency_us=100.0)
    assert values(Constraints(), wanted) == (0.88, 2000, 100.0)
    assert values(Constraints(min_speedup=2.0), wanted) == (0.88, 2000, 40.0)
    lower = dataclasses.replace(new_record([baseline]), higher_is_better=False)
    assert reference_values(lower, baseline)[0] == pytest.approx(0.99)


def test_the_reference_has_a_latency_for_each_device(new_record: NewRecord) -> None:
    latency = Latency(30.0, 0.1, 100, False, 1)
    other = DeviceLatency("board", 30.0, 0.1, latency)
    baseline = TrialRecord(0, "complete", None, 0.9, 5000, 80.0, is_baseline=True, others=(other,))
    settings = StudySettings(constraints=Constraints(min_speedup=2.0))
    record = new_record([baseline], settings=settings)
    assert reference_values(record, baseline) == pytest.approx((0.81, 5000, 40.0, 30.0))
    without = TrialRecord(0, "complete", None, 0.9, 5000, None, is_baseline=True)
    assert reference_values(new_record([without]), without) == pytest.approx((0.81, 5000))


@pytest.mark.slow
def test_a_run_that_was_cut_off_is_not_begun_anew(
    compressor: Compressor, tmp_path: Path, new_record: NewRecord
) -> None:
    space = compressor.space
    storage = open_storage(f"sqlite:///{tmp_path}/paredown.db")
    record = new_record([trial(0, space.baseline(), 5000, is_baseline=True)])
    create_study(storage, record)
    known = {name: {str(values[0]): 0.1} for name, values in space.options().items()}
    study_id = storage.get_study_id_from_name(record.name)
    storage.set_study_user_attr(study_id, LOSSES_KEY, {"seconds": 600.0, "losses": known})
    said: list[str] = []

    class Listener(Observer):
        def preparing(self, text: str) -> None:
            said.append(text)

    sampler = GuidedSampler(seed=0)
    guide = Guide(storage, space, compressor.task, compressor, Prober(), sampler, 24, Listener())
    guide.prepare(record)
    assert not any("sensitivity" in text for text in said)  # its time was used up before
    knowledge = read_knowledge(storage, record.name)
    assert knowledge is not None
    for name, values in space.options().items():
        assert knowledge.sensitivities.measured[name] == (values[0], values[-1])
