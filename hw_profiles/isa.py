"""Instruction sets: the kernel families, and the CPU flags that a TVM target lets code use.

Flags are written as Linux shows them in `/proc/cpuinfo`, with `sse3` where Linux says `pni`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from archspec.cpu import TARGETS, Microarchitecture


@dataclass(frozen=True, slots=True)
class Isa:
    """A family of kernels, named after the instruction set that it is written for."""

    name: str
    features: tuple[str, ...]  # flags that its kernels use by name, not by the compiler's choice
    archs: tuple[str, ...]
    vector_bits: int
    attributes: tuple[str, ...] = ()  # LLVM attributes that a detected target needs for them

    @property
    def has_byte_dots(self) -> bool:
        """Whether x86 adds four products of bytes in one instruction (`vpdpbusd`)."""
        return not {"avx512_vnni", "avx_vnni"}.isdisjoint(self.features)


_AVX512 = ("avx2", "avx512bw", "avx512dq", "avx512f", "avx512vl", "fma")
_VNNI512 = (*_AVX512, "avx512_vnni")
_AMX = ("+avx512vnni", "+amx-tile", "+amx-int8")
_DOTPROD = ("asimd", "asimddp")

# Best first: detection takes the first one that a machine has.
ISAS: Mapping[str, Isa] = MappingProxyType(
    {
        isa.name: isa
        for isa in (
            Isa("avx512amx", (*_VNNI512, "amx_int8", "amx_tile"), ("x86_64",), 512, _AMX),
            Isa("avx512vnni", _VNNI512, ("x86_64",), 512, ("+avx512vnni",)),
            Isa("avxvnni", ("avx2", "avx_vnni", "fma"), ("x86_64",), 256, ("+avxvnni",)),
            Isa("avx512", _AVX512, ("x86_64",), 512),
            Isa("avx2", ("avx2", "fma"), ("x86_64",), 256),
            Isa("neon_i8mm", (*_DOTPROD, "i8mm"), ("aarch64",), 128, ("+dotprod", "+i8mm")),
            Isa("neon_dotprod", _DOTPROD, ("aarch64",), 128, ("+dotprod",)),
            Isa("neon", ("asimd",), ("aarch64",), 128),
            Isa("portable", (), ("x86_64", "aarch64", "cuda"), 128),
        )
    }
)

# The LLVM inside the `apache-tvm` wheel that pyproject.toml pins.
_LLVM_MAJOR = 22

# archspec's clang names that this LLVM does not know under that spelling.
_LLVM_ALIASES = MappingProxyType(
    {"apple-m1": "apple-a14", "apple-m2": "apple-a15", "apple-m3": "apple-a16"}
)

# Only what a code generator uses unasked: nobody emits `pku` or `clzero` for a convolution, and
# virtual machines often hide such flags.
_GENERATED = re.compile(
    r"s?sse\w*|avx\w*|fma4?|f16c|bmi[12]|abm|popcnt|movbe|xop|gfni"
    r"|asimd\w*|sve\w*|sme\w*|i8mm|bf16|atomics|fphp"
)

# What LLVM's `mcpu` switches on, but archspec does not list.
_UNLISTED = MappingProxyType({"sapphirerapids": frozenset({"avx512_fp16", "avx_vnni"})})

# LLVM's attribute -> the kernel's flag, where the names differ by more than dots.
_ATTRIBUTE_FLAGS = MappingProxyType(
    {
        "avx512bf16": "avx512_bf16",
        "avx512bitalg": "avx512_bitalg",
        "avx512fp16": "avx512_fp16",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512vnni": "avx512_vnni",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avxvnni": "avx_vnni",
        "bmi": "bmi1",
        "dotprod": "asimddp",
        "fp-armv8": "fp",
        "fullfp16": "asimdhp",
        "lse": "atomics",
        "lzcnt": "abm",
        "neon": "asimd",
        "rdm": "asimdrdm",
    }
)


def llvm_cpu(microarchitecture: Microarchitecture) -> str:
    """Return LLVM's name (`mcpu`) of a microarchitecture, or of its nearest known ancestor."""
    for candidate in (microarchitecture, *microarchitecture.ancestors):
        # archspec's own `optimization_flags` takes the first entry that fits, which for Arm is
        # the `-march` of compilers that did not know the CPU yet; the last one is the best.
        for entry in reversed(candidate.compilers.get("clang", [])):
            if not _covers(entry["versions"], _LLVM_MAJOR):
                continue
            flags = entry["flags"].format(**{"name": candidate.name, **entry})
            match = re.search(r"-mcpu=(\S+)", flags) or re.search(r"-march=(?!armv)(\S+)", flags)
            if match is not None:
                return _LLVM_ALIASES.get(match[1], match[1])
    return "generic"


def _covers(versions: str, major: int) -> bool:
    """Tell whether archspec's range of compiler versions, like "9.0:12.0", has a major one."""
    first, last = (int(v.partition(".")[0]) if v else None for v in versions.split(":"))
    return (first is None or first <= major) and (last is None or major <= last)


def generated_features(microarchitecture: Microarchitecture) -> frozenset[str]:
    """Return the flags that compiled code may use when tuned for a microarchitecture."""
    return frozenset(f for f in microarchitecture.features if _GENERATED.fullmatch(f))


@cache
def _features_by_llvm_cpu() -> Mapping[str, frozenset[str]]:
    features: dict[str, frozenset[str]] = {}
    for microarchitecture in TARGETS.values():
        if microarchitecture.family.name not in ("x86_64", "aarch64"):
            continue
        name = llvm_cpu(microarchitecture)
        found = generated_features(microarchitecture) | _UNLISTED.get(name, frozenset())
        # The intersection: two names of archspec can share one of LLVM (`zen5` and `zen6`).
        features[name] = features.get(name, found) & found
    return MappingProxyType(features)


def generated_flags(attributes: Iterable[str]) -> frozenset[str]:
    """Return the kernel's flags for LLVM's attributes, as far as compiled code may use them."""
    flags = (_ATTRIBUTE_FLAGS.get(name, name.replace(".", "_")) for name in attributes)
    return frozenset(flag for flag in flags if _GENERATED.fullmatch(flag))


def target_features(target: Mapping[str, object]) -> frozenset[str]:
    """Return the flags that code compiled for a TVM target may use.

    Args:
        target: JSON form of an LLVM target; `mcpu` and `mattr` decide.

    Returns:
        The flags that archspec knows for `mcpu` and those that `mattr` switches on, less those
        that it switches off. Attributes that only steer tuning (`+prefer-256-bit`) give none.
    """
    features = _features_by_llvm_cpu().get(str(target.get("mcpu", "")), frozenset())
    attributes = target.get("mattr", ())
    for attribute in attributes if isinstance(attributes, list | tuple) else (attributes,):
        sign, name = str(attribute)[:1], str(attribute)[1:]
        flags = generated_flags([name])
        features = features - flags if sign == "-" else features | flags
    return features
