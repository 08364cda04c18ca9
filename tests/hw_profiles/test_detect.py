import dataclasses
import os

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


def test_compile_only_does_not_run_here() -> None:
    profile = dataclasses.replace(load_profile("x86-64"), connection="compile-only")
    with pytest.raises(ProfileError, match="its connection is 'compile-only'"):
        check_runs_here(profile, PC)


def test_more_threads_than_the_process_may_use_are_refused() -> None:
    profile: HardwareProfile = load_profile("x86-64").with_threads(8)
    with pytest.raises(ProfileError, match="'x86-64' asks for 8 of 4"):
        check_runs_here(profile, PC)
