from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from paredown.evaluators.layer_times import LayerTimes
from paredown.search.knowledge.latency_model import LatencySample
from paredown.search.knowledge.sensitivity import Sensitivities
from paredown.studies.errors import StudyError
from paredown.studies.explain import explain_study, explanation_notes, explanation_table
from paredown.studies.guide import KNOWLEDGE_KEY, Knowledge
from paredown.studies.records import StudyRecord
from paredown.studies.storage import create_study, open_storage

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 32)


@pytest.fixture
def record(tmp_path: Path, synthetic_study: StudyRecord) -> StudyRecord:
    url = f"sqlite:///{tmp_path}/paredown.db"
    create_study(open_storage(url), synthetic_study)
    trials = []
    for trial in synthetic_study.trials:
        if trial.state == "complete":
            assert trial.candidate is not None
            assert trial.latency_us is not None
            names = [name for name, _ in trial.candidate.layers]
            times = {name: trial.latency_us * 0.9 / len(names) for name in names}
            trial = dataclasses.replace(
                trial,
                layer_times=LayerTimes(times, trial.latency_us * 0.1),
                predicted_latency_us=None if trial.is_baseline else trial.latency_us * 1.04,
            )
        trials.append(trial)
    baseline = next(t for t in trials if t.is_baseline)
    return dataclasses.replace(
        synthetic_study, trials=tuple(trials), baseline=baseline, storage=url
    )


def know(record: StudyRecord) -> None:
    """Keep knowledge with the study: losses that fall by 4 with each bit, from layer to layer."""
    assert record.baseline is not None
    assert record.baseline.candidate is not None
    names = [name for name, _ in record.baseline.candidate.layers]
    losses = {
        f"weight_bits/{name}": {
            place: 0.0 if bits == 32 else 4.0**-bits / (row + 1)
            for place, bits in enumerate(WIDTHS)
        }
        for row, name in enumerate(names)
    }
    losses["keep/stem"] = {8: 0.5, 12: 0.1, 16: 0.0}
    knowledge = Knowledge(
        Sensitivities(losses, {name: tuple(table) for name, table in losses.items()}),
        ((LatencySample(record.baseline.candidate, None, 400.0),),),
        dict.fromkeys(names, WIDTHS),
        {"stem": (16, ("stem", "stage1.conv2"))},
    )
    assert Knowledge.from_json(json.loads(json.dumps(knowledge.to_json()))) == knowledge
    storage = open_storage(record.storage)
    study_id = storage.get_study_id_from_name(record.name)
    storage.set_study_user_attr(study_id, KNOWLEDGE_KEY, knowledge.to_json())


def test_layers_by_hand(record: StudyRecord) -> None:
    know(record)
    found = explain_study(record, "3")  # uniform 4 bits
    first, second = found.layers[:2]
    assert first.name == "stem"
    assert first.loss_few_bits == pytest.approx(4.0**-4)
    assert first.loss_fewest_bits == pytest.approx(4.0**-2)
    assert first.loss_half == 0.5
    assert first.loss == pytest.approx(4.0**-4)
    assert second.loss_half is None
    n_layers = len(found.layers)
    assert first.latency_share == pytest.approx(0.9 / n_layers)
    assert record.baseline is not None
    saved = record.baseline.values[2] - record.trial(3).values[2]
    assert first.saved_us == pytest.approx(saved * 0.9 / n_layers)
    assert found.latency_errors[0] == pytest.approx(0.04)
    assert json.loads(json.dumps(found.to_json()))["n_probes"] == 1


def test_channels_count_once_for_the_layer_that_makes_them_first(record: StudyRecord) -> None:
    know(record)
    number = next(
        t.number
        for t in record.complete
        if t.candidate and t.candidate.pruning_ratios["stem"] >= 0.5
    )
    layers = {layer.name: layer for layer in explain_study(record, str(number)).layers}
    assert layers["stem"].loss > 0.5
    assert layers["stem"].kept == layers["stage1.conv2"].kept <= 0.5
    assert layers["stage1.conv2"].loss < 0.1


def test_the_words_name_what_hurts_and_what_pays(record: StudyRecord) -> None:
    know(record)
    found = explain_study(record, "min:size_bytes")
    text = "\n".join(explanation_notes(found, record))
    assert "Few bits hurt most in stem," in text
    assert "from 1 networks timed before the search, was off by 4.0%" in text
    assert len(explanation_table(found).rows) == len(found.layers)


def test_a_study_that_learnt_nothing_is_refused(record: StudyRecord) -> None:
    with pytest.raises(StudyError, match="its sampler is 'guided', or its first trial has not"):
        explain_study(record, "min:latency_us")


def test_only_complete_trials_are_explained(record: StudyRecord) -> None:
    know(record)
    with pytest.raises(StudyError, match="Trial 17 is failed; explain a complete one"):
        explain_study(record, "17")
