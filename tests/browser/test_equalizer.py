"""The equalizer in a browser: its ranges, SQNRs and outputs are those of Python, for any scales."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine
from minqbook.widgets import Equalizer
from minqbook.widgets.bundle import bundle

KNOB = "[role=slider][aria-label^='Range of the channel']"
VALUE = f'root => +root.querySelector("{KNOB}").ariaValueNow'
BUTTONS = ["Equalize this channel", "Equalize all", "Reset"]


def layers(channels=8, kernel=9, outputs=5, rows=20, depthwise=True, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=(2, channels)))
    w1 = rng.normal(size=(channels, kernel)) * spread[0, :, None]
    w2 = rng.normal(size=(outputs, channels)) * spread[1]
    x = np.abs(rng.normal(size=(rows, channels, kernel) if depthwise else (rows, kernel)))
    return tuple(np.float32(a) for a in (w1, w2, rng.normal(size=channels), x))


def rounded(w, bits):
    """min-max, symmetric, one scale; and its SQNR."""
    grid = dict(signed=True, symmetric=True)
    scale, _ = affine.scale_zero_point(w.min(), w.max(), bits, **grid)
    hat = affine.fake_quantize(w, scale, 0, bits, signed=True)
    return hat, float(affine.sqnr(w, hat))


def output(x, w1, b1, w2):
    pre = np.einsum("nck,ck->nc" if x.ndim == 3 else "nk,ck->nc", x, w1) + b1
    return np.maximum(pre, 0) @ w2.T


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_assessment_is_pythons(js, depthwise, bits):
    w1, w2, b1, x = layers(depthwise=depthwise, seed=bits)
    s = np.exp(np.random.default_rng(1).normal(size=8))
    w = Equalizer(w1, w2, b1, x, scales=s)
    packed = np.frombuffer(w.data, "<f4").astype(float).tolist()
    source = bundle("equalizer.js") + "\nexport { unpackPair, assess, equalScales };"
    call = """(m, [data, sizes, depthwise, s, bits]) => {
        const P = m.unpackPair(data, sizes, depthwise), g = m.assess(P, s, bits);
        const pair = Object.values(g.pair).map(a => [...a]);
        return { ...g, pair, goal: m.equalScales(P.r1, P.r2) };
    }"""
    got = js(source, call, [packed, w.sizes, depthwise, s.tolist(), bits])
    n1, c1, n2 = w.pair
    for mine, theirs in zip(got["pair"], (n1, c1, n2), strict=True):
        assert mine == theirs.ravel().tolist()  # the same divisions: the same bits
    (h1, q1), (h2, q2) = rounded(n1, bits), rounded(n2, bits)
    assert got["r1"] == w.ranges[0].tolist() and got["r2"] == w.ranges[1].tolist()
    assert (got["w1"], got["w2"]) == (pytest.approx(q1, abs=1e-9), pytest.approx(q2, abs=1e-9))
    xf = x.astype(float)
    y = output(xf, *(a.astype(float) for a in (w1, b1, w2)))
    assert got["y"] == pytest.approx(affine.sqnr(y, output(xf, h1, c1, h2)), abs=1e-9)
    # The function is the same: what moves is float64 rounding, 2^-53 of all that is added up.
    size = output(xf, *(np.abs(a.astype(float)) for a in (w1, b1, w2)))
    assert 0 < got["moved"] <= size.max() * (w1.shape[1] + 13) * 2**-53
    equal = np.sqrt(np.abs(w1.astype(float)).max(1) / np.abs(w2.astype(float)).max(0))
    np.testing.assert_allclose(got["goal"], equal, rtol=1e-12)


def test_scales_are_those_of_the_library(js):
    pytest.importorskip("torch")
    from minq.ptq.equalize import equalization_scales

    r1, r2 = [8.0, 1.0, 0.0, 3.0, 1e-300], [2.0, 4.0, 5.0, 0.0, 1e300]
    got = js(bundle("equalizer.js") + "\nexport { equalScales };",
             "(m, [a, b]) => m.equalScales(a, b)", [r1, r2])  # fmt: skip
    assert got == equalization_scales(np.array(r1), np.array(r2)).tolist()


def assert_shows(widget, w):
    """The readouts are those of the scales in the Python twin `w`, at its channel."""
    settle(widget)
    shown, c = readouts(widget), w.channel
    assert number(shown["scale s of the channel"]) == pytest.approx(w.scales[c], rel=6e-3)
    assert number(shown["its range in layer 1"]) == pytest.approx(w.ranges[0][c], rel=6e-3)
    assert number(shown["its range in layer 2"]) == pytest.approx(w.ranges[1][c], rel=6e-3)
    assert number(shown["largest change of y"]) < 1e-12
    x, (w1, b1, w2) = w.arrays[3].astype(float), w.pair
    y_hat = output(x, rounded(w1, w.bits)[0], b1, rounded(w2, w.bits)[0])
    sqnr = float(affine.sqnr(output(x, w1, b1, w2), y_hat))
    assert number(shown["SQNR of quantized y"]) == pytest.approx(sqnr, rel=6e-3, abs=0.01)
    assert not widget.broken_text()


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("width", [800, 375])
def test_buttons_sliders_and_handle(browser, tmp_path, log, width):
    w = Equalizer(*layers(), log=log)
    equal = np.sqrt(w.ranges[0] / w.ranges[1]).tolist()
    with stage(browser, tmp_path, w, width=width) as widget:
        assert_shows(widget, w)
        button = {b: widget.root.get_by_role("button", name=b) for b in BUTTONS}
        assert button["Reset"].is_disabled()
        widget.click("Equalize this channel")
        w.scales = [e if i == w.channel else 1.0 for i, e in enumerate(equal)]
        assert_shows(widget, w)
        assert w.ranges[0][w.channel] == pytest.approx(w.ranges[1][w.channel])
        widget.click("Equalize all")
        w.scales = equal
        for w.channel in range(8):
            widget.slider("Channel").set(w.channel)
            assert_shows(widget, w)
        assert button["Equalize all"].is_disabled() and "equal." in widget.text(".mq-caption")
        for w.bits, key in ((7, "ArrowLeft"), (2, "Home"), (8, "End")):
            widget.slider("Bits").press(key)
            assert_shows(widget, w)
        widget.click("Reset")
        w.scales = [1.0] * 8
        assert_shows(widget, w)
        # The handle: up is more range in layer 1, by 5 % of an octave a step.
        for key, octaves in (("ArrowUp", 0.05), ("PageDown", -0.45)):
            widget.root.locator(KNOB).press(key)
            w.scales = [1.0] * 7 + [2**-octaves]
            assert_shows(widget, w)
        for key in ("Home", "End"):
            widget.root.locator(KNOB).press(key)
            settle(widget)
            range1 = number(readouts(widget)["its range in layer 1"])
            assert widget.evaluate(VALUE) == pytest.approx(np.log2(range1), abs=0.01)
        widget.slider("Its scale").press("Home")
        settle(widget)
        low = number(readouts(widget)["scale s of the channel"])
        widget.slider("Its scale").press("End")
        settle(widget)
        assert number(readouts(widget)["scale s of the channel"]) > 20 * low
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_drag_and_click(browser, tmp_path):
    w = Equalizer(*layers())
    with stage(browser, tmp_path, w) as widget:
        knob, mouse = widget.root.locator(KNOB), widget.root.page.mouse
        before = readouts(widget)
        box = knob.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x, y)
        mouse.down()
        mouse.move(x, y + 50, steps=4)
        mouse.up()
        settle(widget)
        after = readouts(widget)
        one, two = ("its range in layer 1", "its range in layer 2")
        shrunk = number(before[one]) / number(after[one])
        grown = number(after[two]) / number(before[two])
        assert shrunk > 1.3 and grown == pytest.approx(shrunk, rel=0.02)
        assert f"Channel {w.channel}:" in widget.text("figcaption")  # a drag picks no other one
        plot = widget.root.locator("svg").first.bounding_box()
        mouse.click(plot["x"] + 44 + (plot["width"] - 56) * 2.5 / 8, plot["y"] + 120)
        settle(widget)
        assert widget.slider("Channel").value == 2 and "Channel 2:" in widget.text("figcaption")


def test_gliding_ends_where_it_should(browser, tmp_path):
    w = Equalizer(*layers())
    with stage(browser, tmp_path, w) as widget:
        widget.root.page.emulate_media(reduced_motion="no-preference")
        widget.click("Equalize all")
        done = widget.root.get_by_role("button", name="Equalize all", disabled=True)
        done.wait_for(timeout=5000)
        w.scales = np.sqrt(w.ranges[0] / w.ranges[1]).tolist()
        assert_shows(widget, w)


@pytest.mark.parametrize("dark", [False, True])
def test_dead_channels_and_no_inputs(browser, tmp_path, dark):
    w1, w2, b1, _ = layers(channels=4)
    w1[1] = 0
    w2[:, 2] = 1e-9
    with stage(browser, tmp_path, Equalizer(w1, w2, b1, channel=1), dark=dark, width=375) as widget:
        assert "dead" in widget.text(".mq-caption") and not widget.broken_text()
        assert not widget.root.get_by_role("slider", name="Its scale").is_enabled()
        assert "largest change of y" not in readouts(widget)
        widget.click("Equalize all")
        settle(widget)
        assert number(readouts(widget)["scale s of the channel"]) == 1  # no range: nothing to move
        for channel in (2, 3):
            widget.slider("Channel").set(channel)
            settle(widget)
            assert not widget.broken_text()


@pytest.mark.parametrize("w1", [[[1.0]], [[1e-30], [3e-30]], [[1e30], [1e-30], [2.0]]], ids=str)
def test_odd_layers(browser, tmp_path, w1):
    w = Equalizer(w1, [[2.0] * len(w1)], inputs=np.ones((1, len(w1), 1)))
    with stage(browser, tmp_path, w, width=320) as widget:
        for button in ("linear", *BUTTONS, "logarithmic"):
            name = widget.root.get_by_role("button", name=button)
            if not name.count() or name.is_enabled():
                widget.click(button)
            settle(widget)
            assert not widget.broken_text()


def test_speed(browser, tmp_path, measure):
    with stage(browser, tmp_path, Equalizer(*layers(32, 9, 16, 64))) as widget:
        times = [widget.slider("Its scale").set(k * 5)["frame_ms"] for k in range(12)]
        measure("equalizer", scale_ms=sorted(times)[6])
        assert min(times) < 100
