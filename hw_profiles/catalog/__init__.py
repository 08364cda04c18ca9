"""The catalog of devices: one TOML file each."""

from .loading import list_profiles, load_profile

__all__ = ["list_profiles", "load_profile"]
