"""BlockBytes in Python: what it computes, sends and refuses."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("anywidget")

from minqbook.widgets import BlockBytes


def block(scale=0.5, minimum=-4.0, codes=range(32)):
    ends = np.array([scale, minimum], "<f2").tobytes()
    codes = [k % 16 for k in codes]
    return ends + bytes(low | high << 4 for low, high in zip(codes[:16], codes[16:], strict=True))


def test_it_gives_the_weights_back():
    found = BlockBytes(block()).result()
    assert (found["scale"], found["minimum"]) == (0.5, -4.0)
    np.testing.assert_array_equal(found["weights"], 0.5 * (np.arange(32) % 16) - 4)
    np.testing.assert_array_equal(found["before"], found["weights"])


def test_a_bit_of_the_scale_moves_every_weight_but_those_at_the_minimum():
    found = BlockBytes(block(), flipped=[10]).result()  # exponent: 0.5 becomes 1 or 0.25
    moved = found["weights"] != found["before"]
    np.testing.assert_array_equal(moved, found["codes"] > 0)


@pytest.mark.parametrize("bit", range(32, 160))
def test_a_bit_of_a_code_moves_one_weight_by_its_place(bit):
    found = BlockBytes(block(), flipped=[bit]).result()
    moves = found["weights"] - found["before"]
    (place,) = np.flatnonzero(moves)
    j, k = bit // 8 - 4, bit % 8
    assert place == j + 16 * (k > 3)
    assert abs(moves[place]) == 0.5 * 2 ** (k % 4)


@pytest.mark.parametrize(
    "data, settings, kind, words",
    [
        (b"", {}, ValueError, "0 bytes"),
        (b"1" * 21, {}, ValueError, "21 bytes"),
        (b"1" * 20 * 257, {}, ValueError, "256 whole blocks"),
        ([1, 2], {}, TypeError, "must be bytes"),
        (b"1" * 20, {"block": 1}, ValueError, "from 0 to 0"),
        (b"1" * 20, {"byte": 20}, ValueError, "from 0 to 19"),
        (b"1" * 20, {"flipped": [160]}, ValueError, "0 to 159"),
        (b"1" * 20, {"flipped": [3, 3]}, ValueError, "different bits"),
    ],
)
def test_it_refuses(data, settings, kind, words):
    with pytest.raises(kind, match=words):
        BlockBytes(data, **settings)
