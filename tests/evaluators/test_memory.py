import numpy as np

from paredown.evaluators.memory import MemoryGrowth

MB = 1 << 20


def test_memory_that_was_given_back_counts_as_well() -> None:
    growth = MemoryGrowth()
    before = growth.peak_bytes()
    data = np.ones(64 * MB, np.uint8)
    del data
    after = growth.peak_bytes()
    assert before is not None
    assert after is not None
    assert before < 8 * MB
    assert 60 * MB < after < 80 * MB


def test_what_came_before_does_not_count() -> None:
    data = np.ones(64 * MB, np.uint8)
    growth = MemoryGrowth()
    found = growth.peak_bytes()
    assert data[-1] == 1
    assert found is not None
    assert found < 8 * MB
