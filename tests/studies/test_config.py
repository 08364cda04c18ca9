from pathlib import Path

import pytest

from paredown.search.rules import LayerRule
from paredown.studies.config import ConfigError, make_config


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    config = make_config({"task": "digits"})

    assert config.trials == 60
    assert config.storage == "sqlite:///paredown.db"
    assert config.settings().runtime == "tvm"


def test_file_sets_options_and_the_command_line_overrides_them(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'task = "digits"\ntrials = 5\n[constraints]\nmin_accuracy = 0.9\nmax_size_bytes = 50\n',
    )

    config = make_config({"trials": 7, "constraints": {"min_accuracy": 0.95}}, file)

    assert config.trials == 7
    assert config.constraints.min_accuracy == 0.95
    assert config.constraints.max_size_bytes == 50


def test_task_may_come_from_the_command_line_alone(tmp_path: Path) -> None:
    assert make_config({"task": "digits"}, write(tmp_path, "trials = 5\n")).trials == 5


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    config = make_config({}, write(tmp_path, 'task = "my/task.py:make"\ndata = "images"\n'))

    assert config.task == str(tmp_path / "my/task.py:make")
    assert config.data == str(tmp_path / "images")


def test_unknown_keys_are_named_with_their_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '# a study\ntask = "digits"\ntrails = 3\n\n[space]\nweight_bits = [\n  4,\n  8,\n]\n'
        "max_prune = 0.5\n",
    )

    with pytest.raises(ConfigError) as caught:
        make_config({}, file)

    assert str(caught.value).splitlines() == [
        f"{file}:10: Unknown key `space.max_prune`. Did you mean `max_pruning_ratio`?",
        f"{file}:3: Unknown key `trails`. Did you mean `trials`?",
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('task = "digits"\n\ntrials = 0\n', 3, "`trials` is wrong: .*but got 0"),
        ('task = "digits"\nseed = "abc"\n', 2, "`seed` is wrong: .*but got 'abc'"),
        ("[constraints]\nmax_latency_us = -1\n", 2, "`constraints.max_latency_us` is wrong"),
        ("constraints = {min_accuracy = 'x'}\n", 1, "`constraints.min_accuracy` is wrong"),
        ("space.max_pruning_ratio = 1.5\n", 1, "`space.max_pruning_ratio` is wrong"),
        ('[space]\nweight_bits = ["four"]\n', 2, "`space.weight_bits` is wrong"),
        ("constraints = 3\n", 1, "`constraints` is wrong"),
        ("timeout = nan\n", 1, "`timeout` is wrong"),
        ('x = """\ntrials = 1\n"""\ntrials = 0\n', 4, "`trials` is wrong"),
    ],
)
def test_wrong_values_are_named_with_their_lines(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"study.toml:{line}: {message}"):
        make_config({"task": "digits"}, write(tmp_path, text))


def test_fault_of_the_file_is_found_even_where_an_option_overrides_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study.toml:1: `trials` is wrong"):
        make_config({"task": "digits", "trials": 3}, write(tmp_path, "trials = -1\n"))


def test_wrong_option_has_no_line() -> None:
    with pytest.raises(ConfigError, match=r"^`trials` is wrong: .* but got 0\.$"):
        make_config({"task": "digits", "trials": 0})


def test_missing_task_is_named() -> None:
    with pytest.raises(ConfigError, match="`task` must be given"):
        make_config({})


def test_text_that_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be valid TOML: .*at line 2"):
        make_config({}, write(tmp_path, 'task = "digits"\ntrials 3\n'))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        make_config({}, tmp_path / "missing.toml")


def test_storage_in_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="not in memory"):
        make_config({"task": "digits", "storage": "sqlite://"})


def test_rules_of_layers(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'task = "digits"\n[space]\nexclude = ["head"]\ntie = "stage"\n'
        '[[space.layers]]\nmatch = "blocks.0.*"\nweight_bits = [4, 8]\n'
        '[[space.layers]]\nmatch = "conv"\nmax_pruning_ratio = 0.0\n'
    )
    settings = make_config({}, file).settings()
    assert settings.exclude == ("head",)
    assert settings.tie == "stage"
    assert settings.rules == (
        LayerRule("blocks.0.*", weight_bits=(4, 8)),
        LayerRule("conv", max_pruning_ratio=0.0),
    )
    file.write_text('task = "digits"\n[space]\ntie = [["a.*", "b"], ["c"]]\n')
    assert make_config({}, file).settings().tie == (("a.*", "b"), ("c",))


def test_a_wrong_rule_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'task = "digits"\n[[space.layers]]\nmatch = "a"\n'
        '[[space.layers]]\nmatch = "b"\nweight_bit = [8]\n'
    )
    with pytest.raises(
        ConfigError,
        match=r":6: Unknown key `space\.layers\.weight_bit`. Did you mean `weight_bits`",
    ):
        make_config({}, file)
