"""What a device is: profiles, their catalog, and the detection of this machine."""

from .catalog import list_profiles, load_profile
from .detect import Machine, check_runs_here, detect_profile, this_machine
from .errors import ParedownError, ProfileError
from .isa import ISAS, Isa, target_features
from .profile import HardwareProfile

__all__ = [
    "ISAS",
    "HardwareProfile",
    "Isa",
    "Machine",
    "ParedownError",
    "ProfileError",
    "check_runs_here",
    "detect_profile",
    "list_profiles",
    "load_profile",
    "target_features",
    "this_machine",
]
