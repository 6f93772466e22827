"""Descent in a browser: its gradients are autograd's, its run is that of torch's optimizer."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import Descent
from minqbook.widgets.bundle import bundle

SOURCE = bundle("descent.js") + "\nexport { weightGrid, squareLoss, gradientBy, descend };"
RNG = np.random.default_rng(0)
X = RNG.normal(size=500).astype("f4")
T = (0.7 * X + RNG.normal(0, 0.5, 500)).astype("f4")


def settings(w):
    keys = ("moments", "limit", "bits", "rate", "start", "gradient")
    return {k: getattr(w, k) for k in keys}


def loss_of(torch, w, kind):
    """The loss as a function of the weight, of data and library alone; None: no quantizer."""
    from minq.affine import fake_quantize
    from minq.grid import round_half_even, round_straight_through

    x, t = (torch.tensor(v).double() for v in (X, T))
    s = w.limit / (2 ** (w.bits - 1) - 1)
    rounding = {"true": round_half_even, "straight-through": round_straight_through}.get(kind)
    if rounding is None:
        return lambda v: ((v * x - t) ** 2).mean()
    how = dict(signed=True, narrow_range=True, rounding=rounding)
    return lambda v: ((fake_quantize(v, s, 0, w.bits, **how) * x - t) ** 2).mean()


@pytest.mark.parametrize("kind", ["straight-through", "true", "full precision"])
def test_gradient_is_autograds(js, kind):
    torch = pytest.importorskip("torch")
    w = Descent(X, T, bits=3, limit=1.0)
    weights = np.linspace(-1.25, 1.25, 101)  # beyond the grid too
    loss = loss_of(torch, w, kind)
    expected = []
    for value in weights:
        v = torch.tensor(value, requires_grad=True)
        expected.append(torch.autograd.grad(loss(v), v, allow_unused=True)[0])
    expected = [0.0 if g is None else g.item() for g in expected]
    got = js(SOURCE, """(m, [w, values]) => { const grid = m.weightGrid(w.limit, w.bits);
        return values.map(v => [m.gradientBy(w.gradient, w.moments, grid, v),
            m.squareLoss(w.moments, w.gradient === 'full precision' ? v : grid.q(v))]); }""",
        [settings(w) | {"gradient": kind}, weights.tolist()])  # fmt: skip
    np.testing.assert_allclose([g for g, _ in got], expected, rtol=1e-9, atol=1e-12)
    values = [loss(torch.tensor(v)).item() for v in weights]
    np.testing.assert_allclose([v for _, v in got], values, rtol=1e-9)
    clipped = np.abs(weights) > 3.5 / 3
    assert clipped.any() and any(expected) == (kind != "true")
    if kind == "straight-through":
        assert not np.array(expected)[clipped].any() and np.array(expected)[~clipped].all()


@pytest.mark.parametrize(("bits", "rate"), [(2, 0.1), (3, 0.3), (5, 0.05)])
def test_run_is_that_of_sgd(js, bits, rate):
    torch = pytest.importorskip("torch")
    w = Descent(X, T, bits=bits, rate=rate, start=-0.6, limit=1.1)
    v = torch.tensor(-0.6, dtype=torch.float64, requires_grad=True)
    optimizer, loss, path = torch.optim.SGD([v], lr=rate), loss_of(torch, w, w.gradient), []
    for _ in range(81):
        path.append(v.item())
        optimizer.zero_grad()
        loss(v).backward()
        optimizer.step()
    got = js(SOURCE, "(m, w) => { const r = m.descend(w, 80); return [r.w, r.q]; }", settings(w))
    np.testing.assert_allclose(got[0], path, rtol=0, atol=1e-9)
    # In the end it jumps between two levels around the optimum, which is their mean over time.
    late = np.array(got[1][-40:])
    assert late.min() < w.optimum < late.max() and len(set(late.round(9))) == 2
    assert late.mean() == pytest.approx(w.optimum, abs=0.15 * np.ptp(late))


@pytest.mark.parametrize("width", [800, 375])
def test_controls(browser, tmp_path, width):
    w = Descent(X, T, start=-0.7, limit=1.1)
    with stage(browser, tmp_path, w, width=width, dark=width < 400) as widget:
        shown = readouts(widget)
        assert number(shown["weight w"]) == pytest.approx(-0.7)
        assert number(shown["optimum of w"]) == pytest.approx(w.optimum, abs=1e-3)
        slope = number(shown["gradient used"])
        assert slope < 0
        widget.click("One step")
        settle(widget)
        assert number(readouts(widget)["weight w"]) == pytest.approx(-0.7 - 0.1 * slope, abs=2e-3)
        widget.click("Run")  # with less motion: the end at once
        settle(widget)
        assert widget.slider("Steps taken").value == 120
        assert int(readouts(widget)["changes of level"]) > 5
        assert "jumps between levels" in widget.text("figcaption")
        assert number(readouts(widget)["mean of q(w)"]) == pytest.approx(w.optimum, abs=0.05)
        widget.root.get_by_role("radio", name="true", exact=True).check(force=True)
        settle(widget)
        shown = readouts(widget)
        assert (number(shown["weight w"]), shown["gradient used"]) == (-0.7, "0")
        widget.root.get_by_role("radio", name="full precision").check(force=True)
        settle(widget)
        assert number(readouts(widget)["weight w"]) == pytest.approx(w.optimum, abs=1e-3)
        widget.root.get_by_role("radio", name="straight-through").check(force=True)
        start = widget.root.get_by_role("slider", name="Start of the weight")
        box, mouse = start.bounding_box(), widget.root.page.mouse
        start.press("ArrowLeft")
        settle(widget)
        assert number(start.get_attribute("aria-valuetext").split()[1]) < -0.7
        start.press("End")  # beyond the grid: clipped, stuck
        settle(widget)
        shown = readouts(widget)
        assert shown["changes of level"] == "0" and "stuck" in widget.text("figcaption")
        start.scroll_into_view_if_needed()
        box = start.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x, y)
        mouse.down()
        mouse.move(x - 120, y, steps=3)
        mouse.up()
        settle(widget)
        assert "stuck" not in widget.text("figcaption")
        widget.click("Reset")
        settle(widget)
        assert widget.slider("Steps taken").value == 0
        for name in ("Bits", "Learning rate", "Steps taken"):
            for key in ("Home", "End"):
                widget.slider(name).press(key)
                settle(widget)
                assert not widget.broken_text(), (name, key)
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_playing_and_odd_data(browser, tmp_path):
    """A run that grows without bound at a high rate, on data of another size."""
    w = Descent(1e3 * X, 1e3 * T, rate=2.0, gradient="full precision")
    with stage(browser, tmp_path, w) as widget:
        page = widget.root.page
        page.emulate_media(reduced_motion="no-preference")
        widget.click("Run")
        page.wait_for_timeout(500)
        widget.click("Pause")
        settle(widget)
        held = widget.slider("Steps taken").value
        assert 0 < held < 120 and not widget.broken_text()
        widget.slider("Steps taken").press("End")
        settle(widget)
        assert "too high" in widget.text("figcaption") and not widget.broken_text()
        widget.root.get_by_role("radio", name="straight-through").check(force=True)
        settle(widget)
        assert "stuck" in widget.text("figcaption") and not widget.broken_text()
