"""Which bit widths pay in time on a device, and which in size alone."""

from __future__ import annotations

from collections.abc import Sequence

from ...hw_profiles.profile import HardwareProfile
from ..candidate import HALF_BITS

# Families of kernels that sum products in 16 bits for as long as the weights prove that nothing
# overflows: each bit less lets them do that for longer. With an instruction that sums into
# 32 bits every width takes the time of 8 bits, and portable loops gain nothing either.
_FASTER_WITH_FEWER_BITS = ("avx2", "avx512", "neon")
_INTEGER_BITS = 8


def size_only_bits(profile: HardwareProfile, weight_bits: Sequence[int]) -> tuple[int, ...]:
    """Return the widths that are smaller on a device, but no faster.

    Widths below 8 bits are compared to 8 bits, and float16 to float32.

    Args:
        profile: The device.
        weight_bits: Widths on offer; 16 and 32 are float.
    """
    is_faster = profile.isa in _FASTER_WITH_FEWER_BITS
    found = [bits for bits in weight_bits if bits < _INTEGER_BITS and not is_faster]
    if HALF_BITS in weight_bits and not profile.reads_halves:
        found.append(HALF_BITS)
    return tuple(found)
