"""The range trade-off in a browser: its numbers, its curves and its optimum are Python's."""

import json

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine, integer_grid
from minqbook.widgets import RangeTradeoff
from minqbook.widgets.bundle import bundle

# Press keys on a handle, or move a slider to values, and time each from its frame to the next task.
TIMED = """async (root, [selector, keys]) => {
    const knob = root.querySelector(selector), times = [];
    const turn = () => new Promise(done => requestAnimationFrame(
        start => setTimeout(() => done(performance.now() - start))));
    for (const key of keys) {
        const wait = turn();
        if (knob.matches('input')) knob.value = key;
        const event = knob.matches('input') ? new Event('input', { bubbles: true })
            : new KeyboardEvent('keydown', { key, bubbles: true });
        knob.dispatchEvent(event);
        times.push(await wait);
    }
    return times.sort((a, b) => a - b);
}"""
CURVES = "root => root.querySelectorAll('.mq-curves [clip-path]').length"


def sample(kind="weights", size=3000):
    rng = np.random.default_rng(1)
    x = rng.standard_t(4, size)
    shapes = {
        "weights": x,
        "relu": np.maximum(x, 0),
        "skew": x / (1 + np.exp(-2 * x)),
        "minus": -(x**2),
    }
    return np.float32(shapes[kind])


def ends(widget):
    """The range shown: the values of the two handles, in full precision."""
    value = "(root, name) => +root.querySelector(`[aria-label^='${name} end']`).ariaValueNow"
    return widget.evaluate(value, "Lower"), widget.evaluate(value, "Upper")


def errors(x, grid, bits, signed):
    """Mean squares of rounding and clipping, and the share clipped, by their definitions."""
    x, (n, p) = x.astype(np.float64), integer_grid(bits, signed=signed)
    square = (x - affine.fake_quantize(x, *grid, bits, signed=signed)) ** 2
    wide = np.rint(x / grid[0]) + grid[1]
    off = (wide < n) | (wide > p)
    return square[~off].sum() / x.size, square[off].sum() / x.size, off.mean()


def assert_shows(widget, twin):
    settle(widget)
    twin.low, twin.high = ends(widget)
    x = twin.values
    rounding, clipping, off = errors(x, twin.grid, twin.bits, twin.signed)
    shown = readouts(widget)
    assert number(shown["rounding MSE"]) == pytest.approx(rounding, rel=6e-3)
    assert number(shown["clipping MSE"]) == pytest.approx(clipping, rel=6e-3)
    assert number(shown["total MSE"]) == pytest.approx(rounding + clipping, rel=6e-3)
    sqnr = affine.sqnr(x.astype(float), twin.x_hat)
    assert number(shown["SQNR"]) == pytest.approx(sqnr, abs=0.06)
    clipped = number(shown["clipped values"].lstrip("< "))
    assert clipped == pytest.approx(100 * off, rel=0.06, abs=0.1)
    assert number(shown["scale s"]) == pytest.approx(twin.grid[0], rel=6e-3)
    assert not widget.broken_text()


@pytest.mark.parametrize(
    ("kind", "symmetric"),
    [("weights", True), ("relu", False), ("relu", True), ("skew", False), ("minus", False)],
)
def test_keys_and_mouse_move_the_range(browser, tmp_path, kind, symmetric):
    twin = RangeTradeoff(sample(kind), bits=4, symmetric=symmetric)
    with stage(browser, tmp_path, twin) as widget:
        assert_shows(widget, twin)
        for name in ("Lower end", "Upper end", "Width"):
            handle = widget.root.get_by_role("slider", name=name)
            if not handle.is_visible():
                assert ends(widget)[name == "Upper end"] == 0  # one-sided data: that end is 0
                continue
            seen = set()
            for key in ("PageDown", "ArrowUp", "Home", "PageUp", "End", "ArrowLeft"):
                handle.press(key)
                assert_shows(widget, twin)
                seen.add(ends(widget))
            assert len(seen) >= 5, name
            low, high = ends(widget)
            assert low <= 0 <= high and (low in (-high, 0) or not symmetric)
            handle.scroll_into_view_if_needed()
            box, mouse = handle.bounding_box(), widget.root.page.mouse
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            mouse.move(x, y)
            mouse.down()
            mouse.move(x + (60 if name == "Lower end" else -60), y, steps=3)
            mouse.up()
            assert_shows(widget, twin)
            assert ends(widget) != (low, high)
        for key, bits in (("End", 8), ("Home", 2), ("ArrowRight", 3)):
            widget.slider("Bits").press(key)
            twin.bits = bits
            assert_shows(widget, twin)
        other = "asymmetric" if symmetric else "symmetric"
        widget.root.get_by_role("radio", name=other, exact=True).click()
        twin.symmetric = not symmetric
        assert_shows(widget, twin)
        widget.click("Go to min–max")
        assert_shows(widget, twin)
        start = RangeTradeoff(sample(kind), symmetric=not symmetric)
        assert ends(widget) == pytest.approx((start.low, start.high))


