"""Which bit widths pay in time on a device, and which in size alone."""

from __future__ import annotations

from collections.abc import Sequence

from ...hw_profiles.profile import HardwareProfile

# Families of kernels that sum products in 16 bits for as long as the weights prove that nothing
# overflows: each bit less lets them do that for longer. With an instruction that sums into
# 32 bits every width takes the time of 8 bits, and portable loops gain nothing either.
_FASTER_WITH_FEWER_BITS = ("avx2", "avx512", "neon")
_INTEGER_BITS = 8


def size_only_bits(profile: HardwareProfile, weight_bits: Sequence[int]) -> tuple[int, ...]:
    """Return those of some widths that are smaller, but no faster than 8 bits, on a device.

    Args:
        profile: The device.
        weight_bits: Widths on offer; 32 is float.
    """
    if profile.isa in _FASTER_WITH_FEWER_BITS:
        return ()
    return tuple(bits for bits in weight_bits if bits < _INTEGER_BITS)
