"""What kernels are made of: each family has its instruction, no newer one, and a tight loop."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tvm

from paredown.evaluators.tvm import layers
from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.parsing import parse
from paredown.evaluators.tvm.kernels.script import Kernel
from paredown.evaluators.tvm.knobs import options
from paredown.evaluators.tvm.layers import ConvLayer
from paredown.evaluators.tvm.packing import ConvGeometry
from paredown.evaluators.tvm.sink import Sink
from paredown.hw_profiles import load_profile

pytestmark = pytest.mark.slow

# Instructions that came after what a family may use.
DOT = r"\b[su]{1,2}dot\b"
I8MM = r"\bu?[su]mmla\b|\bus?u?dot\b|\bsudot\b"
VNNI = "vpdpbusd"
# After AVX-512 VNNI: AVX512-FP16 (bytes are moved with `vmovw`), BF16, VNNI-INT8, AMX.
AFTER_VNNI = r"\bvmovw\b|\bvdpbf16ps\b|\bvpdpb(ss|su|uu)ds?\b|\btdpb"


def layer(top: int, groups: int = 1, threads: int = 1) -> ConvLayer:
    """A 3 x 3 layer of 64 channels with random weights of at most `top`."""
    geometry = ConvGeometry(64, 64, 64, (3, 3), groups=groups)
    weights = np.random.default_rng(0).integers(-top, top + 1, (64, 64 // groups, 3, 3))
    weights[:, 0, 0, 0] = top
    source = Image(None, "uint8", 1, 26, 26, 64, 64)
    sink = Sink(0, "uint8", 0.5, 128)
    output = sink.image(1, 24, 24, 64)
    placed = (np.ones(64, np.float32), source, (0, 0), output, sink, threads)
    return ConvLayer(geometry, weights.astype(np.int8), np.zeros(64, np.int32), *placed)


def assembly(kernel: Kernel, profile: str) -> str:
    return assembly_for(kernel, load_profile(profile).target)


def assembly_for(kernel: Kernel, target: Mapping[str, object]) -> str:
    compiled = tvm.compile(parse(kernel.text("kernel")), tvm.target.Target(dict(target)))
    text: str = compiled.mod.inspect_source("asm")
    return text


def best(profile: str, top: int, groups: int = 1) -> str:
    """The code of the first setting of a layer."""
    case = layer(top, groups)
    return assembly(case.call(options(case, load_profile(profile).isa)[0]).kernel, profile)


@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
@pytest.mark.parametrize(
    ("profile", "top", "has", "lacks"),
    [
        ("x86-64-v3", 63, r"vpmadd(ubsw|wd).*ymm", rf"zmm|{VNNI}"),
        ("x86-64-v3-vnni", 127, r"vpdpbusd.*ymm", "zmm"),
        ("x86-64-v4", 63, r"vpmadd(ubsw|wd).*zmm", VNNI),
        ("x86-64-v4-vnni", 127, r"vpdpbusd.*zmm", AFTER_VNNI),
        ("raspberry-pi-3", 63, r"\bsmlal2?\b", rf"{DOT}|{I8MM}"),
        ("raspberry-pi-4", 127, r"\bsmlal2?\b", rf"{DOT}|{I8MM}"),
        ("raspberry-pi-5", 127, r"\bsdot\b", I8MM),
        ("graviton2", 127, r"\bsdot\b", I8MM),
        ("apple-m1", 127, r"\bsdot\b", I8MM),
        ("graviton3", 127, r"\bus(mmla|dot)\b", r"\bsdot\b"),
    ],
)
def test_family_has_its_instruction_and_no_newer_one(
    profile: str, top: int, has: str, lacks: str, groups: int
) -> None:
    code = best(profile, top, groups)
    assert re.search(has, code)
    assert not re.search(lacks, code)


@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
def test_newer_instructions_than_vnni_would_be_found(groups: int) -> None:
    profile = load_profile("x86-64-v4-vnni")
    case = layer(127, groups)
    kernel = case.call(options(case, profile.isa)[0]).kernel
    target = {**profile.target, "mcpu": "sapphirerapids"}
    assert re.search(AFTER_VNNI, assembly_for(kernel, target))


@pytest.mark.parametrize("profile", ["x86-64-v3-vnni", "x86-64-v4-vnni"])
@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
def test_vnni_is_used(profile: str, groups: int) -> None:
    case = layer(127, groups)
    isa = load_profile(profile).isa
    (knobs, *_) = [k for k in options(case, isa) if k.form in ("dot", "dw_dot")]
    assert VNNI in assembly(case.call(knobs).kernel, profile)


def test_tiles_are_used_and_released() -> None:
    code = best("x86-64-v4-amx", 127)
    begins, ends = (code.count(name) for name in ("ldtilecfg", "tilerelease"))
    assert begins == ends > 0
    assert "tdpbusd" in code
    assert "tdpbusd" not in best("x86-64-v4-amx", 127, groups=64)
    assert VNNI in best("x86-64-v4-amx", 127, groups=64)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("profile", "vector", "mask"),
    [
        ("x86-64-v3", "ymm", "e0"),
        ("x86-64-v4-vnni", "zmm", "c0"),
        ("x86-64-v4-amx", "zmm", "c0"),
    ],
)
def test_vectors_on_the_stack_are_aligned(
    tmp_path: Path, profile: str, vector: str, mask: str, threads: int
) -> None:
    hardware = load_profile(profile).with_threads(threads)
    cache, case = KernelCache(hardware.target, tmp_path), layer(63, threads=threads)
    found = 0
    for knobs in options(case, hardware.isa):
        file = cache.object_file(case.call(knobs).kernel)
        command = ["objdump", "--disassemble", "--no-show-raw-insn", str(file)]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for function in re.split(r"(?=push +%rbp)", code):  # the body of a loop has no label
            if not re.search(r"vp(madd|dp)|tdp", function):
                continue  # one of TVM's own, or it starts a loop
            place = r"-?0x\w+\(%r[sb]p\)"
            if re.search(rf"{vector}\d+,{place}|{place},%{vector}", function):
                found += 1
                assert re.search(rf"and +\$0xf+{mask},%rsp", function)
    assert found


@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
@pytest.mark.parametrize("profile", ["x86-64-v3", "x86-64-v4-vnni", "raspberry-pi-4"])
def test_sums_take_no_memory(tmp_path: Path, profile: str, groups: int) -> None:
    hardware = load_profile(profile).with_threads(2)
    cache, case = KernelCache(hardware.target, tmp_path), layer(63, groups, threads=2)
    for knobs in options(case, hardware.isa):
        code = cache.object_file(case.call(knobs).kernel).read_bytes()
        assert b"TVMBackendParallelLaunch" in code
        assert b"TVMBackendAllocWorkspace" not in code


@pytest.mark.parametrize("profile", ["x86-64-v3", "x86-64-v4-vnni"])
def test_many_weights_are_prefetched(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "prefetcht0" not in best(profile, 63)
    monkeypatch.setattr(layers, "_FAR_BYTES", 0)
    assert "prefetcht0" in best(profile, 63)


def inner_loop(code: str) -> list[str]:
    """The instructions of the innermost loop that multiplies most."""
    lines = [line.split("//")[0].strip() for line in code.splitlines()]
    lines = [line for line in lines if not line.startswith(".Ltmp")]  # places for a debugger
    starts: dict[str, int] = {}
    found: list[list[str]] = [[]]
    for place, line in enumerate(lines):
        if label := re.fullmatch(r"(\.L\w+):", line):
            starts[label[1]] = place
        elif (jump := re.match(r"b\S*\s+(?:\w+, )?(\.L\w+)$", line)) and jump[1] in starts:
            body = lines[starts[jump[1]] + 1 : place + 1]
            if not any(text.endswith(":") for text in body):
                found.append([text for text in body if text and not text.startswith(".")])
    return max(found, key=lambda body: len([t for t in body if MULTIPLIES.match(t)]))


MULTIPLIES = re.compile(r"(smull2?|smlal2?|sdot|usmmla|fmla)\b")


@pytest.mark.parametrize(
    ("profile", "top", "products", "limit"),
    [
        ("raspberry-pi-4", 127, 8, 3.8),  # of 16 products: 2 to multiply, 1 to widen, the rest
        ("raspberry-pi-4", 63, 8, 3.15),  # loads and brings data to s8
        ("raspberry-pi-4", 31, 8, 2.95),
        ("raspberry-pi-5", 127, 16, 1.35),
        ("graviton3", 127, 32, 0.85),
    ],
)
def test_inner_loop_keeps_to_registers(
    profile: str, top: int, products: int, limit: float
) -> None:
    body = inner_loop(best(profile, top))
    multiplies = [text for text in body if MULTIPLIES.match(text)]
    assert len(multiplies) >= 32
    assert len([text for text in body if "[sp" in text]) <= 1
    assert len(body) * 16 / (len(multiplies) * products) <= limit


def test_float_loop_keeps_to_registers() -> None:
    case = layer(1)
    case = ConvLayer(
        case.geometry,
        case.weights.astype(np.float32),
        np.zeros(64, np.float32),
        case.factor,
        Image(None, "float32", 1, 26, 26, 64, 64),
        case.pads,
        Sink(0).image(1, 24, 24, 64),
        Sink(0),
        1,
    )
    kernel = case.call(options(case, "neon")[0]).kernel
    body = inner_loop(assembly(kernel, "raspberry-pi-4"))
    multiplies = [text for text in body if text.startswith("fmla")]
    assert len(body) <= 1.3 * len(multiplies)
