import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tvm

from paredown.hw_profiles import (
    HardwareProfile,
    Machine,
    ProfileError,
    check_runs_here,
    detect_profile,
    load_profile,
    this_machine,
)
from paredown.hw_profiles.detect import read_caches
from paredown.hw_profiles.isa import ISAS

V3 = frozenset(load_profile("x86-64-v3").features)
PC = Machine("x86_64", "A PC", "x86-64-v3", V3 | {"cx16", "pku"}, V3, 4)
OLD_PC = Machine("x86_64", "An old PC", "nehalem", frozenset({"sse", "sse2"}), frozenset(), 2)
BOARD = Machine(
    "aarch64", "A board", "cortex-a72", frozenset({"asimd", "fp"}), frozenset({"asimd"}), 4
)


def test_a_cpu_with_avx2_and_fma_gets_their_kernels() -> None:
    profile = detect_profile(PC)
    assert (profile.name, profile.arch, profile.isa) == ("local", "x86_64", "avx2")
    assert profile.target == {
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": "x86-64-v3",
    }
    assert set(profile.features) == V3
    assert (profile.cores, profile.threads, profile.vector_bits) == (4, 1, 256)


@pytest.mark.parametrize("lacking", ["avx2", "fma"])
def test_a_cpu_without_one_of_them_is_portable(lacking: str) -> None:
    machine = dataclasses.replace(
        PC, llvm_cpu="x86-64", flags=PC.flags - {lacking}, generated=frozenset({"sse2"})
    )
    profile = detect_profile(machine)
    assert (profile.isa, profile.vector_bits) == ("portable", 128)


@pytest.mark.parametrize(
    ("more", "isa", "attributes"),
    [
        ((), "neon", ["+neon"]),
        (("asimddp",), "neon_dotprod", ["+neon", "+dotprod"]),
        (("asimddp", "i8mm"), "neon_i8mm", ["+neon", "+dotprod", "+i8mm"]),
    ],
)
def test_an_arm_board_gets_the_best_of_neon(
    more: tuple[str, ...], isa: str, attributes: list[str]
) -> None:
    profile = detect_profile(dataclasses.replace(BOARD, flags=BOARD.flags | {*more}))
    assert (profile.arch, profile.isa, profile.vector_bits) == ("aarch64", isa, 128)
    assert profile.features == ("asimd", *more)
    assert profile.target["mcpu"] == "cortex-a72"
    assert profile.target["mattr"] == attributes


def test_a_laptop_with_vnni_gets_its_kernels() -> None:
    profile = detect_profile(dataclasses.replace(PC, flags=PC.flags | {"avx_vnni"}))
    assert (profile.isa, profile.vector_bits) == ("avxvnni", 256)
    assert profile.target["mattr"] == ["+avxvnni"]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ProfileError, match="must be x86_64 or aarch64, but it is 'riscv64'"):
        detect_profile(dataclasses.replace(PC, arch="riscv64"))


@pytest.mark.parametrize("machine", [PC, BOARD], ids=["pc", "board"])
def test_what_is_detected_runs_there(machine: Machine) -> None:
    check_runs_here(detect_profile(machine), machine)


def test_this_machine_is_detected_and_runs_its_own_code() -> None:
    profile = detect_profile()
    check_runs_here(profile)
    assert profile.cores == this_machine().cores == len(os.sched_getaffinity(0))
    assert f'"mcpu":"{profile.target["mcpu"]}"' in str(tvm.target.Target(dict(profile.target)))


def test_tiles_that_the_system_withholds_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, _: None) -> None: ...

        def syscall(self, *_: object) -> int:
            return -1

    shown = SimpleNamespace(features={"avx2", "amx_int8", "amx_tile"})
    monkeypatch.setattr("paredown.hw_profiles.detect.detected_info", lambda: shown)
    this_machine.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    flags = this_machine().flags
    this_machine.cache_clear()
    assert not [flag for flag in flags if flag.startswith("amx")]


def test_tiles_are_the_best_family() -> None:
    flags = PC.flags | set(ISAS["avx512amx"].features)
    profile = detect_profile(dataclasses.replace(PC, flags=flags))
    assert profile.isa == "avx512amx"
    assert profile.target["mattr"] == ["+avx512vnni", "+amx-tile", "+amx-int8"]
    with_vnni = dataclasses.replace(PC, flags=frozenset(load_profile("x86-64-v4-vnni").features))
    with pytest.raises(ProfileError, match=r"A PC lacks amx_int8, amx_tile\."):
        check_runs_here(load_profile("x86-64-v4-amx"), with_vnni)


