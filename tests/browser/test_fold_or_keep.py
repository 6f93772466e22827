"""Fold or keep in a browser: every number is Python's, and every control moves what it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle
from test_widgets_fold_or_keep import GIVEN

from minqbook.widgets import FoldOrKeep
from minqbook.widgets.bundle import bundle
from minqbook.widgets.fold_or_keep import WAYS

SOURCE = bundle("fold_or_keep.js") + "\nexport { floats, result, unpack };"


def test_parity(js):
    w = FoldOrKeep(**GIVEN)
    settings = [
        {"way": way, "perChannel": own, "batch": b, "spread": spread, "shift": shift, "eps": w.eps}
        for way, own, (b, spread, shift) in itertools.product(
            WAYS, [False, True], [(0, 1, 0), (1, 1, 0), (2, 3.1, -1.5), (3, 0.3, 0.7)]
        )
    ]
    run = """(m, [data, sizes, settings]) => {
        const v = m.unpack(m.floats(Uint8Array.from(data)), sizes);
        return settings.map(s => { const r = m.result(v, sizes, s);
            return Object.fromEntries(Object.entries(r).map(([k, x]) =>
                [k, typeof x === 'number' ? x : Array.from(x)])); }); }"""
    for setting, got in zip(
        settings, js(SOURCE, run, [list(w.data), w.sizes, settings]), strict=True
    ):
        w.way, w.per_channel, w.batch = setting["way"], setting["perChannel"], setting["batch"]
        w.spread, w.shift = setting["spread"], setting["shift"]
        for key, want in w.result().items():
            np.testing.assert_allclose(got[key], np.ravel(want), rtol=1e-12, atol=1e-12)


def assert_shows(widget, twin):
    settle(widget)
    shown, want, k = readouts(widget), twin.result(), twin.channel
    flips = int((want["integers"] != want["before"]).sum())
    assert shown["integers that flip"] == f"{flips} of {want['integers'].size}"
    for name, key in (("scale", "scale"), ("bias", "bias"), ("output mean", "mean")):
        assert number(shown[name]) == pytest.approx(want[key][k], rel=6e-3, abs=1e-6)
    assert number(shown["output deviation"]) == pytest.approx(want["deviation"][k], rel=6e-3)
    assert shown["computed"] == {1: "once", 2: "twice"}[want["passes"]]
    marked = widget.evaluate("""root => (root.querySelector('.mq-cells .mq-red')
        .getAttribute('d').match(/M/g) || []).length""")
    assert marked == flips and not widget.broken_text()


@pytest.mark.parametrize("width, dark", [(375, True), (800, False)])
def test_controls(browser, tmp_path, width, dark):
    twin = FoldOrKeep(**GIVEN)
    with stage(browser, tmp_path, twin, width=width, dark=dark, touch=width < 400) as widget:
        assert_shows(widget, twin)
        widget.slider("its variances").press("End")
        twin.spread = 4.0
        assert_shows(widget, twin)
        widget.slider("its means").press("Home")
        twin.shift = -2.0
        assert_shows(widget, twin)
        widget.slider("Batch").press("ArrowRight")
        twin.batch = 2
        assert_shows(widget, twin)
        for name, way in (("dynamic", "dynamic"), ("fold once", "fold once"), ("keep", "keep")):
            widget.root.get_by_role("radio", name=name, exact=True).check(force=True)
            twin.way = way
            assert_shows(widget, twin)
        assert widget.root.get_by_role("radio", name="one a channel").is_disabled()
        assert widget.root.get_by_role("button", name="Next flip").is_disabled()
        widget.root.get_by_role("radio", name="fold by the batch").check(force=True)
        widget.root.get_by_role("radio", name="one a channel").check(force=True)
        twin.way, twin.per_channel = "by the batch", True
        assert_shows(widget, twin)
        found = twin.result()
        flipped = np.flatnonzero((found["integers"] != found["before"]).any(1))
        widget.click("Next flip")
        twin.channel = int(flipped[flipped > 0][0])
        assert_shows(widget, twin)
        field = widget.root.locator(".mq-plot svg").first.bounding_box()
        last = field["x"] + field["width"] - 15, field["y"] + field["height"] / 2
        (widget.root.page.touchscreen.tap if width < 400 else widget.root.page.mouse.click)(*last)
        twin.channel = 5
        assert_shows(widget, twin)
        assert widget.slider("Channel").value == 5
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width
