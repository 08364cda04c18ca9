from dataclasses import replace

import pytest

from paredown.hw_profiles import load_profile
from paredown.studies.checks import (
    check_constraints,
    check_objectives,
    check_profiles,
    check_same_study,
    check_settings,
)
from paredown.studies.config import make_config
from paredown.studies.errors import StudyError
from paredown.studies.records import Constraints, StudyRecord, StudySettings


@pytest.mark.parametrize("bound", [-0.1, 1.01, 97.0])
def test_accuracy_is_a_share(bound: float) -> None:
    with pytest.raises(StudyError, match="no trial could meet it"):
        check_constraints(Constraints(min_accuracy=bound), metric_name="accuracy")


def test_other_metrics_have_any_value() -> None:
    check_constraints(Constraints(min_accuracy=97.0), metric_name="psnr")


def test_size_below_the_smallest_model() -> None:
    constraints = Constraints(max_size_bytes=99)

    check_constraints(constraints, metric_name="accuracy", smallest_size_bytes=99)
    with pytest.raises(StudyError, match=r"must be at least 100, .* but got 99"):
        check_constraints(constraints, metric_name="accuracy", smallest_size_bytes=100)


def test_threads_of_the_profile_can_be_set() -> None:
    config = make_config({"task": "digits", "runtime": "onnxruntime", "threads": 1})

    assert [profile.threads for profile in check_profiles(config)] == [1]


def test_runtime_must_be_one_of_the_profile(tmp_path: object) -> None:
    path = f"{tmp_path}/board.toml"
    profile = replace(load_profile("local"), name="board", runtimes=("tvm",))
    with open(path, "w", encoding="utf-8") as file:
        file.write(profile.to_toml())

    with pytest.raises(StudyError, match="must be one of tvm on profile 'board'"):
        check_profiles(make_config({"task": "x", "runtime": "onnxruntime", "profile": path}))


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "grid"}, {"calibration": "median"}, {"accuracy": "exact"}, {"criterion": "l3"}],
)
def test_unknown_names(settings: dict[str, str]) -> None:
    with pytest.raises(StudyError, match=rf"must be one of .*{next(iter(settings.values()))}"):
        check_settings(StudySettings(**settings))  # type: ignore[arg-type]  # both are names


@pytest.mark.parametrize(
    ("names", "profile", "message"),
    [
        (("speed",), "x86-64", "may hold memory, energy, each once.*'speed'"),
        (("memory", "memory"), "x86-64", "each once"),
        (("memory",), "x86-64@compile-only", "need a device that is measured"),
    ],
)
def test_further_objectives(names: tuple[str, ...], profile: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        check_objectives(names, [load_profile(profile)])
    check_objectives(("memory",), [load_profile("x86-64")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accuracy": "ptq", "finetune_epochs": 2}, "goes with `accuracy` 'finetune'"),
        ({"accuracy": "finetune", "shared_epochs": 2}, "goes with `accuracy` 'shared'"),
        ({"shared_epochs": 1, "finetune_epochs": 2}, "different ways to train"),
    ],
)
def test_epochs_of_another_mode(settings: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        check_settings(StudySettings(**settings))  # type: ignore[arg-type]  # each has its type


def test_same_options_go_on(synthetic_study: StudyRecord) -> None:
    check_same_study(synthetic_study, replace(synthetic_study, trials=()))


def test_another_sampler_may_go_on(synthetic_study: StudyRecord) -> None:
    settings = replace(synthetic_study.settings, sampler="random")

    check_same_study(synthetic_study, replace(synthetic_study, settings=settings))


def test_cores_and_words_of_a_profile_may_change(synthetic_study: StudyRecord) -> None:
    profile = replace(synthetic_study.profile, cores=64, description="moved")

    check_same_study(synthetic_study, replace(synthetic_study, profile=profile))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mnist"}, "task 'digits', but this run asks for 'mnist'"),
        ({"threads": 2}, "threads 1, but this run asks for 2"),
        (
            {"settings": StudySettings(runtime="litert")},
            "setting runtime 'tvm', but this run asks for 'litert'",
        ),
        ({"settings": StudySettings(seed=5)}, "setting seed 0, but this run asks for 5"),
        (
            {"settings": StudySettings(constraints=Constraints(min_accuracy=0.9))},
            r"constraint min_accuracy unset, but this run asks for 0\.9",
        ),
        ({"task_digest": "other"}, "task's model or data have changed"),
        ({"space_digest": "other"}, "search space has changed"),
    ],
)
def test_other_options_do_not(
    synthetic_study: StudyRecord, changes: dict[str, object], message: str
) -> None:
    found = replace(synthetic_study, task_digest="this", space_digest="this")

    with pytest.raises(StudyError, match=message):
        check_same_study(found, replace(found, **changes))  # type: ignore[arg-type]  # as given


def test_sparsity_that_is_none_is_refused() -> None:
    with pytest.raises(StudyError, match=r"must be a share of zeros .* but got '4:2'"):
        check_settings(StudySettings(sparsity="4:2"))
