"""The affine playground in a browser: what it draws is what Python computes."""

import json

import numpy as np
import pytest
from stage import stage

from minq import affine, integer_grid
from minqbook.widgets import AffinePlayground

# Heights in pixels of the quantized signal, sample by sample: the path is "M x y H x V y H x V y".
HEIGHTS = """root => { const d = root.querySelector('.mq-curve .mq-blue[d*="V"]').getAttribute('d');
    return [...d.matchAll(/(?:M[-\\d.]+ |V)([-\\d.]+)/g)].map(m => Number(m[1])); }"""


def readouts(widget):
    """The numbers under the picture, {name: text}."""
    return widget.evaluate(
        "root => Object.fromEntries([...root.querySelectorAll('.mq-readouts > div')]"
        ".map(d => [d.children[0].textContent, d.children[1].textContent]))"
    )


def number(text):
    """A number as printed for readers, back as a float."""
    text = text.replace("−", "-").replace(",", "").replace("∞", "inf")
    if "×10" in text:
        mantissa, exponent = text.split("×10")
        exponent = exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        text = f"{mantissa}e{exponent}"
    return float(text.split(" ")[0])


def assert_shows(widget, data, scale, zero_point, bits, signed=False):
    """All readouts are those of Python, to the digits that are printed."""
    data = np.float32(data).astype(np.float64)
    x_hat = affine.fake_quantize(data, scale, zero_point, bits, signed=signed)
    low, high = affine.grid_limits(scale, zero_point, bits, signed=signed)
    n, p = integer_grid(bits, signed=signed)
    wide = np.rint(data / scale) + zero_point
    shown = readouts(widget)
    assert number(shown["MSE"]) == pytest.approx(np.mean((data - x_hat) ** 2), rel=6e-3)
    assert number(shown["SQNR"]) == pytest.approx(affine.sqnr(data, x_hat), rel=6e-3, abs=0.01)
    clipped = 100 * np.mean((wide < n) | (wide > p))
    assert number(shown["clipped values"].lstrip("< ")) == pytest.approx(clipped, rel=0.06, abs=0.1)
    assert number(shown["qmin"]) == pytest.approx(float(low), rel=1e-3)
    assert number(shown["qmax"]) == pytest.approx(float(high), rel=1e-3)
    assert number(shown["levels"]) == p - n + 1


def settle(widget):
    """Wait for the redraw, which comes with the next frame."""
    widget.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(0.3, 1, 300).astype(np.float32)


def test_first_state_is_pythons(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4)
    with stage(browser, tmp_path, w) as widget:
        assert_shows(widget, data, w.scale, w.zero_point, 4)
        assert not widget.broken_text()


def test_signal_is_drawn_where_python_puts_it(browser, tmp_path, data):
    """Height in pixels is a straight line in x_hat, to the hundredth of a pixel that is written."""
    w = AffinePlayground(data, bits=4, view="signal")
    with stage(browser, tmp_path, w) as widget:
        for bits in (4, 2, 8):
            widget.slider("Bits").set(bits)
            settle(widget)
            # What is kept is the range of the first grid, not of the data: its ends are rounded.
            low, high = affine.grid_limits(w.scale, w.zero_point, 4)
            scale, z = affine.scale_zero_point(float(low), float(high), bits)
            x_hat = affine.fake_quantize(data.astype(float), scale, int(z), bits)
            heights = np.array(widget.evaluate(HEIGHTS))
            assert heights.shape == x_hat.shape
            line = np.polyfit(x_hat, heights, 1)
            assert line[0] < 0 and np.abs(np.polyval(line, x_hat) - heights).max() < 0.011


def test_bits_keep_the_range_or_the_scale(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4)
    low, high = (float(v) for v in affine.grid_limits(w.scale, w.zero_point, 4))
    with stage(browser, tmp_path, w) as widget:
        widget.slider("Bits").press("ArrowRight", "ArrowRight")
        settle(widget)
        scale, z = (v.item() for v in affine.scale_zero_point(low, high, 6))
        assert_shows(widget, data, scale, z, 6)
        widget.click("the scale")
        widget.slider("Bits").press("ArrowLeft", "ArrowLeft", "ArrowLeft")
        settle(widget)
        z3 = float(np.clip(np.rint(z / 63 * 7), 0, 7))
        assert_shows(widget, data, scale, z3, 3)


