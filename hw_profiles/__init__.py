"""What a device is: profiles, their catalog, and the detection of this machine."""

from .catalog import list_profiles, load_profile
from .connection import Connection, parse_connection
from .detect import Machine, check_runs_here, detect_profile, this_machine
from .errors import ParedownError, ProfileError
from .isa import ISAS, Isa, target_features
from .profile import HardwareProfile

__all__ = [
    "ISAS",
    "Connection",
    "HardwareProfile",
    "Isa",
    "Machine",
    "ParedownError",
    "ProfileError",
    "check_runs_here",
    "detect_profile",
    "list_profiles",
    "load_profile",
    "parse_connection",
    "target_features",
    "this_machine",
]
