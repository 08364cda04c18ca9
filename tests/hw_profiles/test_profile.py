import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.hw_profiles import HardwareProfile, ProfileError

MINIMAL = """
name = "board"
description = "A board"
device = "cpu"
arch = "aarch64"

[target]
kind = "llvm"
mtriple = "aarch64-linux-gnu"
"""

ARGUMENTS: dict[str, Any] = {
    "name": "pc",
    "description": "A PC",
    "device": "cpu",
    "arch": "x86_64",
    "target": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver3"},
    "isa": "avx2",
    "features": ("avx2", "fma"),
    "cores": 4,
}


def test_defaults_fill_what_a_file_leaves_out() -> None:
    profile = HardwareProfile.from_toml(MINIMAL)
    assert profile.isa == "portable"
    assert profile.threads == 1
    assert profile.weight_bits == (2, 3, 4, 5, 6, 7, 8)
    assert profile.activation_bits == (7, 8)
    assert profile.target == {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}


def test_with_threads_changes_nothing_else() -> None:
    profile = HardwareProfile(**ARGUMENTS)
    assert profile.with_threads(3).threads == 3
    assert profile.with_threads(3).with_threads(1) == profile


def test_profile_is_independent_of_the_table_it_was_made_from() -> None:
    arguments = copy.deepcopy(ARGUMENTS)
    profile = HardwareProfile(**arguments)
    arguments["target"]["mcpu"] = "znver5"
    assert profile.target["mcpu"] == "znver3"


def test_profile_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cores"):
        HardwareProfile(**ARGUMENTS).cores = 8  # type: ignore[misc]  # the fault under test


