from __future__ import annotations

import numpy as np
import pytest

from paredown.studies.verification import OUTPUT_TOLERANCE, VerificationError, compare_outputs


def test_outputs_are_compared_sample_by_sample() -> None:
    second = np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 4.0]], np.float32)
    first = second.copy()
    first[0, 0] += 5.0 * OUTPUT_TOLERANCE * 0.5  # half of the bound, as the largest value is 5
    first[2] = (4.0, 5.0)
    found = compare_outputs(first, second)
    assert (found.n_samples, found.n_predictions_differ, found.n_outputs_differ) == (3, 1, 1)
    assert found.max_difference == 1.0


def test_outputs_that_are_no_scores_have_no_predictions() -> None:
    values = np.arange(3.0)
    assert compare_outputs(values, values).n_predictions_differ is None
    assert compare_outputs(values[:, None], values[:, None]).n_predictions_differ is None
    with pytest.raises(VerificationError, match="outputs of one shape"):
        compare_outputs(values, values[:, None])
