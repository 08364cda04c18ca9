"""The checks of a hardware profile's values; each failure says what must hold."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .connection import parse_connection
from .errors import ProfileError, closest
from .isa import ISAS

if TYPE_CHECKING:
    from .profile import HardwareProfile

DEVICES = ("cpu", "cuda")
ARCHS = ("x86_64", "aarch64", "cuda")
WEIGHT_BITS = tuple(range(2, 9))
_OFFERED_WEIGHT_BITS = (*WEIGHT_BITS, 16)  # 16: layers in floating point with float16 weights
ACTIVATION_BITS = (7, 8)
_OFFERED_ACTIVATION_BITS = tuple(range(4, 9))  # kernels take the range of their input

_STRINGS = ("name", "description", "device", "arch", "isa", "connection")
_COUNTS = ("cores", "threads", "vector_bits", "channel_multiple", "job_timeout_s")
_STRING_TUPLES = ("features", "runtimes", "sources")
_WIDTHS = ("weight_bits", "activation_bits")
_INT_TUPLES = (*_WIDTHS, "cache_bytes")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ATTRIBUTE = re.compile(r"[+-]\S+")


def wrong(key: str, expected: str, value: object) -> ProfileError:
    """Return the error of a value that is not as it must be."""
    return ProfileError(f"`{key}` must be {expected}, but got {value!r}.")


def check_types(profile: "HardwareProfile") -> None:
    """Check the type of every field; a profile can come from a file."""
    for key in _STRINGS:
        if not isinstance(value := getattr(profile, key), str):
            raise wrong(key, "a string", value)
    for key in _COUNTS:
        if not _is_int(value := getattr(profile, key)) or value < 1:
            raise wrong(key, "a positive integer", value)
    for key in _STRING_TUPLES:
        value = getattr(profile, key)
        if not isinstance(value, tuple) or not all(isinstance(v, str) and v for v in value):
            raise wrong(key, "a list of non-empty strings", value)
    for key in _INT_TUPLES:
        value = getattr(profile, key)
        if not isinstance(value, tuple) or not all(_is_int(v) for v in value):
            raise wrong(key, "a list of integers", value)
    if not _is_int(profile.memory_bytes) or profile.memory_bytes < 0:
        raise wrong("memory_bytes", "a count of bytes, or 0 where unknown", profile.memory_bytes)
    if not isinstance(profile.emulated, bool):
        raise wrong("emulated", "true or false", profile.emulated)
    if not isinstance(profile.target, Mapping):
        raise wrong("target", "a table", profile.target)
    _check_json("target", profile.target)


def check_values(profile: "HardwareProfile") -> None:
    """Check the fields one by one, given that their types are right."""
    if not _NAME.fullmatch(profile.name):
        raise wrong("name", "lower-case letters, digits, '.', '_' and '-'", profile.name)
    _check_choice("device", profile.device, DEVICES)
    _check_choice("arch", profile.arch, ARCHS)
    _check_choice("isa", profile.isa, ISAS)
    parse_connection(profile.connection)
    if (
        list(profile.cache_bytes) != sorted(profile.cache_bytes)
        or min(profile.cache_bytes, default=1) < 1
    ):
        raise wrong("cache_bytes", "sizes in bytes from the first level up", profile.cache_bytes)
    for key in _STRING_TUPLES + _WIDTHS:
        values = getattr(profile, key)
        repeated = sorted({repr(v) for v in values if values.count(v) > 1})
        if repeated:
            raise ProfileError(
                f"`{key}` must not repeat a value, but it repeats {', '.join(repeated)}."
            )
    for key, widths in (
        ("weight_bits", _OFFERED_WEIGHT_BITS),
        ("activation_bits", _OFFERED_ACTIVATION_BITS),
    ):
        value = getattr(profile, key)
        if not set(value) <= set(widths) or list(value) != sorted(value):
            raise wrong(key, f"ascending widths out of {widths}", value)
    if not profile.runtimes:
        raise ProfileError("`runtimes` must name at least one runtime, but it is empty.")
    if profile.vector_bits % 32:
        raise wrong("vector_bits", "a multiple of 32", profile.vector_bits)
    if profile.threads > profile.cores:
        raise ProfileError(
            f"`threads` must not exceed the cores of '{profile.name}', which are "
            f"{profile.cores}, but {profile.threads} are asked for."
        )


def check_target(target: Mapping[str, object], device: str, arch: str) -> None:
    """Check that a TVM target is one of the device and the architecture."""
    kind = "cuda" if device == "cuda" else "llvm"
    if target.get("kind") != kind:
        raise wrong("target.kind", f"'{kind}' on device '{device}'", target.get("kind"))
    if (arch == "cuda") != (device == "cuda"):
        raise wrong("arch", f"an architecture of device '{device}'", arch)
    if "num-cores" in target:
        raise ProfileError(
            "`target` must not hold a thread count, but it has `num-cores`. Set `threads`."
        )
    host = target.get("host", {"kind": "llvm"})
    if not isinstance(host, Mapping) or host.get("kind") != "llvm":
        raise wrong("target.host", 'a table with `kind = "llvm"`', host)
    for key in ("mtriple", "mcpu", "arch"):
        if not isinstance(value := target.get(key, ""), str):
            raise wrong(f"target.{key}", "a string", value)
    attributes = target.get("mattr", [])
    if not isinstance(attributes, list) or not all(
        isinstance(attribute, str) and _ATTRIBUTE.fullmatch(attribute) for attribute in attributes
    ):
        raise wrong("target.mattr", "a list of '+name' and '-name'", attributes)
    triple = str(target.get("mtriple", arch))
    if device == "cpu" and triple.partition("-")[0] != arch:
        raise wrong("target.mtriple", f"a triple of '{arch}'", triple)


def check_isa(profile: "HardwareProfile") -> None:
    """Check that the kernel family is one of the architecture and that its flags are listed."""
    isa = ISAS[profile.isa]
    if profile.arch not in isa.archs:
        raise wrong("isa", f"an instruction set of '{profile.arch}'", profile.isa)
    missing = [feature for feature in isa.features if feature not in profile.features]
    if missing:
        raise ProfileError(
            f"`features` must hold what isa '{profile.isa}' uses, but {', '.join(missing)} "
            "is missing."
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ProfileError(
            f"`{key}` must be one of {', '.join(allowed)}, but got '{value}'. "
            + closest(value, allowed)
        )


def _check_json(key: str, value: object) -> None:
    """Check that a value is made of what JSON and TOML have in common."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise wrong(key, "a table with strings as keys", value)
            _check_json(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            _check_json(key, item)
    elif not isinstance(value, str | int | float) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise wrong(key, "made of strings, finite numbers, booleans, lists and tables", value)
