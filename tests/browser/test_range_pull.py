"""RangePull in a browser: its pulls are autograd's, its descent is that of torch's Adam."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq.grid import integer_grid
from minqbook.widgets import RangePull
from minqbook.widgets.bundle import bundle

SOURCE = bundle("range_pull.js") + "\nexport { byScale, pullsOf, learnScale, pullCurves };"
RNG = np.random.default_rng(0)
X = np.float32(RNG.laplace(0.2, 1, 2000))
CASES = [
    dict(bits=4, scale=0.3, zero_point=6),
    dict(bits=2, scale=2.0, zero_point=0),
    dict(bits=8, scale=0.02, zero_point=100),
    dict(bits=3, scale=0.5, signed=True),
]


def gradients(torch, x, w):
    """By the scale, of values inside and beyond the grid, and by the zero-point: by autograd."""
    from minq.affine import fake_quantize
    from minq.grid import round_straight_through

    x = torch.tensor(x).double()
    s = torch.full(x.shape, w.scale, dtype=torch.float64, requires_grad=True)
    z = torch.full(x.shape, float(w.zero_point), dtype=torch.float64, requires_grad=True)
    x_hat = fake_quantize(x, s, z, w.bits, signed=w.signed, axis=0, rounding=round_straight_through)
    loss = ((x_hat - x) ** 2).mean()
    loss.backward()
    n, p = integer_grid(w.bits, signed=w.signed)
    level = torch.round(x / w.scale) + w.zero_point
    off = (level < n) | (level > p)
    return {
        "rounding": s.grad[~off].sum().item(), "clipping": s.grad[off].sum().item(),
        "zero": z.grad.sum().item(), "mse": loss.item(), "clipped": off.double().mean().item(),
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pulls_are_autograds(js, case):
    torch = pytest.importorskip("torch")
    w = RangePull(X, **case)
    grid = integer_grid(w.bits, signed=w.signed)
    expected = gradients(torch, X, w)
    arguments = [X.astype(float).tolist(), w.scale, w.zero_point, list(grid)]
    got = js(SOURCE, "(m, a) => m.pullsOf(...a)", arguments)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert got["rounding"] > 0 > got["clipping"]
    from minq.straight_through import derivative_by_scale

    t = [torch.tensor(v, dtype=torch.float64) for v in (X, w.scale, w.zero_point)]
    each = js(SOURCE, "(m, [x, ...a]) => x.map(v => m.byScale(v, ...a)[0])", arguments)
    np.testing.assert_allclose(each, derivative_by_scale(*t, grid), rtol=1e-9, atol=1e-12)


def test_descent_is_that_of_the_learning_quantizer(js):
    torch = pytest.importorskip("torch")
    from minq import Quantizer

    x = torch.tensor(X).double()
    q = Quantizer(bits=4, signed=True, symmetric=True)
    q.set_range(-8.0, 7.0).freeze().learn(logarithmic=True)
    optimizer, path = torch.optim.Adam([q.log2_scale], lr=0.15, eps=1e-30), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    q.double()
    for _ in range(101):
        path.append(2 ** q.log2_scale.item())
        optimizer.zero_grad()
        ((q(x) - x) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
    data = X.astype(float).tolist()
    got = js(SOURCE, "(m, [x, s]) => m.learnScale(x, s, 0, [-8, 7])", [data, path[0]])
    np.testing.assert_allclose(got, path, rtol=1e-6)
    curves = js(SOURCE, "(m, x) => m.pullCurves(x, 0, [-8, 7], [0.05, 2])", data)
    # It ends where the pulls balance, near the scale of least error, which is not quite the same.
    assert got[-1] == pytest.approx(curves["balance"]["s"], rel=0.01)
    errors = [c["mse"] for c in curves["curve"]]
    assert curves["best"]["mse"] <= min(errors) and curves["best"]["mse"] < curves["balance"]["mse"]
    dense = [
        float(np.mean((np.clip(np.rint(X / s), -8, 7) * s - X.astype(float)) ** 2))
        for s in np.geomspace(0.05, 2, 2000)
    ]
    assert curves["best"]["mse"] == pytest.approx(min(dense), rel=1e-3)


def assert_shows(widget, torch, w, **now):
    """The numbers are those of autograd for the settings shown."""
    settle(widget)
    for key, value in now.items():
        setattr(w, key, value)
    expected, shown = gradients(torch, X, w), readouts(widget)
    total = expected["rounding"] + expected["clipping"]
    size = expected["rounding"] - expected["clipping"]
    assert number(shown["of rounding"]) == pytest.approx(expected["rounding"], rel=6e-3)
    assert number(shown["of clipping"]) == pytest.approx(expected["clipping"], rel=6e-3)
    assert number(shown["∂L/∂s"]) == pytest.approx(total, abs=6e-3 * size)
    assert number(shown["loss: MSE"]) == pytest.approx(expected["mse"], rel=6e-3)
    if not w.signed:
        assert number(shown["∂L/∂z"]) == pytest.approx(expected["zero"], rel=6e-3, abs=1e-9)
    assert not widget.broken_text()


@pytest.mark.parametrize("width", [800, 375])
def test_controls(browser, tmp_path, width):
    torch = pytest.importorskip("torch")
    w = RangePull(X, 4, scale=0.25, zero_point=7)
    with stage(browser, tmp_path, w, width=width, dark=width < 400) as widget:
        assert_shows(widget, torch, w)
        assert "clipping pulls more" in widget.text("figcaption")
        widget.slider("Scale s").press("ArrowRight", "ArrowRight")
        assert_shows(widget, torch, w, scale=number(widget.slider("Scale s").spoken))
        widget.slider("Zero-point").press("ArrowLeft")
        assert_shows(widget, torch, w, scale=number(widget.slider("Scale s").spoken), zero_point=6)
        end = widget.root.get_by_role("slider", name="End of the grid")
        end.press("PageUp")
        settle(widget)
        assert number(end.get_attribute("aria-valuetext")) > 9 * 0.26
        here = widget.root.get_by_role("slider", name="Scale", exact=True)
        here.scroll_into_view_if_needed()
        box, mouse = here.bounding_box(), widget.root.page.mouse
        was = number(here.get_attribute("aria-valuetext"))
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + 30, y, steps=3)
        mouse.up()
        settle(widget)
        assert number(here.get_attribute("aria-valuetext")) > 1.1 * was
        widget.click("Go to min–max")
        settle(widget)
        assert readouts(widget)["clipped values"] in ("0 %", "< 0.1 %")
        assert "rounding pulls more" in widget.text("figcaption")
        widget.click("Let gradient descent run")  # with less motion: the end at once
        settle(widget)
        assert "the two pulls balance" in widget.text("figcaption")
        least = number(readouts(widget)["loss: MSE"])
        widget.click("Go to least error")
        settle(widget)
        assert number(readouts(widget)["loss: MSE"]) <= least
        for name in ("Bits", "Scale s", "Zero-point"):
            for key in ("Home", "End"):
                widget.slider(name).press(key)
                settle(widget)
                assert not widget.broken_text(), (name, key)
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_playing(browser, tmp_path):
    with stage(browser, tmp_path, RangePull(X, 4, signed=True)) as widget:
        page = widget.root.page
        page.emulate_media(reduced_motion="no-preference")
        words = widget.evaluate(
            """async root => { const button = [...root.querySelectorAll('button')]
                .find(b => b.textContent.startsWith('Let gradient'));
            button.click(); await new Promise(done => setTimeout(done, 400));
            const words = button.textContent; button.click(); return words; }"""
        )
        settle(widget)
        held = readouts(widget)
        assert words == "Stop" and number(held["clipped values"].lstrip("< ")) > 0
        page.wait_for_timeout(200)
        assert readouts(widget) == held


@pytest.mark.parametrize("data", [[1.0], [-3.0, -1.0], [1e-30, -2e-30], [0.0, 5.0, 1e30]], ids=str)
def test_odd_data(browser, tmp_path, data):
    with stage(browser, tmp_path, RangePull(data), width=320) as widget:
        for button in ("Go to min–max", "Go to least error", "Let gradient descent run"):
            widget.click(button)
            settle(widget)
            assert not widget.broken_text(), button
        for slider in widget.sliders():
            for key in ("Home", "End"):
                slider.press(key)
                settle(widget)
                assert not widget.broken_text(), slider.label


def test_speed(browser, tmp_path, measure):
    data = np.float32(RNG.laplace(0.2, 1, 10_000))
    with stage(browser, tmp_path, RangePull(data, 4)) as widget:
        scale = sorted(widget.slider("Scale").set(k)["frame_ms"] for k in range(20, 160, 20))
        zero = sorted(widget.slider("Zero-point").set(k)["frame_ms"] for k in (3, 5, 7, 9, 11))
        measure("range_pull", scale_ms=scale[3], zero_ms=zero[2])
        assert scale[0] < 100 and zero[0] < 250