def test_signed_only_renames_the_integers(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4)
    with stage(browser, tmp_path, w) as widget:
        before = readouts(widget)
        widget.root.get_by_role("radio", name="signed", exact=True).check(force=True)
        settle(widget)
        assert readouts(widget) == before
        assert widget.slider("Zero-point").value == w.zero_point - 8
        assert_shows(widget, data, w.scale, w.zero_point - 8, 4, signed=True)
        widget.click("unsigned")
        settle(widget)
        assert readouts(widget) == before
        assert widget.slider("Zero-point").value == w.zero_point


def test_a_range_set_by_the_sliders_is_the_one_kept(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4)
    with stage(browser, tmp_path, w) as widget:
        widget.slider("Zero-point").press("End")
        widget.slider("Bits").press("ArrowRight")
        settle(widget)
        low = w.scale * (0 - 15)  # the grid was moved below zero: all of it, and all of the new one
        scale, z = (v.item() for v in affine.scale_zero_point(low, 0.0, 5))
        assert z == 31
        assert_shows(widget, data, scale, z, 5)


def test_symmetric_and_fit(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4, signed=True, scale=0.01)
    with stage(browser, tmp_path, w) as widget:
        widget.click("Fit to data")
        settle(widget)
        low, high = float(min(data.min(), 0)), float(max(data.max(), 0))
        scale, z = (v.item() for v in affine.scale_zero_point(low, high, 4, signed=True))
        assert_shows(widget, data, scale, z, 4, signed=True)
        widget.click("symmetric (z = 0)")
        settle(widget)
        scale, _ = (
            v.item() for v in affine.scale_zero_point(low, high, 4, signed=True, symmetric=True)
        )
        assert_shows(widget, data, scale, 0, 4, signed=True)
        assert not widget.root.get_by_role("slider", name="Zero-point").is_enabled()


@pytest.mark.parametrize("touch", [False, True])
def test_handles_move_by_keys_and_by_pointer(browser, tmp_path, data, touch):
    with stage(browser, tmp_path, AffinePlayground(data, bits=8), touch=touch) as widget:
        for name in ("Upper end", "Lower end"):
            handle = widget.root.get_by_role("slider", name=name).first
            was = handle.get_attribute("aria-valuetext")
            for key in (
                ("ArrowLeft", "PageDown") if name == "Upper end" else ("ArrowRight", "PageUp")
            ):
                handle.press(key)
                settle(widget)
                now = handle.get_attribute("aria-valuetext")
                assert abs(number(now)) < abs(number(was)), (name, key)
                was = now
            box = handle.bounding_box()
            assert box["width"] >= 40 and box["height"] >= 40, "a finger must find it"
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            mouse = widget.root.page.mouse
            mouse.move(x, y)
            mouse.down()
            mouse.move(x + (60 if name == "Upper end" else -60), y, steps=3)
            mouse.up()
            settle(widget)
            assert abs(number(handle.get_attribute("aria-valuetext"))) > abs(number(was))
        assert not widget.broken_text()


def test_the_computation_under_the_pointer(browser, tmp_path, data):
    w = AffinePlayground(data, bits=3)
    with stage(browser, tmp_path, w) as widget:
        for name, key in (("Value x", "Home"), ("Value x", "End"), ("Value x", "ArrowLeft")):
            widget.root.get_by_role("slider", name=name).press(key)
            settle(widget)
            texts = widget.root.locator(".mq-steps b").all_inner_texts()
            x, ratio, rounded, shifted, integer, hat, error = map(number, texts)
            assert ratio == pytest.approx(x / w.scale, rel=2e-3)
            assert abs(rounded - ratio) <= 0.5 and shifted == rounded + w.zero_point
            assert integer == np.clip(shifted, 0, 7)
            assert hat == pytest.approx(w.scale * (integer - w.zero_point), rel=1e-3)
            assert error == pytest.approx(hat - x, abs=1e-3 * abs(x))
            clamped = widget.root.locator(".mq-marked").count() > 0
            assert clamped == (integer != shifted)


