"""The grids of integers and floats in a browser: the page computes what Python computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import floats
from minq.grid import integer_grid
from minqbook.widgets import NumberGrids
from minqbook.widgets.bundle import bundle
from minqbook.widgets.number_grids import GRIDS


def data(size=300):
    rng = np.random.default_rng(0)
    return {"bell": rng.normal(size=size), "long tail": rng.standard_t(2, size=size) / 7}


def assert_shows(widget, twin):
    settle(widget)
    assert not widget.broken_text()
    shown, want = readouts(widget), twin.result()
    assert number(shown["SQNR"]) == pytest.approx(want["sqnr"], rel=6e-3)
    assert number(shown["mean squared error"]) == pytest.approx(want["mse"], rel=6e-3)
    assert number(shown["bits per value"]) == pytest.approx(want["bits"], rel=6e-4)
    for name, key in (("became 0", "zeros"), ("clipped", "clipped")):
        percent = number(shown[name].lstrip("< "))
        assert percent == pytest.approx(100 * want[key], rel=0.06, abs=0.1)
    k = min(twin.shown_block, len(want["scale"]) - 1)
    assert number(shown["scale s"]) == pytest.approx(want["scale"][k], rel=6e-3)
    # The rows of ticks name every format with its SQNR.
    rows = widget.evaluate(
        "root => [...root.querySelectorAll('.mq-grids text')].map(t => t.textContent)"
    )
    chosen = twin.format
    for name, level in zip(rows[::2], rows[1::2], strict=True):
        twin.format = name
        assert number(level) == pytest.approx(twin.result()["sqnr"], rel=6e-3)
    assert rows[::2] == list(GRIDS)
    twin.format = chosen


@pytest.mark.parametrize("width", [375, 800])
def test_it_shows_what_python_computes(browser, tmp_path, width):
    twin = NumberGrids(data())
    with stage(browser, tmp_path, twin, width=width, touch=width < 400) as widget:
        assert_shows(widget, twin)
        for name in GRIDS:
            widget.root.get_by_role("radio", name=name, exact=True).click()
            twin.format = name
            assert_shows(widget, twin)
        widget.root.get_by_role("radio", name="32", exact=True).click()
        twin.block = 32
        assert_shows(widget, twin)
        widget.slider("Block shown").press("End")
        twin.shown_block = 9
        assert_shows(widget, twin)
        widget.click("powers of two")
        twin.powers = True
        assert_shows(widget, twin)
        widget.choose("Data", "long tail")
        twin.tensor = 1
        assert_shows(widget, twin)
        reach = widget.slider("End of the grid")
        for at in (0, 100, reach.limits[1]):
            reach.set(at)
            twin.reach = float(f"{0.02 * 100 ** (at / reach.limits[1]):.3g}")
            assert_shows(widget, twin)
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_ticks_are_the_grid(browser, tmp_path):
    twin = NumberGrids({"a": [-3.0, 0.1, 6.0]}, format="FP4 E2M1")
    with stage(browser, tmp_path, twin, dark=True) as widget:
        d = widget.evaluate("r => r.querySelector('.mq-grids .mq-blue').getAttribute('d')")
        places = np.array([float(m.split(" ")[0]) for m in d.split("M")[1:]])
        want = floats.float_grid(floats.E2M1)
        assert len(places) == len(want)
        unit = (places[-1] - places[0]) / 12
        assert np.abs((places - places[0]) / unit - 6 - want).max() < 0.02


def test_parity(js):
    source = bundle("number_grids.js") + "\nexport { GRIDS, positives, run };"
    grids = js(source, "m => Object.entries(m.GRIDS).map(([k, g]) => [k, m.positives(g)])")
    assert [k for k, _ in grids] == list(GRIDS)
    for name, found in grids:
        grid = GRIDS[name]
        if isinstance(grid, int):
            want = np.arange(integer_grid(grid, signed=True)[1] + 1)
        else:
            want = floats.float_grid(grid)
            want = want[want >= 0]
        np.testing.assert_array_equal(found, want)

    rng = np.random.default_rng(1)
    x = rng.standard_t(2, 500) * 2.0 ** rng.integers(-12, 12, 500)
    x[:32], x[40:50] = 0, np.arange(10) / 4
    ties = np.concatenate([np.arange(-20, 21) / 8, [6.0, 5.0, 2.5, 1.75, 0.25, -0.25]])
    twin = NumberGrids({"a": x, "ties": ties})
    cases = [
        {"tensor": t, "format": f, "block": b, "powers": p, "reach": r}
        for t, f, b, p, r in itertools.product(
            (0, 1), GRIDS, (0, 16, 128), (False, True), (1.0, 0.31, 2.0)
        )
    ]
    run = """(m, [tensors, cases]) => cases.map(c => {
        const r = m.run(Float32Array.from(tensors[c.tensor]), m.GRIDS[c.format], c);
        return { ...r, hat: [...r.hat] }; })"""
    tensors = [v.astype(float).tolist() for v in twin.values.values()]
    for case, seen in zip(cases, js(source, run, [tensors, cases]), strict=True):
        for name, value in case.items():
            setattr(twin, name, value)
        want = twin.result()
        np.testing.assert_array_equal(seen["scale"], want["scale"])
        np.testing.assert_array_equal(seen["hat"], want["x_hat"])
        for key in ("mse", "sqnr", "zeros", "clipped", "bits"):
            assert seen[key] == pytest.approx(want[key], rel=1e-9, abs=1e-15)
