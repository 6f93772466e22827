"""The two paths in a browser: every number on the page is Python's, whatever is picked."""

from functools import cache

import numpy as np
import pytest
from stage import stage
from test_affine_playground import readouts, settle

pytest.importorskip("torch")
import torch
from torch import nn

import minq
from minq.mac import fixed_point_multiplier, requantize
from minqbook.widgets import TwoPaths
from minqbook.widgets.bundle import bundle
from minqbook.widgets.two_paths import FLOATS

NAMES = ["toHalf", "fixedPoint", "shifted", "openLayer", "onDevice", "simulated", "tieDistances"]
SOURCE = bundle("two_paths.js") + f"\nexport {{ {', '.join(NAMES)}, ROUND }};"
LAYERS = {"0": "stem, 3×3", "2": "depthwise, 5×5", "4": "1×1", "8": "linear"}
RNG = np.random.default_rng(0)


class Net(nn.Sequential):
    """A stem with padding and a zero-point, a depthwise layer, a linear one."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU6(), nn.Conv2d(6, 6, 5, padding=2, groups=6),
            nn.ReLU(), nn.Conv2d(6, 8, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, 7),
        )  # fmt: skip


@cache
def network(per_channel=False):
    torch.manual_seed(0)
    data = torch.randn(8, 3, 16, 16)
    how = {"rounding": "nearest", "progress": False, "per_channel": per_channel}
    return minq.ptq(Net().eval(), data, equalize=False, **how), data[:1]


def paths(**traits):
    return TwoPaths(*network(), LAYERS, **traits)


def numbers(widget):
    """What the table ends with: the device's integer, the simulation's, and the verdict."""
    ends = widget.evaluate("root => [...root.querySelectorAll('.two-end')].map(e => e.innerText)")
    verdict = widget.text(".two-table tfoot tr:last-child td[colspan]")
    return *(int(v.replace("−", "-")) for v in ends), verdict


def assert_shows(widget, w, o, r, c):
    settle(widget)
    device, floats = w.device(), w.simulated()
    first, second, verdict = numbers(widget)
    assert (first, second) == (device[o, r, c], floats[o, r, c])
    apart = abs(first - second)
    assert verdict == (
        "the same integer" if not apart else f"{apart} step{'s' * (apart > 1)} apart"
    )
    equal, shown = device == floats, readouts(widget)
    assert shown["this channel agrees"] == f"{equal[o].sum()} of {equal[o].size}"
    assert shown["whole layer agrees"] == f"{equal.sum()} of {equal.size}"
    flat = device[o].size == 1
    assert widget.root.locator(".two-bad").count() == (~(equal if flat else equal[o])).sum()
    assert not widget.broken_text()


def test_half_precision_is_numpys(js):
    ties = np.arange(1, 400) / 2**26 * 2.0 ** RNG.integers(-1, 38, 399)
    wide = RNG.normal(size=3000) * 10.0 ** RNG.integers(-9, 6, 3000)
    halves = np.linspace(1, 2, 2049)[1::2] * 2.0 ** RNG.integers(-15, 15, 1024)
    x = np.concatenate([ties, wide, halves, -halves, [0, 65504, 65519.99, 65520, 1e9, -65520]])
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(float)
    got = js(SOURCE, "(m, x) => x.map(v => String(m.toHalf(v)))", x.tolist())
    assert [float(v.replace("Infinity", "inf")) for v in got] == want.tolist()


def test_requantization_is_the_librarys(js):
    ratios = np.exp(RNG.uniform(-25, 10, 400)).tolist() + [2.0**-k for k in range(20)]
    ratios += [1 - 2.0**-40, 0.75, 1.0 - 2.0**-31, 1 - 2.0**-33]
    got = js(SOURCE, "(m, r) => r.map(m.fixedPoint)", ratios)
    assert got == [list(fixed_point_multiplier(r)) for r in ratios]
    acc = np.concatenate([RNG.integers(-(2**31), 2**31, 200), np.arange(-40, 40), [2**31 - 1]])
    call = """(m, [acc, ratios]) => ratios.map(r => acc.map(a => {
        const s = m.shifted(a, m.fixedPoint(r)); return [s.y, String(s.product)]; }))"""
    few = [2.0**-1, 2.0**-3, 0.0123, 0.0007, 1.5 * 2**-20, 3e-9]  # 1/2 and 1/8 meet ties
    for ratio, rows in zip(few, js(SOURCE, call, [acc.tolist(), few]), strict=True):
        multiplier, _ = fixed_point_multiplier(ratio)
        assert [int(p) for _, p in rows] == [int(a) * multiplier for a in acc]
        y = requantize(acc, ratio, 0, 16, signed=True, rounding="half_even")
        assert np.clip([v for v, _ in rows], -(2**15), 2**15 - 1).tolist() == y.tolist()


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_both_paths_are_pythons(js, per_channel):
    w = TwoPaths(*network(per_channel), LAYERS)
    call = """(m, [metas, data]) => metas.map(meta => {
        const L = m.openLayer(meta, Uint8Array.from(data)), D = m.onDevice(L);
        const out = { device: [...D.y], acc: [...D.acc], ties: [...m.tieDistances(L, D.acc)] };
        for (const k of ['double', 'single', 'half']) out[k] = [...m.simulated(L, m.ROUND[k]).y];
        return out; })"""
    got = js(SOURCE, call, [w.layers, list(w.data)])
    for w.layer, page in enumerate(got):
        assert page["device"] == w.device().ravel().tolist()
        for w.floats in FLOATS:
            assert page[w.floats] == w.simulated().ravel().tolist(), (w.layer, w.floats)
        layer = w.layers[w.layer]
        acc = np.reshape(page["acc"], (layer["out"][0], -1))
        steps = acc * np.reshape(layer["s_w"], (-1, 1)) * layer["s_x"] / layer["s_y"]
        inside = (steps + layer["z_y"] > 0.5) & (steps + layer["z_y"] < 254.5)
        to_tie = abs(steps - np.floor(steps) - 0.5)
        ties = np.reshape(page["ties"], acc.shape)
        relu = layer["limits"][0][0] == 0
        inside &= (steps > 0.5) | (not relu)
        np.testing.assert_allclose(ties[inside], to_tie[inside], atol=1e-9)
        assert inside.sum() > 6 and (ties[~inside] >= to_tie[~inside] - 1e-9).all()


@pytest.mark.parametrize(("width", "dark"), [(800, False), (375, True)])
def test_picking(browser, tmp_path, width, dark):
    w = paths()
    with stage(browser, tmp_path, w, width=width, dark=dark) as widget:
        o, r, c = w.channel, w.row, w.column
        assert_shows(widget, w, o, r, c)
        cursor = widget.root.get_by_role("slider", name="Place in the output")
        for key, place in (("Home", (0, 0)), ("ArrowRight", (0, 1)), ("ArrowDown", (1, 1)),
                           ("ArrowUp", (0, 1)), ("ArrowLeft", (0, 0)), ("End", (7, 7)),
                           ("ArrowDown", (7, 7))):  # fmt: skip
            cursor.press(key)
            settle(widget)
            assert f"row {place[0] + 1}, column {place[1] + 1}" in widget.text(".two-table caption")
        assert_shows(widget, w, o, 7, 7)
        widget.slider("Output channel").set(2)
        assert_shows(widget, w, 2, 7, 7)
        box = widget.root.locator(".two-map .mq-cells").bounding_box()
        mouse, size = widget.root.page.mouse, box["width"] / 8
        mouse.click(box["x"] + 4.5 * size, box["y"] + 2.5 * size)
        assert_shows(widget, w, 2, 2, 4)
        # Products: by keyboard on the curve, and by pointer in the grids.
        handle = widget.root.get_by_role("slider", name="Product")
        handle.press("Home")
        handle.press("ArrowRight")
        settle(widget)
        assert "2 of 27" in widget.text(".two-table tbody tr")
        (x, weight), layer = w._integers, w.layers[0]
        top, left = 2 * 2 - 1, 4 * 2 - 1
        product = widget.text(".two-table tbody td").split("\n")[-1]
        value = int(weight[2].ravel()[1]) * int(x[0, top, left + 1])
        assert product.endswith(f"{value:,}".replace("-", "−")) and layer["padding"] == [1, 1]
        grids = widget.root.locator(".mq-grids .two-frame").last
        grids.scroll_into_view_if_needed()
        box = grids.bounding_box()
        mouse.click(box["x"] + box["width"] / 2, box["y"] + 1.5 * box["height"])
        settle(widget)
        assert "5 of 27" in widget.text(".two-table tbody tr")


def test_layers_and_precisions(browser, tmp_path):
    w = paths()
    with stage(browser, tmp_path, w, width=390, touch=True) as widget:
        for k, title in enumerate(LAYERS.values()):
            widget.root.get_by_role("radio", name=title, exact=True).tap()
            w.layer = k
            o, r, c, _ = w.layers[k]["start"]
            for w.floats in FLOATS:
                widget.root.get_by_role("radio", name=w.floats, exact=True).tap()
                assert_shows(widget, w, o, r, c)
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= 390
        widget.root.locator(".two-map .mq-cells text").nth(2).tap()  # of the linear layer
        assert_shows(widget, w, 2, 0, 0)


def test_nearest_tie_and_differences(browser, tmp_path):
    w = paths(floats="half", layer=1)
    with stage(browser, tmp_path, w) as widget:
        device, floats = w.device(), w.simulated()
        bad = np.flatnonzero(device != floats)
        assert len(bad) > 1
        place = np.ravel_multi_index((w.channel, w.row, w.column), device.shape)
        for _ in range(3):  # one after the other, in a circle
            widget.click("Next that differs")
            place = bad[bad > place][0] if (bad > place).any() else bad[0]
            assert_shows(widget, w, *np.unravel_index(place, device.shape))
            assert "enough to round the other way" in widget.text(".mq-caption")
        widget.click("double")
        settle(widget)
        w.floats = "double"
        assert widget.root.get_by_role("button", name="Next that differs").is_disabled()
        widget.click("Nearest to a tie")
        settle(widget)
        layer, (x, weight) = w.layers[1], w._integers
        assert layer["groups"] == 6 and layer["z_x"] == 0
        pads = [(0, 0), (2, 2), (2, 2)]
        views = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), (5, 5), (1, 2))
        acc = np.einsum("chwij,cij->chw", views, weight[:, 0].astype(int))
        acc = acc + np.reshape(layer["bias"], (-1, 1, 1))
        steps = acc * layer["s_w"][0] * layer["s_x"] / layer["s_y"]
        to_tie = np.where((steps > 0) & (steps < 255), abs(steps - np.floor(steps) - 0.5), 1)
        found = np.unravel_index(to_tie.argmin(), to_tie.shape)
        assert_shows(widget, w, *found)
        assert f"row {found[1] + 1}, column {found[2] + 1}" in widget.text(".two-table caption")
        shown = float(readouts(widget)["to the nearest tie"])
        assert shown == pytest.approx(to_tie.min(), rel=0.05)


OUTSIDE = """root => [...root.querySelectorAll('.mq-svg')].flatMap(frame => {
    const box = e => e.getBoundingClientRect(), f = box(frame);
    return [...frame.querySelectorAll('text')].filter(e => {
        const b = box(e);
        return b.left < f.left - 1 || b.right > f.right + 1 || b.bottom > f.bottom + 1;
    }).map(e => e.textContent); })"""


@pytest.mark.parametrize("width", [320, 600, 1000])
def test_nothing_sticks_out(browser, tmp_path, width):
    with stage(browser, tmp_path, paths(), width=width) as widget:
        for k in range(4):
            widget.root.get_by_role("radio").nth(k).check(force=True)
            settle(widget)
            assert widget.evaluate(OUTSIDE) == []
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_speed(browser, tmp_path, measure):
    with stage(browser, tmp_path, paths()) as widget:
        slider = widget.slider("Output channel")
        times = sorted(slider.set(k % 6)["frame_ms"] for k in range(1, 12))
        measure("two-paths", redraw_ms=times[5])
        assert times[0] < 100