def test_the_reader_looks_first(browser, tmp_path):
    twin = RangeTradeoff(sample(), bits=4, reveal=False)
    with stage(browser, tmp_path, twin, dark=True, width=375) as widget:
        assert widget.evaluate(CURVES) == 0 and "short of" not in widget.text(".mq-caption")
        assert widget.root.get_by_role("button", name="Go to the optimum").is_disabled()
        for _ in range(3):
            widget.root.get_by_role("slider", name="Upper end").press("PageDown")
            assert_shows(widget, twin)
        tried = widget.root.locator(".mq-tried circle").count()
        assert tried == 4, "each range tried leaves a dot"
        mine = number(readouts(widget)["SQNR"])
        widget.click("Show the optimum")
        settle(widget)
        assert widget.evaluate(CURVES) == 3
        words = widget.text(".mq-caption")
        assert "Your range" in words and "dB short of the best" in words
        missing = float(words.split(" was ")[1].split(" dB")[0])
        widget.click("Go to the optimum")
        assert_shows(widget, twin)
        assert number(readouts(widget)["SQNR"]) - mine == pytest.approx(missing, abs=0.15)
        widget.click("Hide the optimum")
        settle(widget)
        assert widget.evaluate(CURVES) == 0 and "Your range" not in widget.text(".mq-caption")


def swept(js, x, bits, symmetric):
    source = bundle("range_tradeoff.js") + "\nexport { prepare, sweep };"
    call = "(m, [x, bits, symmetric]) => m.sweep(m.prepare(x), bits, symmetric)"
    return js(source, call, [x.tolist(), bits, symmetric])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["weights", "relu", "skew", "minus"])
def test_curves_are_the_errors_that_python_finds(js, kind, symmetric, bits):
    """The page sums over sorted values; Python quantizes each one, at every width of the curve."""
    x = sample(kind, 1000).astype(np.float64)
    signed = symmetric and x.min() < 0
    found = swept(js, x, bits, symmetric)
    for g in [*found["curve"][::5], found["best"]]:
        rounding, clipping, _ = errors(x, (g["s"], g["z"]), bits, signed)
        # Ties at the ends of the grid may count as either; their sum is the same.
        assert g["mse"] == pytest.approx(rounding + clipping, rel=1e-9)
        assert g["rounding"] == pytest.approx(rounding, rel=1e-6, abs=1e-9 * g["mse"])
        # The ends that the page offers give that very grid.
        how = dict(signed=signed, symmetric=symmetric)
        scale, z = affine.scale_zero_point(g["low"], g["high"], bits, **how)
        assert (float(scale), int(z)) == (pytest.approx(g["s"], rel=1e-12), g["z"])
        if not symmetric and bits < 8:  # no other zero-point does better at this scale
            others = [sum(errors(x, (g["s"], z), bits, False)[:2]) for z in range(2**bits)]
            assert g["mse"] == pytest.approx(min(others), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["weights", "relu", "skew"])
def test_the_optimum_is_that_of_an_exhaustive_search(js, kind, symmetric, bits):
    """Within 0.02 dB of 2,000 widths at all zero-points (every fourth at 8 bits)."""
    x = sample(kind, 400).astype(np.float64)
    signed = symmetric and x.min() < 0
    n, p = integer_grid(bits, signed=signed)
    low, high = min(x.min(), 0), max(x.max(), 0)
    widest = max(-low, high) / p if symmetric else (high - low) / (p - n)
    scales = widest * np.geomspace(1 / 256, 1.25, 2000)
    least = np.inf
    for z in [0] if symmetric else range(0, p + 1, 4 if bits == 8 else 1):
        q = np.clip(np.rint(x / scales[:, None]) + z, n, p) - z
        least = min(least, ((x - scales[:, None] * q) ** 2).mean(axis=1).min())
    best = swept(js, x, bits, symmetric)["best"]
    assert 10 * np.log10(best["mse"] / least) <= 0.02


def test_speed(browser, tmp_path, measure):
    """20,000 values, 8 bits: what a move of a handle and a change of bits cost."""
    with stage(browser, tmp_path, RangeTradeoff(sample(size=20_000), bits=8)) as widget:
        move = widget.evaluate(TIMED, ["[aria-label^=Upper]", ["ArrowLeft"] * 30])
        bits = widget.evaluate(TIMED, ["input", [7, 6, 5, 4, 3, 2]])
        measure("range-tradeoff", handle_ms=move[15], handle_worst=move[-1], first_bits_ms=bits[-1])
        assert move[0] < 50 and bits[-1] < 500, json.dumps([move, bits])


@pytest.mark.parametrize(
    "data", [[1.0], [-1e-30, 2e-30], [3e38, -3e38, 0.0], [0.0] * 50 + [-1e-3, 1e3]], ids=str
)
def test_odd_data(browser, tmp_path, data):
    twin = RangeTradeoff(data)
    with stage(browser, tmp_path, twin, width=320) as widget:
        for key, twin.bits in (("Home", 2), ("End", 8)):
            widget.slider("Bits").press(key)
            for twin.symmetric, name in ((True, "symmetric"), (False, "asymmetric")):
                widget.root.get_by_role("radio", name=name, exact=True).click()
                for where in ("optimum", "min–max"):
                    widget.click(f"Go to {'the ' * (where == 'optimum')}{where}")
                    settle(widget)
                    twin.low, twin.high = ends(widget)
                    assert number(readouts(widget)["scale s"]) == pytest.approx(
                        twin.grid[0], rel=6e-3
                    )
                    assert not widget.broken_text()
