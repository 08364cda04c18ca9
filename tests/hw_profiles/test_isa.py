import pytest
import tvm
from archspec.cpu import TARGETS
from tvm.target import codegen

from paredown.hw_profiles import ISAS, target_features
from paredown.hw_profiles.isa import generated_features, llvm_cpu


@pytest.mark.parametrize(
    ("microarchitecture", "expected"),
    [
        ("x86_64_v3", "x86-64-v3"),
        ("zen3", "znver3"),
        ("zen6", "znver5"),  # newer than the LLVM in TVM: the ancestor
        ("icelake", "icelake-client"),
        ("skylake_avx512", "skylake-avx512"),
        ("neoverse_n1", "neoverse-n1"),
        ("cortex_a72", "cortex-a72"),
        ("armv8.2a", "generic"),
        ("aarch64", "generic"),
        ("m2", "apple-a15"),
    ],
)
def test_llvm_cpu(microarchitecture: str, expected: str) -> None:
    assert llvm_cpu(TARGETS[microarchitecture]) == expected


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_llvm_in_tvm_knows_every_name(arch: str) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{arch}-linux-gnu"})
    known = set(codegen.llvm_get_cpu_archlist(target))
    names = {llvm_cpu(t) for t in TARGETS.values() if t.family.name == arch}
    assert len(names) > 10
    assert names <= known


def test_generated_features_leave_out_what_no_compiler_emits_unasked() -> None:
    features = generated_features(TARGETS["zen4"])
    assert {"avx2", "fma", "bmi2", "avx512_vnni", "sse4_1"} <= features
    assert not features & {"clzero", "pku", "xsave", "cx16", "mmx"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"kind": "llvm"}, set()),
        ({"kind": "llvm", "mcpu": "nonsense"}, set()),
        ({"kind": "llvm", "mattr": ["+avx2", "+fma"]}, {"avx2", "fma"}),
        ({"kind": "llvm", "mattr": ["+avx512vnni", "+sse4.1"]}, {"avx512_vnni", "sse4_1"}),
        ({"kind": "llvm", "mattr": ["+neon", "+dotprod"]}, {"asimd", "asimddp"}),
        ({"kind": "llvm", "mattr": ["+prefer-256-bit", "+v8.2a"]}, set()),
        ({"kind": "cuda", "arch": "sm_90"}, set()),
    ],
)
def test_target_features(target: dict[str, object], expected: set[str]) -> None:
    assert target_features(target) == expected


def test_target_features_follow_the_cpu_less_what_is_switched_off() -> None:
    v3 = target_features({"kind": "llvm", "mcpu": "x86-64-v3"})
    assert {"avx2", "fma", "f16c", "bmi2"} <= v3
    assert not any(feature.startswith("avx512") for feature in v3)
    without = target_features({"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]})
    assert without == v3 - {"fma"}


def test_what_archspec_leaves_out_is_known() -> None:
    features = target_features({"kind": "llvm", "mcpu": "sapphirerapids"})
    assert {"avx512_fp16", "avx_vnni", "avx512_vnni"} <= features


def test_the_last_isa_runs_everywhere() -> None:
    last = list(ISAS.values())[-1]
    assert not last.features
    assert {arch for isa in ISAS.values() for arch in isa.archs} == set(last.archs)