EXTREMES = {
    "one value": dict(data=[0.7]),
    "all zero": dict(data=[0.0, 0.0]),
    "tiny": dict(data=[-1e-38, 3e-38], bits=2),
    "huge": dict(data=[-3e38, 3e38], bits=16),
    "far from the grid": dict(data=[1.0, 2.0], scale=1e-40),
    "coarse grid": dict(data=[1.0, 2.0], scale=1e40),
    "negative": dict(data=[-5.0, -1.0], bits=1),
    "no room below zero": dict(data=[-5.0, -1.0], symmetric=True),
    "many": dict(data=np.linspace(-1, 1, 100_000), bits=16, signed=True, symmetric=True),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("view", ["line", "signal"])
def test_extremes_leave_no_broken_text(browser, tmp_path, case, view):
    with stage(
        browser, tmp_path, AffinePlayground(**EXTREMES[case], view=view), width=375
    ) as widget:
        assert not widget.broken_text()
        for slider in widget.sliders():
            slider.press("Home")
            settle(widget)
            assert not widget.broken_text(), slider.label
            slider.press("End")
            settle(widget)
            assert not widget.broken_text(), slider.label
        for button in ("symmetric (z = 0)", "the scale", "Fit to data"):
            widget.click(button)
            settle(widget)
            assert not widget.broken_text(), button
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= 375


def test_text_twins_follow_the_picture(browser, tmp_path, data):
    w = AffinePlayground(data, bits=4, alt="My own words.")
    with stage(browser, tmp_path, w) as widget:
        figure = widget.root.locator("figure.minq-AffinePlayground")
        assert figure.get_attribute("aria-label") == "My own words."
        words = [
            widget.text("figcaption"),
            widget.root.locator("svg").first.get_attribute("aria-label"),
        ]
        widget.slider("Bits").press("Home")
        settle(widget)
        assert widget.text("figcaption") != words[0] and "2 levels" in widget.text("figcaption")
        assert widget.root.locator("svg").first.get_attribute("aria-label") != words[1]
        widget.root.page.wait_for_function(
            "() => document.querySelector('[aria-live=polite]').textContent.includes('2 levels')"
        )


def test_state_reaches_the_model_and_a_view_cleans_up(browser, tmp_path, js):
    """Against a model of Jupyter's kind: many sets, one save; no listener outlives the view."""
    w = AffinePlayground([-1.0, 1.0], bits=4)
    state = {k: v for k, v in w.get_state().items() if not isinstance(v, bytes) and k != "layout"}
    result = js(
        w._esm,
        """async (m, state) => {
            const heard = new Map(), saved = [];
            const data = new DataView(new Float32Array([-1, 1]).buffer);
            const tell = e => { for (const f of heard.get(e) ?? []) f(); };
            const model = {
                get: k => k === 'data' ? data : state[k],
                set: (k, v) => { state[k] = v; tell(`change:${k}`); tell('change'); },
                save_changes: () => saved.push({ ...state }),
                on: (e, f) => heard.set(e, [...(heard.get(e) ?? []), f]),
                off: (e, f) => heard.set(e, (heard.get(e) ?? []).filter(g => g !== f)),
            };
            const el = document.createElement('div'); document.body.append(el);
            const cleanup = m.default.render({ model, el });
            const input = el.querySelector('input[type=range]');
            for (const v of [5, 6, 7]) { input.value = v; input.dispatchEvent(new Event('input')); }
            await new Promise(done => setTimeout(done, 400));
            model.set('scale', 0.125);  // as Python would
            await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
            const spoken = [...el.querySelectorAll('output')].map(o => o.textContent);
            cleanup();
            return { saved: saved.map(s => [s.bits, s.scale, s.zero_point]), spoken,
                left: [...heard.values()].flat().length, html: el.innerHTML };
        }""",
        json.loads(json.dumps(state)),
    )
    low, high = affine.grid_limits(w.scale, w.zero_point, 4)
    scale, z = affine.scale_zero_point(float(low), float(high), 7)
    assert result["saved"] == [[7, float(scale), int(z)]]
    assert result["spoken"][:2] == ["7", "0.125"]
    assert (result["left"], result["html"]) == (0, "")


@pytest.mark.parametrize("dark", [False, True])
def test_colours_contrast_with_their_ground(browser, tmp_path, dark):
    """Words and marks against the surface: 4.5 to 1 for text, 3 to 1 for marks (WCAG 2.2)."""
    with stage(browser, tmp_path, AffinePlayground(), dark=dark) as widget:
        colours = widget.evaluate(
            """root => { const s = getComputedStyle(root.querySelector('.minq'));
            const names = 'surface ink soft blue red green purple yellow'.split(' ');
            return Object.fromEntries(names.map(
                n => [n, s.getPropertyValue(`--mq-${n}`).trim()])); }"""
        )

    def luminance(colour):
        v = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        v = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        return v @ [0.2126, 0.7152, 0.0722]

    ground = luminance(colours.pop("surface"))
    for name, colour in colours.items():
        light, dim = max(luminance(colour), ground), min(luminance(colour), ground)
        least = 3 if name in ("yellow", "purple") else 4.5
        assert (light + 0.05) / (dim + 0.05) >= least, name
    assert (ground < 0.1) == dark
