import dataclasses

from paredown.hw_profiles.catalog import load_profile
from paredown.search.knowledge.widths import size_only_bits


def test_fewer_bits_pay_in_time_where_sums_are_short() -> None:
    short = load_profile("x86-64-v3")
    assert short.isa == "avx2"
    assert size_only_bits(short, (2, 4, 8, 32)) == ()
    portable = load_profile("x86-64")
    assert portable.isa == "portable"
    assert size_only_bits(portable, (2, 4, 8, 32)) == (2, 4)
    assert size_only_bits(short, (2, 8, 16, 32)) == ()
    assert size_only_bits(portable, (2, 8, 16, 32)) == (2, 16)
    assert size_only_bits(load_profile("raspberry-pi-4"), (2, 8, 16, 32)) == (16,)
    assert size_only_bits(dataclasses.replace(portable, isa="portable"), (8, 32)) == ()
