"""The catalog: one TOML file per device beside this module, found by name."""

import os
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from ..detect import detect_profile
from ..errors import ProfileError, closest
from ..profile import HardwareProfile

LOCAL = "local"


@cache
def list_profiles() -> tuple[HardwareProfile, ...]:
    """Return the profiles of the catalog, sorted by name; this machine is not among them.

    Raises:
        ProfileError: If a file of the catalog is not valid, or not named after its profile.
    """
    folder = resources.files(__package__)
    profiles = []
    for file in folder.iterdir():
        if not file.name.endswith(".toml"):
            continue
        profile = HardwareProfile.from_toml(file.read_text("utf-8"), source=file.name)
        # File names are unique in a folder, so this keeps the names of profiles unique too.
        if file.name != f"{profile.name}.toml" or profile.name == LOCAL:
            raise ProfileError(
                f"{file.name}: `name` must be the name of its file and not '{LOCAL}', "
                f"but it is '{profile.name}'."
            )
        profiles.append(profile)
    return tuple(sorted(profiles, key=lambda profile: profile.name))


def load_profile(name_or_path: str | os.PathLike[str]) -> HardwareProfile:
    """Return a profile by its name in the catalog, or from a TOML file.

    Args:
        name_or_path: "local" (this machine, detected), a name of the catalog, or the path of a
            TOML file; what ends in `.toml` or holds a separator is a path. A connection may
            follow after an `@`: "raspberry-pi-4@rpc://192.168.1.20:9090".

    Raises:
        ProfileError: If there is no such profile or file, the file is not a valid profile, or the
            connection is none.
    """
    name, connection = _split(os.fspath(name_or_path))
    profile = _load(name, ())
    return profile if connection is None else replace(profile, connection=connection)


def _split(text: str) -> tuple[str, str | None]:
    """Split a name from the connection behind it; a path may hold an `@` of its own."""
    name, at, connection = text.rpartition("@")
    is_connection = at and ("://" in connection or connection in ("local", "compile-only"))
    return (name, connection) if is_connection else (text, None)


def _load(name: str, children: tuple[Path, ...]) -> HardwareProfile:
    """Return a profile; `children` are the files that inherit from it, the nearest one last."""
    if name == LOCAL:
        return detect_profile()
    if name.endswith(".toml") or os.sep in name:
        return _read(Path(name), children)
    profiles = {profile.name: profile for profile in list_profiles()}
    if name not in profiles:
        raise ProfileError(
            f"`profile` must be '{LOCAL}', a name of the catalog or a path to a TOML file, "
            f"but got '{name}'. {closest(name, [LOCAL, *profiles])}"
        )
    return profiles[name]


def _read(path: Path, children: tuple[Path, ...]) -> HardwareProfile:
    if path.resolve() in children:
        raise ProfileError(f"{path}: `base` must not lead back to the file itself, but it does.")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read as a profile: {error}.") from error

    def find_base(name: str) -> HardwareProfile:
        # A path in a file is meant from where the file lies.
        is_path = name.endswith(".toml") or os.sep in name
        return _load(str(path.parent / name) if is_path else name, (*children, path.resolve()))

    return HardwareProfile.from_toml(text, str(path), find_base)
