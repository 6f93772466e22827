"""The picture in fewer bits, in a browser: its pixels and numbers are Python's."""

import math

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import affine
from minqbook.widgets import ImageBits

PIXELS = """(root, index) => { const c = root.querySelectorAll('canvas.mq-pixels')[index];
    return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"""


def pixels(widget, index, shape):
    """The canvas as (height, width, channels); its alpha must be opaque."""
    rgba = np.array(widget.evaluate(PIXELS, index), np.uint8).reshape(*shape[:2], 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., : shape[2]]


def quantized(image, bits, channels):
    """What Python makes of the picture, in float64."""
    scale, _ = affine.scale_zero_point(0.0, 255.0, bits)
    hat = affine.fake_quantize(image.astype(float), scale, 0, bits)
    return np.where(channels, hat, image)


@pytest.fixture(params=["colour", "grey"])
def image(request):
    shape = (20, 30, 3) if request.param == "colour" else (9, 7, 1)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    values.flat[:2] = 0, 255
    return values


def assert_shows(widget, image, bits, channels, gain=4):
    hat = quantized(image, bits, channels)
    assert (pixels(widget, 0, image.shape) == image).all()
    assert (pixels(widget, 1, image.shape) == np.rint(hat)).all()
    error = np.clip(np.rint(128 + gain * (hat - image)), 0, 255)
    assert (pixels(widget, 2, image.shape) == error).all()
    shown, noise = readouts(widget), np.mean((hat - image) ** 2)
    psnr = 10 * math.log10(255**2 / noise) if noise else math.inf
    assert number(shown["PSNR"]) == pytest.approx(psnr, rel=6e-3)
    assert number(shown["SQNR"]) == pytest.approx(affine.sqnr(image.astype(float), hat), rel=6e-3)
    stored = math.ceil(sum(image[..., 0].size * (bits if c else 8) for c in channels) / 8)
    assert number(shown["bytes"]) == stored
    assert number(shown["compression"]) == pytest.approx(4 * image.size / stored, rel=6e-3)
    assert not widget.broken_text()


def test_every_bit_width(browser, tmp_path, image):
    channels = [True] * image.shape[2]
    with stage(browser, tmp_path, ImageBits(image.squeeze(), bits=3)) as widget:
        assert_shows(widget, image, 3, channels)
        widget.slider("Bits").press("Home")
        for bits in range(1, 9):
            settle(widget)
            assert_shows(widget, image, bits, channels)
            widget.slider("Bits").press("ArrowRight")
        assert "Nothing is lost" in widget.text("figcaption")


def test_channels_and_gain(browser, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    with stage(browser, tmp_path, ImageBits(image, bits=2, channels=[True, False, True])) as widget:
        assert_shows(widget, image, 2, [True, False, True])
        widget.root.get_by_role("checkbox", name="red").press("Space")
        widget.root.get_by_role("radio", name="× 16").check(force=True)
        settle(widget)
        assert_shows(widget, image, 2, [False, False, True], gain=16)
        widget.click("blue")
        settle(widget)
        assert_shows(widget, image, 2, [False, False, False], gain=16)
        assert "No channel is quantized" in widget.text("figcaption")


@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 1)), np.ones((2, 2)), np.zeros((1, 300), np.uint8)],
    ids=["dot", "white", "line"],
)
def test_extreme_pictures(browser, tmp_path, image):
    with stage(browser, tmp_path, ImageBits(image, bits=1), width=320) as widget:
        assert not widget.broken_text()
        for key in ("Home", "End"):
            widget.slider("Bits").press(key)
            settle(widget)
            assert not widget.broken_text()
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= 320


def test_text_twins_follow_the_picture(browser, tmp_path):
    with stage(browser, tmp_path, ImageBits(np.eye(8), subject="A diagonal")) as widget:
        canvas = widget.root.locator("canvas").all()
        assert canvas[0].get_attribute("aria-label").startswith("A diagonal, 8 by 8 pixels")
        before = canvas[1].get_attribute("aria-label")
        widget.slider("Bits").press("Home")
        settle(widget)
        assert canvas[1].get_attribute("aria-label") != before
