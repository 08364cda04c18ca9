import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.measurement import EvaluationError, Latency
from paredown.hw_profiles.errors import ParedownError

positive = st.floats(1e-3, 1e9)


@given(
    latency_us=positive,
    spread_us=st.floats(0, 1e9),
    n_runs=st.integers(1, 10**9),
    is_noisy=st.booleans(),
    threads=st.integers(1, 256),
    pair=st.none() | st.tuples(positive, positive),
)
def test_latency_survives_json(
    latency_us: float,
    spread_us: float,
    n_runs: int,
    is_noisy: bool,
    threads: int,
    pair: tuple[float, float] | None,
) -> None:
    baseline_us, ratio = pair or (None, None)
    latency = Latency(latency_us, spread_us, n_runs, is_noisy, threads, baseline_us, ratio)
    assert Latency.from_json(json.loads(json.dumps(latency.to_json()))) == latency


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"latency_us": 0.0}, "`latency_us` must be finite and above 0"),
        ({"latency_us": float("nan")}, "`latency_us` must be finite"),
        ({"spread_us": -1.0}, "`spread_us` must be finite and >= 0"),
        ({"n_runs": 0}, "`n_runs` and `threads` must be 1 or more"),
        ({"threads": 0}, "`n_runs` and `threads` must be 1 or more"),
        ({"baseline_us": 2.0}, "must be given together"),
        ({"ratio": float("inf"), "baseline_us": 2.0}, "`ratio` must be finite"),
        ({"version": 2}, "must be 1, but got 2"),
        ({"extra": 2}, "check: extra"),
        ({"latency_us": "fast"}, "wrong type"),
    ],
)
def test_wrong_record_is_refused(changes: dict[str, object], match: str) -> None:
    data = Latency(10.0, 1.0, 100, False, 1).to_json() | changes
    with pytest.raises(ValueError, match=match):
        Latency.from_json(data)


def test_missing_field_is_named() -> None:
    data = Latency(10.0, 1.0, 100, False, 1).to_json()
    del data["threads"]
    with pytest.raises(ValueError, match="check: threads"):
        Latency.from_json(data)


def test_older_records_are_read() -> None:
    data = Latency(10.0, 1.0, 100, False, 1).to_json()
    for name in ("notes", "peak_memory_bytes", "energy_mj"):
        del data[name]
    assert Latency.from_json(data) == Latency(10.0, 1.0, 100, False, 1)
    data |= {"notes": ["hot"], "peak_bytes": 5000, "energy_j": None}
    found = Latency.from_json(data)
    assert (found.notes, found.peak_memory_bytes, found.energy_mj) == (("hot",), 5000, None)


def test_error_survives_pickling_with_reason_and_notes() -> None:
    error = EvaluationError("No luck.", "timeout")
    error.add_note("details")
    copy = pickle.loads(pickle.dumps(error))
    assert issubclass(EvaluationError, ParedownError)
    assert (str(copy), copy.reason, copy.__notes__) == ("No luck.", "timeout", ["details"])


def test_unknown_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="`reason` must be one of"):
        EvaluationError("No luck.", "bad mood")  # type: ignore[arg-type]  # what is tested
