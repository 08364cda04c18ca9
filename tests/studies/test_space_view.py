from __future__ import annotations

import json

import pytest
from rich.console import Console

from paredown.evaluators.layer_times import LayerTimes
from paredown.search.space import LayerInfo, SearchSpace
from paredown.studies.space_view import describe_space, space_notes, space_table

SPACE = SearchSpace(
    (),
    (
        LayerInfo("conv", "conv", (64, 3, 3, 3), 1_728_000, (1, 64, 32, 32), (4, 8, 32), (7, 8)),
        LayerInfo("skip", "conv", (64, 3, 1, 1), 192, (1, 64, 32, 32), (4, 8, 32), (7, 8)),
        LayerInfo("fc", "linear", (10, 64), 640, (1, 10), (32,), (7, 8)),
    ),
    unprunable=(("fc", "its outputs are the model's output"),),
    layer_leaders=(0, 0, 2),
)


def test_rows_by_hand() -> None:
    times = LayerTimes({"conv": 6.0, "skip": 2.0, "fc": 1.0}, 1.0)
    space = SearchSpace((), SPACE.layers, layer_leaders=(0, 0, 2))
    view = describe_space(space, "task", "cpu", (4,), times)
    conv, skip, fc = view.layers
    total = 4 * (1728 + 64 + 192 + 64 + 640 + 10)
    assert conv.size_share == pytest.approx(4 * (1728 + 64) / total)
    assert [row.latency_share for row in view.layers] == pytest.approx([0.6, 0.2, 0.1])
    assert view.other_latency_share == pytest.approx(0.1)
    assert (conv.follows, skip.follows, fc.follows) == (None, "conv", None)
    assert view.n_parameters == 2  # widths of weights and activations of the tied pair
    assert 10**view.log10_candidates == pytest.approx(6)
    assert json.loads(json.dumps(view.to_json()))["layers"][1]["follows"] == "conv"


def test_table_and_notes_say_what_stays_and_why() -> None:
    view = describe_space(
        SearchSpace((), SPACE.layers, (), SPACE.unprunable), "task", "cpu", (4,), None
    )
    console = Console(width=160)
    with console.capture() as capture:
        console.print(space_table(view))
    assert "1.7 M" in capture.get()
    assert "4 8 float" in capture.get()
    notes = "\n".join(space_notes(view))
    assert "Weights of 4 bits are for size only" in notes
    assert "Channels of fc stay: its outputs are the model's output." in notes
    assert "no layer's" not in notes
    assert "float16" not in notes


def test_float16_is_named_and_labelled() -> None:
    layer = LayerInfo("fc", "linear", (10, 64), 640, (1, 10), (16, 32), (7, 8))
    view = describe_space(SearchSpace((), (layer,)), "task", "cpu", (16,), None)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(space_table(view))
    assert capture.get().splitlines()[1].split()[-3:] == ["float16", "float", "all"]
    (note,) = [note for note in space_notes(view) if "size only" in note]
    assert note.startswith("Weights in float16 are for size only")
