"""Granularity in a browser: its numbers, for every choice and channel, are Python's."""

import itertools
import math

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine
from minqbook.widgets import Granularity

CENTRES = """root => [...root.querySelectorAll('.mq-weights rect')]
    .map(r => Number(r.getAttribute('y')) + r.getAttribute('height') / 2)"""


def layer(channels=24, shape=(1, 5, 5)):
    """Channels over three orders of magnitude; one dead, one exactly zero, one of one sign."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(channels, *shape)) * np.logspace(0, -3, channels).reshape(-1, 1, 1, 1)
    w[5] = 0
    w[3] *= 1e-7
    w[4] = np.abs(w[4])
    return rng.permutation(w).astype(np.float32)


def dB(x, x_hat):
    value = affine.sqnr(x, x_hat)
    return "exact" if value == math.inf else value


def assert_close(shown, expected, digits=0.06):
    if isinstance(expected, str):
        assert shown == expected
    else:
        assert number(shown) == pytest.approx(expected, abs=digits)


def assert_shows(widget, twin):
    settle(widget)
    x = twin.values.astype(np.float64)
    hat = twin.x_hat.reshape(x.shape)
    scale, zero_point = (np.atleast_1d(v) for v in twin.grid)
    live = np.flatnonzero(~twin.dead)
    shown = readouts(widget)
    assert_close(shown["SQNR of all weights"], dB(x, hat))
    each = [affine.sqnr(x[i], hat[i]) for i in live]
    assert_close(shown["worst live channel"], "exact" if min(each) == math.inf else min(each))
    zeros = [i for i in live if not hat[i].any()]
    assert shown["became all zero"] == f"{len(zeros)} of {len(live)}"
    assert shown["dead channels"] == f"{twin.dead.sum()} of {len(x)}"

    axis = None if twin.granularity == "tensor" else 0
    group = twin.group if twin.granularity == "group" else None
    integers = affine.quantize(
        x, *twin.grid, twin.bits, signed=twin.symmetric, axis=axis, group=group
    )
    used = [len(np.unique(row)) for row in integers]
    median = sorted(used[i] for i in live)[len(live) // 2]
    assert shown["levels used"] == f"{median} of {2**twin.bits}"
    stored = scale.size * (twin.scale_bits + (0 if twin.symmetric else twin.bits))
    assert number(shown["scales stored"]) == scale.size
    assert shown["their size"] == f"{math.ceil(stored / 8)} B"
    assert number(shown["bits per weight"]) == pytest.approx(twin.bits + stored / x.size, rel=6e-4)

    c = twin.channel
    assert f"channel {c}:" in widget.evaluate("root => root.textContent")
    assert_close(shown["its SQNR"], "dead" if twin.dead[c] else dB(x[c], hat[c]))
    assert shown["levels it uses"] == str(used[c])
    low = number(shown["range of the channel"].split(" to ")[0])
    assert low == pytest.approx(x[c].min(), rel=0.06)
    own = scale[c] if axis == 0 else scale
    assert number(shown["its scale"].split(" to ")[-1]) == pytest.approx(own.max(), rel=0.06)
    # The picture of the channel: the heights of its weights after quantization are as in Python.
    centres = widget.evaluate(CENTRES)
    assert len(centres) == x.shape[1]
    if np.ptp(hat[c]):
        assert np.corrcoef(centres, hat[c])[0, 1] < -0.999
    red = widget.evaluate("root => root.querySelector('.mq-bars .mq-red').getAttribute('d')")
    assert red.count("Z") == len(zeros), "one red bar for each channel lost"
    assert not widget.broken_text()


def choose(widget, name):
    widget.root.get_by_role("radio", name=name, exact=True).click()


@pytest.mark.parametrize("log", [False, True])
def test_every_choice(browser, tmp_path, log):
    twin = Granularity(layer(), log=log, order="natural")
    with stage(browser, tmp_path, twin) as widget:
        for granularity, symmetric, (key, bits) in itertools.product(
            ["tensor", "channel", "group"],
            [True, False],
            [("Home", 2), ("End", 8), ("ArrowLeft", 7)],
        ):
            choose(widget, granularity)
            choose(widget, "symmetric" if symmetric else "asymmetric")
            widget.slider("Bits").press(key)
            twin.granularity, twin.symmetric, twin.bits = granularity, symmetric, bits
            group = widget.slider("Weights per group").locator
            assert group.is_enabled() == (granularity == "group")
            assert_shows(widget, twin)
        for key, group in (("Home", 2), ("End", 25), ("ArrowLeft", 24)):
            widget.slider("Weights per group").press(key)
            twin.group = group
            assert_shows(widget, twin)


def test_channels_by_keys_mouse_and_touch(browser, tmp_path):
    twin = Granularity(layer(), bits=4, granularity="channel", order="natural")
    with stage(browser, tmp_path, twin, touch=True, width=375) as widget:
        knob = widget.root.get_by_role("slider", name="Channel")
        moves = dict(Home=0, ArrowRight=1, PageUp=11, End=23, ArrowLeft=22)
        for key, channel in moves.items():
            knob.press(key)
            twin.channel = channel
            assert_shows(widget, twin)
        for dead in np.flatnonzero(twin.dead):
            knob.press("Home")
            for _ in range(dead):
                knob.press("ArrowRight")
            twin.channel = int(dead)
            assert_shows(widget, twin)
            assert readouts(widget)["its SQNR"] == "dead"
        picture = widget.root.locator("svg").first
        box = picture.bounding_box()
        left, right = box["x"] + 46, box["x"] + box["width"] - 16  # the frame of the plot
        for channel in (3, 17):
            x = left + (channel + 0.5) / 24 * (right - left)
            widget.root.page.touchscreen.tap(x, box["y"] + 60)
            twin.channel = channel
            assert_shows(widget, twin)
            widget.root.page.mouse.move(x - (right - left) / 24, box["y"] + 80)
            twin.channel = channel - 1
            assert_shows(widget, twin)
        choose(widget, "largest first")
        widget.root.get_by_role("slider", name="Channel").press("Home")
        twin.channel = int(np.abs(twin.values).max(axis=1).argmax())
        assert_shows(widget, twin)


def test_a_long_channel_is_cut_at_powers_of_two(browser, tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 100)).astype(np.float32)
    twin = Granularity(x, granularity="group", group=32, symmetric=False, scale_bits=32)
    with stage(browser, tmp_path, twin, dark=True) as widget:
        assert_shows(widget, twin)
        for key, group in (("End", 64), ("ArrowLeft", 32), ("ArrowLeft", 16), ("Home", 2)):
            widget.slider("Weights per group").press(key)
            twin.group = group
            assert_shows(widget, twin)
            assert widget.slider("Weights per group").spoken == str(group)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 70)])
def test_small_and_odd_tensors(browser, tmp_path, shape):
    x = np.float32(np.arange(1, 1 + math.prod(shape)).reshape(shape))
    with stage(browser, tmp_path, Granularity(x, bits=2)) as widget:
        for name in ("channel", "asymmetric", "linear", "as stored", "group", "log |w|"):
            choose(widget, name)
            settle(widget)
            assert not widget.broken_text(), name


def test_speed(browser, tmp_path, measure):
    """A layer of 480 channels: what another bit-width costs, from the event to the next frame."""
    twin = Granularity(layer(480, (1, 3, 3)), granularity="channel")
    with stage(browser, tmp_path, twin) as widget:
        frames = sorted(widget.slider("Bits").set(b)["frame_ms"] for b in [7, 6, 5, 4, 3, 2] * 4)
        measure("granularity", frame_ms_median=frames[12], frame_ms_worst=frames[-1])
        assert frames[0] < 100, frames  # the others share the processor with other tests
