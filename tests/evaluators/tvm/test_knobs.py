"""Settings are legal, proved exact, and remembered."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.conv import FORMS, Knobs
from paredown.evaluators.tvm.kernels.neon import SUMMED
from paredown.evaluators.tvm.knobs import KnobChooser, interleaved_times, options
from paredown.evaluators.tvm.layers import ConvLayer
from paredown.evaluators.tvm.packing import ConvGeometry
from paredown.evaluators.tvm.sink import Sink
from paredown.hw_profiles import load_profile

NEON = ("neon", "neon_dotprod", "neon_i8mm")
ISAS = ("avx512amx", "avx512vnni", "avxvnni", "avx512", "avx2", *NEON, "portable")


def layer(weights: NDArray[Any], height: int, width: int, groups: int = 1) -> ConvLayer:
    oc, per_group, kh, kw = weights.shape
    ic = per_group * groups
    dtype = "uint8" if weights.dtype == np.int8 else "float32"
    geometry = ConvGeometry(ic, -(-ic // 8) * 8, oc, (kh, kw), groups=groups)
    source = Image(None, dtype, 1, height + kh - 1, width + kw - 1, ic, geometry.icp)
    sink = Sink(0, dtype)
    bias = np.zeros(oc, np.int32 if dtype == "uint8" else np.float32)
    output = sink.image(1, height, width, oc)
    return ConvLayer(
        geometry, weights, bias, np.ones(oc, np.float32), source, (0, 0), output, sink, 1
    )


@given(
    oc=st.integers(1, 130),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    top=st.sampled_from([1, 3, 7, 15, 31, 63, 127]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("isa", ISAS)
def test_every_setting_is_legal(
    isa: str, oc: int, size: tuple[int, int], top: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-top, top + 1, (oc, 8, 3, 3)).astype(np.int8)
    for candidate in (layer(weights, *size), layer(weights.astype(np.float32), *size)):
        found = options(candidate, isa)
        assert 0 < len(found) == len(set(found))
        for knobs in found:
            assert knobs.ocb <= candidate.geometry.ocp
            assert knobs.ocb % knobs.lanes == 0
            assert knobs.lanes == 8 or isa.startswith("avx512") or isa in NEON
            assert knobs.th <= size[0]
            assert knobs.tw <= size[1]
            assert FORMS[knobs.form].is_integer == candidate.is_integer
            needed = {"pair1": 1, "pair2": 2, "pair4": 4, "rolled": 2}.get(knobs.form, 0)
            assert not needed or candidate.runs(knobs.ocb).min() >= needed
            summed = SUMMED.get(knobs.form, 0)
            assert not summed or candidate.runs(knobs.ocb, is_shifted=True).min() >= summed
            assert knobs.form != "neon_mmla" or knobs.th * knobs.tw % 2 == 0


@pytest.mark.parametrize(
    ("isa", "top", "forms"),
    [
        ("avx512amx", 127, {"amx", "dot"}),
        ("avx512vnni", 127, {"dot"}),
        ("avxvnni", 127, {"dot"}),
        ("neon", 128, {"plain"}),  # 2 x 128 x 128 is no s16
        ("neon", 127, {"neon_mull1"}),
        ("neon", 64, {"neon_mull1"}),
        ("neon", 63, {"neon_mull1", "neon_mull2"}),
        ("neon", 42, {"neon_mull2", "neon_mull3"}),
        ("neon_dotprod", 128, {"neon_dot"}),
        ("neon_i8mm", 128, {"neon_mmla"}),
        ("portable", 127, {"plain"}),
        ("avx2", 127, {"words", "wide"}),  # a pair of products leaves s16
        ("avx2", 64, {"pair1"}),
        ("avx2", 32, {"pair2"}),
        ("avx2", 16, {"pair2", "pair4"}),
        ("avx2", 8, {"pair4", "rolled"}),
        ("avx512", 16, {"pair2", "pair4"}),
    ],
)
def test_form_follows_from_the_proof(isa: str, top: int, forms: set[str]) -> None:
    weights = np.full((16, 64, 3, 3), -top, np.int8)
    assert {knobs.form for knobs in options(layer(weights, 14, 14), isa)} == forms


@pytest.mark.parametrize(
    ("name", "size", "is_half", "forms"),
    [
        ("x86-64-v4-vnni", 128, True, ["f16", "f32"]),
        ("x86-64-v3", 128, True, ["f16", "f32"]),
        ("x86-64-v3", 128, False, ["f32"]),
        ("x86-64-v3", 64, True, ["f32"]),
        ("x86-64", 128, True, ["f32"]),
        ("raspberry-pi-4", 128, True, ["neon_f32"]),
    ],
)
def test_many_halves_may_be_read_in_place(
    name: str, size: int, is_half: bool, forms: list[str]
) -> None:
    profile = load_profile(name)
    linear = replace(layer(np.ones((size, size, 1, 1), np.float32), 1, 1), is_half=is_half)
    found = options(linear, profile.isa, reads_halves=profile.reads_halves)
    assert list(dict.fromkeys(knobs.form for knobs in found)) == forms


def test_halves_are_unpacked_first_where_each_is_used_often() -> None:
    conv = replace(layer(np.ones((128, 128, 3, 3), np.float32), 7, 7), is_half=True)
    forms = [knobs.form for knobs in options(conv, "avx2", reads_halves=True)]
    assert list(dict.fromkeys(forms)) == ["f32", "f16"]


@pytest.mark.parametrize(
    ("isa", "top", "channels", "forms"),
    [
        ("portable", 127, 40, {"dw_plain"}),
        ("avx2", 127, 8, {"dw_taps"}),
        ("avx2", 127, 40, {"dw_pairs"}),
        ("avx2", 64, 40, {"dw_pairs", "dw_quads"}),
        ("avx2", 21, 40, {"dw_pairs", "dw_runs"}),
        ("avx2", 22, 40, {"dw_pairs", "dw_quads"}),  # 2 rows x 3 columns x 22 x 255 > 32767
        ("avx512", 64, 40, {"dw_pairs"}),
        ("avx512amx", 127, 40, {"dw_pairs", "dw_dot"}),
        ("avx512vnni", 127, 40, {"dw_pairs", "dw_dot"}),
        ("avxvnni", 127, 40, {"dw_pairs", "dw_dot"}),
        ("neon", 127, 40, {"dw_words"}),
        ("neon", 85, 40, {"dw_row"}),  # 3 columns x 85 x 128 < 32768
        ("neon", 86, 40, {"dw_words"}),
        ("neon", 28, 40, {"dw_all"}),  # 9 taps x 28 x 128 < 32768
        ("neon", 29, 40, {"dw_row"}),
        ("neon_dotprod", 127, 40, {"dw_sdot", "dw_words"}),
        ("neon_dotprod", 28, 8, {"dw_all"}),
        ("neon_i8mm", 85, 40, {"dw_usdot", "dw_row"}),
    ],
)
def test_depthwise_form_follows_from_the_proof(
    isa: str, top: int, channels: int, forms: set[str]
) -> None:
    weights = np.full((channels, 1, 3, 3), top, np.int8)
    candidate = layer(weights, 14, 3, groups=channels)
    assert candidate.is_depthwise
    found = options(candidate, isa)
    assert {knobs.form for knobs in found} == forms
    assert all(knobs.tw <= 3 and knobs.ocb <= channels for knobs in found)


def with_stride(candidate: ConvLayer, stride: int) -> ConvLayer:
    return replace(candidate, geometry=replace(candidate.geometry, stride=(stride, stride)))


@pytest.mark.parametrize("isa", ["avx2", "avx512vnni"])
@pytest.mark.parametrize(
    ("channels", "width", "stride", "folds"),
    [
        (8, 16, 1, True),
        (16, 16, 1, True),
        (8, 15, 1, False),
        (8, 16, 2, False),
        (64, 16, 1, False),
    ],
)
def test_columns_of_few_channels_are_folded(
    isa: str, channels: int, width: int, stride: int, folds: bool
) -> None:
    weights = np.full((channels, 1, 3, 3), 2, np.int8)
    found = options(with_stride(layer(weights, 14, width, groups=channels), stride), isa)
    assert any(knobs.ocb > channels for knobs in found) == folds


@pytest.mark.parametrize(
    ("rows", "stride", "shares"),
    [
        ((40, 20, 0), 1, True),
        ((64, 64, 64), 1, True),
        ((64, 64, 65), 1, False),  # the first row of a tile pairs 64 and 64, the second 64 and 65
        ((40, 20, 0), 2, False),
    ],
)
def test_rows_are_shared_if_each_of_them_is_proved(
    rows: tuple[int, int, int], stride: int, shares: bool
) -> None:
    weights = np.zeros((40, 1, 3, 3), np.int8)
    weights[:, 0, :, 1] = rows  # 255 x (64 + 64) < 32768
    found = options(with_stride(layer(weights, 14, 14, groups=40), stride), "avx2")
    assert {k.th for k in found if k.form in ("dw_quads", "dw_runs")} == (
        {1, 2} if shares else {1}
    )


def test_zero_input_is_no_division() -> None:
    found = layer(np.full((8, 8, 1, 1), 127, np.int8), 4, 4)
    found = replace(found, source=replace(found.source, data_max=0), _runs={})
    assert options(found, "avx2")


@pytest.mark.slow
def test_choice_is_remembered(tmp_path: Path) -> None:
    profile = load_profile("local")
    rng = np.random.default_rng(0)
    candidate = layer(rng.integers(-7, 8, (16, 8, 1, 1)).astype(np.int8), 6, 6)
    chooser = KnobChooser(KernelCache(profile.target, tmp_path), profile.isa, can_time=True)
    best = chooser.choose(candidate)
    assert best in options(candidate, profile.isa)
    chooser.save()
    cache = KernelCache(profile.target, tmp_path)
    (entry,) = cache.read_knobs().values()
    second = options(candidate, profile.isa)[-1]
    values = [second.form, second.lanes, second.ocb, second.th, second.tw]
    cache.write_knobs({key: {**entry, "best": values} for key in cache.read_knobs()})
    again = KnobChooser(KernelCache(profile.target, tmp_path), profile.isa, can_time=True)
    assert again.choose(candidate) == second


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoiled",
    [
        None,
        1,
        {},
        {"best": 1},
        {"best": ["dot"]},
        {"best": ["dot", 7, 7, 7, 7]},
        {"best": [[]] * 5},
    ],
)
def test_spoiled_entry_is_timed_again(tmp_path: Path, spoiled: Any) -> None:
    profile = load_profile("local")
    candidate = layer(np.ones((8, 8, 1, 1), np.int8), 2, 4)
    cache = KernelCache(profile.target)
    chooser = KnobChooser(cache, profile.isa, can_time=True)
    chooser.choose(candidate)
    chooser.save()
    own = KernelCache(profile.target, tmp_path)
    own.write_knobs(dict.fromkeys(cache.read_knobs(), spoiled))
    # Only the table is another one: the kernels are there already.
    own.function = cache.function  # type: ignore[method-assign]  # saves the time to compile
    fresh = KnobChooser(own, profile.isa, can_time=True)
    assert fresh.choose(candidate) in options(candidate, profile.isa)


def test_without_the_device_the_first_setting_is_taken(tmp_path: Path) -> None:
    profile = load_profile("aarch64")
    candidate = layer(np.ones((16, 8, 3, 3), np.int8), 9, 9)
    chooser = KnobChooser(KernelCache(profile.target, tmp_path), profile.isa, can_time=False)
    assert chooser.choose(candidate) == options(candidate, profile.isa)[0]


@pytest.mark.parametrize(("gain", "form"), [(1.05, "dot"), (1.2, "amx")])
def test_amx_must_gain_what_it_costs_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, form: str
) -> None:
    candidate = layer(np.ones((64, 64, 3, 3), np.int8), 14, 14)
    found = options(candidate, "avx512amx")
    times = np.array([1e-5 if knobs.form == "amx" else gain * 1e-5 for knobs in found])

    def measured(runs: list[Any], **_: Any) -> Any:
        return times if len(runs) == len(times) else times[times < 1.15e-5]

    monkeypatch.setattr("paredown.evaluators.tvm.knobs.interleaved_times", measured)
    monkeypatch.setattr(KnobChooser, "_runner", lambda *_: lambda: None)
    cache = KernelCache(load_profile("x86-64-v4-amx").target, tmp_path)
    assert KnobChooser(cache, "avx512amx", can_time=True).choose(candidate).form == form


def test_interleaved_times_rank_and_take_turns() -> None:
    calls: list[str] = []

    def work(name: str, amount: int) -> Any:
        def run() -> None:
            calls.append(name)
            np.ones(amount).sum()

        return run

    times = interleaved_times([work("a", 400_000), work("b", 100)], rounds=3, burst_s=1e-4)
    assert times[0] > times[1] > 0
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order == ["a", "b"] * 4  # once to warm up, then three rounds


def test_a_good_moment_makes_no_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    now, n_runs = 0.0, 0

    def work(seconds: float) -> Any:
        def run() -> None:
            nonlocal now, n_runs
            n_runs += 1
            # The machine is slow until the second one has its last turn.
            now += seconds * (1 if n_runs == 4 + 2 * 6 else 2)

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    times = interleaved_times([work(0.010), work(0.011)], burst_s=0.0)
    assert times[1] == pytest.approx(1.1 * times[0])


@pytest.mark.parametrize(("pitch", "is_odd"), [(4, True), (8, False)])
def test_a_form_that_fills_up_no_step_is_on_offer(pitch: int, is_odd: bool) -> None:
    few = layer(np.ones((16, 3, 3, 3), np.int8), 9, 9)
    few = replace(few, geometry=replace(few.geometry, icp=pitch))
    forms = {knobs.form for knobs in options(few, "avx2")}
    assert ("pair1" in forms) == is_odd
    assert "pair4" in forms


def shares(case: ConvLayer, knobs: Knobs) -> list[list[tuple[int, int]]]:
    """Return the block and chunk of each task, by thread, as kernel and TVM count them."""
    call = case.call(knobs)
    ints = dict(zip(call.kernel.ints, call.constants[-2].tolist(), strict=True))
    blocks, chunks = ints["blocks"], ints["chunks"]
    tasks = [
        (task // ints["bs"] % blocks, task // ints["cs"] % chunks)
        for task in range(blocks * chunks)
    ]
    assert len({*tasks}) == blocks * chunks
    per_thread = -(-len(tasks) // case.threads)
    return [tasks[i : i + per_thread] for i in range(0, len(tasks), per_thread)]


@pytest.mark.parametrize("blocks", [1, 5, 8, 9, 13])
@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("inputs", [8, 2048])
def test_all_threads_get_as_much_to_do(blocks: int, threads: int, inputs: int) -> None:
    weights = np.ones((8 * blocks, inputs, 1, 1), np.int8)
    case = replace(layer(weights, 12, 12), threads=threads)
    for knobs in options(case, "avx2"):
        if (knobs.ocb, knobs.th) == (8, 1):
            assert len({len(share) for share in shares(case, knobs)}) == 1


@pytest.mark.parametrize("size", [24, 25])
def test_threads_share_rows_of_large_images(size: int) -> None:
    case = replace(layer(np.ones((64, 8, 1, 1), np.int8), size, size), threads=2)
    for knobs in options(case, "avx2"):
        first, second = ({chunk for _, chunk in share} for share in shares(case, knobs))
        assert max(first) <= min(second)
        assert len(first & second) <= 1  # a row that both take, where they are odd


def test_threads_share_channels_of_large_weights() -> None:
    case = replace(layer(np.ones((512, 512, 1, 1), np.int8), 4, 4), threads=2)
    for knobs in options(case, "avx2"):
        first, second = ({block for block, _ in share} for share in shares(case, knobs))
        assert max(first) < min(second)
