"""What a device is, as far as choosing, compiling and timing a model for it is concerned."""

import copy
import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import tomli_w

from ._checks import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    check_isa,
    check_target,
    check_types,
    check_values,
    wrong,
)
from .connection import parse_connection
from .errors import ProfileError, closest

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """A device: how code is compiled for it, what its kernels can do, and how it is reached.

    A profile says nothing about models. It crosses process borders (pickle) and is stored with
    every study and bundle (TOML), so it holds plain values only.

    Attributes:
        name: Lower-case name, unique in the catalog.
        description: One line for a list of devices.
        device: "cpu" or "cuda".
        arch: "x86_64", "aarch64" or "cuda".
        target: JSON form of the TVM target; the thread count is not in it, see `threads`.
        isa: Kernel family that is used on the device, a key of `ISAS`.
        features: CPU flags, as in `/proc/cpuinfo`, that code for this device may execute.
        cores: Cores that a process may use.
        threads: Threads that inference uses.
        vector_bits: Width of one vector register as the kernels use it.
        channel_multiple: Channel counts that are a multiple of it fill the vectors.
        weight_bits: Weight widths that have integer kernels, ascending, and 16 where layers in
            floating point may have float16 weights.
        activation_bits: Activation widths that a study searches unless told otherwise, ascending;
            where 7 is among them, 4 to 6 run as well.
        runtimes: Runtimes that can serve a model on the device.
        connection: How the device is reached; see `parse_connection`.
        job_timeout_s: Most seconds that one job on a remote device may take, all in all.
        emulated: Whether the device is an emulator, whose times say nothing about the real one.
        memory_bytes: Main memory; 0 where unknown.
        cache_bytes: Data caches that a core sees, in bytes, from the first level up.
        sources: Where the values come from.

    Raises:
        ProfileError: If a value has the wrong type, or does not fit the others.
    """

    name: str
    description: str
    device: str
    arch: str
    target: Mapping[str, object]
    isa: str = "portable"
    features: tuple[str, ...] = ()
    cores: int = 1
    threads: int = 1
    vector_bits: int = 128
    channel_multiple: int = 8
    weight_bits: tuple[int, ...] = WEIGHT_BITS
    activation_bits: tuple[int, ...] = ACTIVATION_BITS
    runtimes: tuple[str, ...] = ("tvm", "onnxruntime")
    connection: str = "local"
    job_timeout_s: int = 120
    emulated: bool = False
    memory_bytes: int = 0
    cache_bytes: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        check_values(self)
        check_target(self.target, self.device, self.arch)
        check_isa(self)
        # A copy: the caller's later changes do not reach a frozen value.
        object.__setattr__(self, "target", copy.deepcopy(dict(self.target)))

    @property
    def has_latency(self) -> bool:
        """Whether there is a device behind the profile whose times count."""
        return self.connection != "compile-only" and not self.emulated

    @property
    def reads_halves(self) -> bool:
        """Whether kernels read float16 weights in place, which is faster than float32 ones."""
        return self.isa.startswith("avx") and "f16c" in self.features

    @property
    def is_remote(self) -> bool:
        """Whether the device is reached through RPC."""
        return parse_connection(self.connection).is_remote

    def with_threads(self, threads: int) -> Self:
        """Return the same device with another number of inference threads."""
        return dataclasses.replace(self, threads=threads)

    @classmethod
    def from_toml(
        cls,
        text: str,
        source: str = "profile",
        find_base: "Callable[[str], HardwareProfile] | None" = None,
    ) -> Self:
        """Read a profile from TOML.

        Args:
            text: The document, as `to_toml` writes it; fields with a default may be left out. With
                a key `base`, all that the document does not say is as in the profile of that
                name; of `target`, each key on its own.
            source: Where the text comes from; it opens every message.
            find_base: Returns the profile that a `base` names; by default none may be named.

        Raises:
            ProfileError: If the text is not TOML, or a key is unknown, missing or has a value
                that does not fit.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ProfileError(f"{source}: not a valid TOML document: {error}.") from error
        try:
            if find_base is not None and "base" in values:
                values = _on_top_of(find_base(_base_name(values)), values)
            return cls(**_arguments(values))
        except ProfileError as error:
            raise ProfileError(f"{source}: {error}") from error

    def to_toml(self) -> str:
        """Write the profile in the form that `from_toml` reads."""
        values: dict[str, object] = {"version": FORMAT_VERSION}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = list(value) if isinstance(value, tuple) else value
        return tomli_w.dumps(values)


def _base_name(values: Mapping[str, Any]) -> str:
    if not isinstance(name := values["base"], str) or not name:
        raise wrong("base", "the name of a profile", name)
    return name


def _on_top_of(base: HardwareProfile, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a profile that differs from another one in the given values."""
    merged: dict[str, Any] = tomllib.loads(base.to_toml())
    target = values.get("target", {})
    if isinstance(target, Mapping):  # anything else is refused by the checks of the profile
        target = {**merged["target"], **target}
    merged |= {**values, "target": target}
    del merged["base"]
    return merged


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a profile out of a TOML document, with its keys checked."""
    values = dict(values)
    version = values.pop("version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise wrong("version", f"{FORMAT_VERSION}, the format that this Paredown reads", version)
    fields = {field.name: field for field in dataclasses.fields(HardwareProfile)}
    unknown = [f"`{key}` ({closest(key, fields)})" for key in values if key not in fields]
    if unknown:
        raise ProfileError(f"Keys must be those of a profile, but got {', '.join(unknown)}.")
    missing = [
        f"`{name}`"
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ProfileError(f"A profile must say what it is, but lacks {', '.join(missing)}.")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
