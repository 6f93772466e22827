"""The map of outliers in a browser: it shows what Python computes."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq.ranges import channel_groups
from minqbook.widgets import OutlierMap
from minqbook.widgets.bundle import bundle

ROWS, CHANNELS = 7, 48
TOKENS = ["[CLS]", "a", "cat", "sat", "down", ".", "[SEP]"]


def activations(seed=0):
    x = np.random.default_rng(seed).normal(size=(ROWS, CHANNELS))
    x[0, 17], x[:, 30] = 223.8, -20 - x[:, 30] / 5
    return x


def outliers(**traits):
    return OutlierMap({"sums": activations(), "norms": activations(1) / 9}, TOKENS, **traits)


def assert_shows(widget, twin):
    settle(widget)
    assert not widget.broken_text()
    shown, want = readouts(widget), twin.result()
    assert number(shown["SQNR, median token"]) == pytest.approx(want["typical"], rel=6e-3)
    assert number(shown["SQNR of all values"]) == pytest.approx(want["sqnr"], rel=6e-3)
    assert number(shown["rounding error"]) == pytest.approx(want["rounding"], rel=6e-3)
    assert number(shown["clipping error"]) == pytest.approx(want["clipping"], rel=6e-3, abs=1e-12)
    assert number(shown["integers used"]) == want["levels"]
    x_int = int(want["x_int"][twin.token, twin.channel])
    assert f"int{x_int}" in widget.text(".mq-steps").replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("width", [390, 800])
def test_it_shows_what_python_computes(browser, tmp_path, width):
    twin = outliers()
    with stage(browser, tmp_path, twin, width=width, touch=width < 400) as widget:
        assert_shows(widget, twin)
        clip, bits, groups = map(widget.slider, ("Range kept", "Bits", "Groups"))
        for share in (0.3, 0.05, 1.0):
            notches = clip.limits[1]  # of equal ratios, from 0.5 % to all of the range
            clip.set(round(notches * (1 + np.log(share) / np.log(200))))
            twin.clip = float(f"{0.005 * 200 ** (clip.value / notches):.3g}")
            assert_shows(widget, twin)
        for place, many in ((1, 2), (2, 3), (8, CHANNELS)):
            groups.set(place)
            twin.groups = many
            assert_shows(widget, twin)
        bits.press("Home")
        twin.bits = 4
        assert_shows(widget, twin)
        widget.choose("Activation", "norms")
        twin.tensor = 1
        assert_shows(widget, twin)
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_dragging_the_end_of_the_grid_clips(browser, tmp_path):
    with stage(browser, tmp_path, outliers(), dark=True) as widget:
        before = number(readouts(widget)["clipping error"])
        widget.slider("End of the widest range").press("PageDown")
        settle(widget)
        after = number(readouts(widget)["clipping error"])
        assert before == 0 < after
        assert "90 %" in widget.slider("Range kept").spoken


def test_a_tap_on_the_map_picks_token_and_channel(browser, tmp_path):
    twin = outliers()
    with stage(browser, tmp_path, twin, width=390, touch=True) as widget:
        box = widget.root.locator(".mq-map image").first.bounding_box()
        x, y = box["x"] + box["width"] * 30.5 / CHANNELS, box["y"] + box["height"] * 4.5 / ROWS
        widget.root.page.touchscreen.tap(x, y)
        settle(widget)
        assert (
            widget.slider("Picked channel").value == 30 and widget.slider("Picked token").value == 4
        )
        twin.token, twin.channel = 4, 30
        assert_shows(widget, twin)


def test_the_maps_pixels_are_the_values(browser, tmp_path):
    """Red of each pixel of the upper map, from the raised background to full ink."""
    read = """async root => { const image = new Image(); image.src =
        root.querySelector('.mq-map image').getAttribute('href'); await image.decode();
        const c = document.createElement('canvas').getContext('2d'); c.drawImage(image, 0, 0);
        const d = c.getImageData(0, 0, image.width, image.height).data;
        return [image.width, image.height, Array.from(d).filter((_, k) => k % 4 === 0)]; }"""
    with stage(browser, tmp_path, outliers()) as widget:
        width, height, red = widget.evaluate(read)
        assert (width, height) == (CHANNELS, ROWS)
        x = np.abs(outliers().values[0].astype(float))
        shade = np.minimum(x / np.sort(x.ravel())[int(0.99 * x.size)], 1)
        red = np.array(red).reshape(ROWS, CHANNELS)
        assert np.abs(red - (0xF4 + shade * (0x1C - 0xF4))).max() <= 1


def test_parity(js):
    rng = np.random.default_rng(3)
    source = bundle("outlier_map.js") + "\nexport { channelGroups, cover, halves };"
    widths = [(rng.pareto(1, n) ** e).tolist() for n, e in ((1, 1), (9, 1), (40, 2), (96, 3))]
    cases = [(v, k) for v in [*widths, [0.0] * 5, [1.0] * 8] for k in (1, 2, 3, 7) if k <= len(v)]
    got = js(source, "(m, cases) => cases.map(([v, k]) => [...m.channelGroups(v, k)])", cases)
    assert got == [channel_groups(v, k).tolist() for v, k in cases]

    twin = outliers()
    run = """(m, [raw, channels, cases]) => { const x = m.halves(new DataView(
        Uint8Array.from(raw).buffer)).subarray(0, raw.length / 4); return cases.map(q => {
        const g = m.cover(x, channels, q); return { int: [...g.int], hat: [...g.hat],
        typical: g.typical, sqnr: g.sqnr, rounding: g.rounding, clipping: g.clipping,
        clipped: g.clipped }; }); }"""
    cases = [
        {"bits": bits, "groups": groups, "clip": clip}
        for bits in (4, 8, 16)
        for groups in (1, 2, 5, CHANNELS)
        for clip in (1.0, 0.37, 0.01)
    ]
    for case, seen in zip(cases, js(source, run, [list(twin.data), CHANNELS, cases]), strict=True):
        for name, value in case.items():
            setattr(twin, name, value)
        want = twin.result()
        assert seen["int"] == want["x_int"].ravel().tolist()
        np.testing.assert_array_equal(seen["hat"], want["x_hat"].ravel())
        for key in ("typical", "sqnr", "rounding", "clipping", "clipped"):
            assert seen[key] == pytest.approx(want[key], rel=1e-9, abs=1e-15)
