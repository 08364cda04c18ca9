"""Views against numpy's own strides."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.views import View, joined

few = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def view_of(array: NDArray[Any]) -> View:
    image = Image(None, "float32", 1, 1, array.size, 1, 1)
    return View(image, array.shape, tuple(s // array.itemsize for s in array.strides))


def read(view: View, flat: NDArray[Any]) -> NDArray[Any]:
    strides = [s * flat.itemsize for s in view.strides]
    return np.array(np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides))


@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=1, max_size=5))
@few
def test_reshaped_as_numpy(data: st.DataObject, shape: list[int]) -> None:
    flat = np.arange(np.prod(shape))
    order = data.draw(st.permutations(range(len(shape))))
    moved = flat.reshape(shape).transpose(order)
    view = view_of(flat.reshape(shape)).transposed(order)
    np.testing.assert_array_equal(read(view, flat), moved)
    primes = [
        p
        for size in moved.shape
        for p in ([size] if size in (2, 3, 5) else [2, size // 2] if size > 2 else [1])
    ]
    primes = data.draw(st.permutations(primes)) if data.draw(st.booleans()) else primes
    cut = data.draw(st.integers(0, len(primes)))
    new = (int(np.prod(primes[:cut])), *primes[cut:])
    found = view.reshaped(new)
    try:
        expected = moved.view()
        expected.shape = new
    except AttributeError:  # numpy would have to copy
        assert found is None
        return
    assert found is not None
    np.testing.assert_array_equal(read(found, flat), expected)


def test_rows_keep_their_pitch() -> None:
    image = Image(None, "float32", 1, 1, 6, 5, 8)
    view = View.of_rows(image, (2, 3, 5))
    assert view.strides == (24, 8, 1)
    split = view.reshaped((6, 5))
    assert split is not None
    assert split.strides == (8, 1)
    assert view.reshaped((2, 15)) is None  # the pitch is wider than a row


def test_spread_steps_nowhere() -> None:
    view = view_of(np.zeros((1, 4, 5))).spread((7, 3, 4, 5))
    assert (view.shape, view.strides) == ((7, 3, 4, 5), (0, 0, 5, 1))


def test_joined_where_all_step_alike() -> None:
    assert joined((2, 3), [(30, 10), (3, 1)]) == [(6, 10, 1)]
    assert joined((2, 3), [(30, 10), (0, 1)]) == [(2, 30, 0), (3, 10, 1)]
    assert joined((1, 3, 1), [(9, 5, 9)]) == [(3, 5)]
