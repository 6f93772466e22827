"""A dead start in a browser: the page trains step by step as Python does, by every control."""

from __future__ import annotations

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import DeadStart
from minqbook.widgets.bundle import bundle
from minqbook.widgets.dead_start import STARTS, train
from minqbook.zoo import digit_chain

SOURCE = bundle("dead_start.js") + "\nexport { unpack, training };"
KEYS = {"weightGradients": "weight_gradients", "scaleGradients": "scale_gradients"}


@pytest.mark.parametrize("start", STARTS)
def test_parity(js, start):
    w = DeadStart(*digit_chain())
    scales = [-w.scales[start][0], *w.scales[start][1:]]  # a negative one counts by its size
    run = """(m, [data, sizes, count, scales, rate]) => {
        const r = m.training(m.unpack(Uint8Array.from(data), sizes, count), scales, rate);
        r.seen(30);
        return Array.from({ length: 31 }, (_, t) => r.seen(t)); }"""
    found = js(SOURCE, run, [list(w.data), w.sizes, w.count, scales, 0.05])
    wanted = train(w.weights, scales, w.pictures / 16, w.digits, 0.05, 30)
    for got, want in zip(found, wanted, strict=True):
        for key, values in got.items():
            expected = want[KEYS.get(key, key)]
            np.testing.assert_allclose(values, expected, rtol=1e-8, atol=1e-13, err_msg=key)


def assert_shows(widget, twin):
    settle(widget)
    shown, want = readouts(widget), twin.result()
    sizes = [w.size for w in twin.weights]
    assert number(shown["loss"]) == pytest.approx(want["loss"], rel=6e-3)
    for name, key in (("weights at 0", "zeros"), ("clipped", "clipped")):
        share = 100 * np.average(want[key], weights=sizes)
        assert number(shown[name]) == pytest.approx(share, rel=0.06, abs=0.1)
    squares = np.square(want["weight_gradients"])
    gradient = np.sqrt(np.average(squares, weights=sizes))
    text = shown["gradient of weights"]
    assert (0 if text == "exactly 0" else number(text)) == pytest.approx(gradient, rel=0.06)
    assert not widget.broken_text()


@pytest.mark.parametrize("width, dark", [(375, True), (800, False)])
def test_controls(browser, tmp_path, width, dark):
    twin = DeadStart(*digit_chain(), step=12)
    with stage(browser, tmp_path, twin, width=width, dark=dark, touch=width < 400) as widget:
        assert_shows(widget, twin)
        widget.click("One step")
        twin.step = 13
        assert_shows(widget, twin)
        for start in STARTS:
            widget.root.get_by_role("radio", name=start, exact=True).check(force=True)
            twin.start, twin.step = start, 0
            assert_shows(widget, twin)
        assert "nothing will ever move" in widget.text("figcaption")
        widget.root.get_by_role("radio", name="MSE", exact=True).check(force=True)
        twin.start = "MSE"
        steps, rate = widget.slider("Steps taken"), widget.slider("Learning rate")
        steps.press("PageUp", "ArrowRight")
        twin.step = int(steps.value)
        assert twin.step > 1
        assert_shows(widget, twin)
        rate.press("ArrowLeft")
        settle(widget)
        assert readouts(widget)["loss"] and not widget.broken_text()
        widget.click("Run")  # with less motion: the end at once
        settle(widget)
        assert steps.value == 60 and number(readouts(widget)["loss"]) < 1.2
        widget.click("Reset")
        settle(widget)
        assert steps.value == 0
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_playing(browser, tmp_path):
    with stage(browser, tmp_path, DeadStart(*digit_chain())) as widget:
        page = widget.root.page
        page.emulate_media(reduced_motion="no-preference")
        widget.click("Run")
        page.wait_for_timeout(1500)
        widget.click("Pause")
        settle(widget)
        assert 0 < widget.slider("Steps taken").value < 60 and not widget.broken_text()
