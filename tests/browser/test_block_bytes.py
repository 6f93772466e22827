"""A block of a GGUF file in a browser: its bytes, its bits and its weights are Python's."""

from __future__ import annotations

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import BlockBytes
from minqbook.widgets.block_bytes import SIZE
from minqbook.widgets.bundle import bundle


def blocks(count=3):
    rng = np.random.default_rng(0)
    ends = np.stack([rng.uniform(0.01, 0.1, count), rng.uniform(-1, 0, count)], 1).astype("<f2")
    codes = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    return np.hstack([ends.view(np.uint8).reshape(count, 4), codes]).tobytes()


def assert_shows(widget, twin):
    settle(widget)
    shown, want = readouts(widget), twin.result()
    assert number(shown["scale d"]) == pytest.approx(want["scale"], rel=6e-3)
    assert number(shown["minimum m"]) == pytest.approx(want["minimum"], rel=6e-3)
    moves = np.abs(want["weights"] - want["before"])
    assert number(shown["weights changed"]) == (moves != 0).sum()
    assert number(shown["largest change"]) == pytest.approx(moves.max(), rel=6e-3)
    assert not widget.broken_text()


@pytest.mark.parametrize("width, dark", [(375, True), (800, False)])
def test_it_shows_what_python_computes(browser, tmp_path, width, dark):
    twin = BlockBytes(blocks())
    with stage(browser, tmp_path, twin, width=width, dark=dark, touch=width < 400) as widget:
        assert_shows(widget, twin)
        widget.root.get_by_role("radio", name="byte 7,").check(force=True)
        bits = widget.root.get_by_role("button", name="turn it over")
        bits.nth(0).click()  # the highest bit comes first
        bits.nth(7).click()
        twin.flipped = [8 * 7 + 7, 8 * 7]
        assert_shows(widget, twin)
        bits.nth(7).click()  # back again
        twin.flipped = [8 * 7 + 7]
        assert_shows(widget, twin)
        widget.slider("Block").press("ArrowRight")  # and nothing is flipped there
        twin.block, twin.flipped = 1, []
        assert_shows(widget, twin)
        widget.root.get_by_role("radio", name="byte 1,").check(force=True)
        bits.nth(7).click()
        twin.flipped = [8]
        assert_shows(widget, twin)
        not_zero = np.count_nonzero(twin.result()["codes"])  # the others stay at the minimum
        assert readouts(widget)["weights changed"] == str(not_zero)
        widget.click("Undo all")
        twin.flipped = []
        assert_shows(widget, twin)
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_an_infinite_scale_is_told(browser, tmp_path):
    twin = BlockBytes(blocks(1), byte=1, flipped=[])
    with stage(browser, tmp_path, twin) as widget:
        bits = widget.root.get_by_role("button", name="turn it over")
        for k in range(1, 6):  # the five bits of the exponent, where they are not 1 yet
            if bits.nth(k).inner_text() == "0":
                bits.nth(k).click()
        settle(widget)
        assert "no finite numbers" in widget.root.inner_text()
        assert readouts(widget)["largest change"] == "not a number"


def test_parity(js):
    """Every float16, and blocks with random bits turned over."""
    source = bundle("block_bytes.js") + "\nexport { flip, half, read };"
    found = js(source, "m => Array.from({ length: 65536 }, (_, b) => String(m.half(b)))")
    want = np.arange(65536, dtype=np.uint16).view(np.float16).astype(float)
    np.testing.assert_array_equal([float(v.replace("Infinity", "inf")) for v in found], want)

    rng = np.random.default_rng(1)
    twin = BlockBytes(blocks(5))
    cases = [
        (k, rng.choice(8 * SIZE, size, replace=False).tolist())
        for k in range(5)
        for size in (0, 1, 5, 40)
    ]
    run = """(m, [data, cases]) => cases.map(([k, bits]) => {
        const { d, m: low, q, w } = m.read(m.flip(data.slice(20 * k, 20 * k + 20), bits));
        return { d: String(d), low: String(low), q, w: w.map(String) }; })"""
    for (k, bits), seen in zip(cases, js(source, run, [list(twin.data), cases]), strict=True):
        twin.block, twin.flipped = k, bits
        want = twin.result()
        assert seen["q"] == want["codes"].tolist()
        back = [float(v.replace("Infinity", "inf")) for v in (seen["d"], seen["low"], *seen["w"])]
        np.testing.assert_array_equal(back, [want["scale"], want["minimum"], *want["weights"]])
        twin.flipped = []