def test_missing_features_are_named() -> None:
    with pytest.raises(ProfileError, match=r"'x86-64-v3' .* An old PC lacks abm, avx, avx2, bmi1"):
        check_runs_here(load_profile("x86-64-v3"), OLD_PC)


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["+avx512vnni"]},
        {"kind": "llvm", "mcpu": "znver4"},
    ],
    ids=["mattr", "mcpu"],
)
def test_features_that_only_the_target_tells_count_too(target: dict[str, object]) -> None:
    profile = dataclasses.replace(load_profile("x86-64-v3"), target=target)
    with pytest.raises(ProfileError, match=r"A PC lacks .*avx512_vnni"):
        check_runs_here(profile, PC)


def test_another_architecture_does_not_run_here() -> None:
    with pytest.raises(ProfileError, match="it is for aarch64 and this machine is x86_64"):
        check_runs_here(load_profile("aarch64"), PC)


def test_a_device_behind_rpc_is_not_here() -> None:
    profile = dataclasses.replace(load_profile("x86-64"), connection="rpc://board:9090")
    with pytest.raises(ProfileError, match="reached through rpc://board:9090"):
        check_runs_here(profile, PC)


def test_compile_only_does_not_run_here() -> None:
    profile = dataclasses.replace(load_profile("x86-64"), connection="compile-only")
    with pytest.raises(ProfileError, match="its connection is 'compile-only'"):
        check_runs_here(profile, PC)


def test_more_threads_than_the_process_may_use_are_refused() -> None:
    profile: HardwareProfile = load_profile("x86-64").with_threads(8)
    with pytest.raises(ProfileError, match="'x86-64' asks for 8 of 4"):
        check_runs_here(profile, PC)


def lscpu(*options: str) -> Any:
    if shutil.which("lscpu") is None:
        pytest.skip("lscpu is not installed (package util-linux)")
    command = ["lscpu", "--json", "--bytes", *options]
    environment = {**os.environ, "LC_ALL": "C"}
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    )


def test_caches_are_those_that_lscpu_lists() -> None:
    listed = {
        cache["level"]: int(cache["one-size"])
        for cache in lscpu("--caches")["caches"]
        if cache["type"] != "Instruction"
    }
    assert this_machine().cache_bytes == tuple(listed[level] for level in sorted(listed))


def test_architecture_name_and_flags_are_those_of_lscpu() -> None:
    facts = {entry["field"].rstrip(":"): entry["data"] for entry in lscpu()["lscpu"]}
    machine = this_machine()
    assert machine.arch == facts["Architecture"]
    if machine.arch == "x86_64":  # Arm's Linux has no maker's name, lscpu a table of them
        assert machine.brand == facts["Model name"]
    linux_names = {"sse3": "pni"}
    flags = {linux_names.get(flag, flag) for flag in detect_profile().features}
    assert flags <= set(facts["Flags"].split())


def test_memory_is_what_linux_says() -> None:
    text = Path("/proc/meminfo").read_text("ascii")
    kilobytes = int(text.partition("MemTotal:")[2].split()[0])
    assert this_machine().memory_bytes == kilobytes * 1024


def test_tvm_takes_this_cpu_for_one_with_the_same_features() -> None:
    from tvm.target import codegen

    profile = detect_profile()
    found = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    ours = set(codegen.llvm_get_cpu_features(tvm.target.Target(dict(profile.target))))
    theirs = set(codegen.llvm_get_cpu_features(tvm.target.Target(found)))
    vectors = {"avx2", "fma", "avx512f", "avx512vnni", "dotprod", "i8mm"}
    assert ours & vectors <= theirs


def test_caches_without_a_size_are_left_out(tmp_path: Path) -> None:
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "32K"), ("Instruction", 1, "48K"), ("Unified", 3, "2M"), ("Unified", 2, None)]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "type").write_text(kind)
        (folder / "level").write_text(f"{level}\n")
        if size is not None:
            (folder / "size").write_text(f"{size}\n")
    assert read_caches(tmp_path) == (32 << 10, 2 << 20)
    assert read_caches(tmp_path / "nothing") == ()