def test_profile_survives_pickling() -> None:
    profile = HardwareProfile(**ARGUMENTS)
    assert pickle.loads(pickle.dumps(profile)) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"`name` must be a string, but got 3\."),
        ({"name": "My PC"}, "`name` must be lower-case letters.*'My PC'"),
        ({"cores": 0}, r"`cores` must be a positive integer, but got 0\."),
        ({"cores": True}, "`cores` must be a positive integer, but got True"),
        ({"cores": 2.0}, "`cores` must be a positive integer, but got 2.0"),
        ({"threads": 5}, "`threads` must not exceed the cores of 'pc', which are 4, but 5"),
        ({"vector_bits": 100}, "`vector_bits` must be a multiple of 32, but got 100"),
        ({"device": "gpu"}, "`device` must be one of cpu, cuda, but got 'gpu'"),
        ({"arch": "x86-64"}, "`arch` must be one of .*Did you mean 'x86_64'"),
        ({"isa": "avx3"}, r"`isa` must be one of .*but got 'avx3'\. Did you mean 'avx2'"),
        ({"job_timeout_s": 0}, "`job_timeout_s` must be a positive integer"),
        ({"emulated": 1}, "`emulated` must be true or false, but got 1"),
        ({"memory_bytes": -1}, "`memory_bytes` must be a count of bytes"),
        ({"cache_bytes": (2, 1)}, "`cache_bytes` must be sizes in bytes from the first level up"),
        ({"connection": "ssh"}, "`connection` must be 'local', 'compile-only'"),
        ({"features": ["avx2"]}, "`features` must be a list of non-empty strings"),
        ({"features": ("avx2", "")}, "`features` must be a list of non-empty strings"),
        ({"features": ("avx2", "fma", "fma")}, "`features` must not repeat .* 'fma'"),
        ({"features": ("avx2",)}, "what isa 'avx2' uses, but fma is missing"),
        ({"weight_bits": (4, "8")}, "`weight_bits` must be a list of integers"),
        ({"weight_bits": (8, 4)}, "`weight_bits` must be ascending widths"),
        ({"weight_bits": (4, 4)}, "`weight_bits` must not repeat a value, but it repeats 4"),
        ({"weight_bits": (4, 12)}, r"`weight_bits` must be ascending widths.*\(4, 12\)"),
        ({"activation_bits": (3, 8)}, "`activation_bits` must be ascending widths"),
        ({"runtimes": ()}, "`runtimes` must name at least one"),
        ({"target": "llvm"}, "`target` must be a table, but got 'llvm'"),
        ({"target": {}}, "`target.kind` must be 'llvm' on device 'cpu', but got None"),
        ({"target": {"kind": "cuda"}}, "`target.kind` must be 'llvm' on device 'cpu'"),
        ({"target": {"kind": "llvm", "num-cores": 4}}, "`target` must not hold a thread count"),
        ({"target": {"kind": "llvm", "mcpu": 3}}, "`target.mcpu` must be a string, but got 3"),
        ({"target": {"kind": "llvm", "mattr": "+fma"}}, "`target.mattr` must be a list"),
        (
            {"target": {"kind": "llvm", "mattr": ["fma"]}},
            "`target.mattr` must be a list of '.name",
        ),
        ({"target": {"kind": "llvm", "mtriple": "armv7-linux"}}, "a triple of 'x86_64'"),
        ({"target": {"kind": "llvm", "x": {"y": None}}}, "`target.x.y` must be made of"),
        ({"target": {"kind": "llvm", "x": float("nan")}}, "`target.x` must be made of"),
        ({"target": {"kind": "llvm", 1: 2}}, "`target` must be a table with strings as keys"),
        ({"arch": "aarch64", "target": {"kind": "llvm"}}, "`isa` must be .* of 'aarch64'"),
        ({"arch": "cuda", "isa": "portable"}, "`arch` must be an architecture of device 'cpu'"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        HardwareProfile(**(ARGUMENTS | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3 4\n", r"board\.toml: not a valid TOML document: .*line 1"),
        ('name = "a"\nname = "b"\n', r"board\.toml: not a valid TOML document: .*line 2"),
        ('corse = 4\nx = 1\nname = "a"', r"`corse` \(Did you mean 'cores'\?\), `x` \(Known: acti"),
        ('name = "a"', "lacks `description`, `device`, `arch`, `target`"),
        ("version = 2" + MINIMAL, "`version` must be 1, .*but got 2"),
        ("features = [1]" + MINIMAL, r"board\.toml: `features` must be a list of non-empty"),
        ("cores = '4'" + MINIMAL, r"board\.toml: `cores` must be a positive integer.*'4'"),
        (MINIMAL + "when = 2020-01-01", "`target.when` must be made of"),
    ],
)
def test_bad_documents_are_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        HardwareProfile.from_toml(text, source="board.toml")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = st.lists(TEXT.filter(bool), unique=True, max_size=3).map(tuple)
VALUES = st.recursive(
    TEXT | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=6,
)
PROFILES = st.builds(
    HardwareProfile,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True),
    description=TEXT,
    device=st.just("cpu"),
    arch=st.just("aarch64"),
    target=st.dictionaries(TEXT.map(lambda key: f"x{key}"), VALUES, max_size=3).map(
        lambda table: {"kind": "llvm", **table}
    ),
    features=WORDS,
    cores=st.integers(4, 1 << 20),
    threads=st.integers(1, 4),
    vector_bits=st.sampled_from([32, 128, 2048]),
    channel_multiple=st.integers(1, 64),
    weight_bits=st.sets(st.sampled_from((*range(2, 9), 16))).map(lambda bits: tuple(sorted(bits))),
    activation_bits=st.sets(st.integers(4, 8)).map(lambda bits: tuple(sorted(bits))),
    runtimes=WORDS.filter(bool),
    connection=st.sampled_from(["local", "compile-only", "rpc://a:1", "tracker://a:1/b"]),
    job_timeout_s=st.integers(1, 999),
    emulated=st.booleans(),
    memory_bytes=st.integers(0, 1 << 40),
    cache_bytes=st.sets(st.integers(1, 1 << 30)).map(lambda sizes: tuple(sorted(sizes))),
    sources=WORDS,
)


@given(PROFILES)
def test_toml_round_trip(profile: HardwareProfile) -> None:
    assert HardwareProfile.from_toml(profile.to_toml()) == profile
