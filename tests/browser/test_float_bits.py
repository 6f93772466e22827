"""FloatBits in a browser: its numbers are Python's, and every way to change them works."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import FloatBits
from minqbook.widgets.bundle import bundle
from minqbook.widgets.float_bits import FORMATS, convert

SOURCE = bundle("float_bits.js") + "\nexport { result };"


def cases():
    """Every code of the small formats in its own and in two others; a sample of the large ones."""
    rng, names = np.random.default_rng(0), list(FORMATS)
    for origin, kind in FORMATS.items():
        bits = kind if isinstance(kind, int) else kind.bits
        if bits <= 8:
            codes = range(2**bits)
        else:
            ends = (2**k + d for k in range(bits) for d in (-1, 0))
            codes = sorted({*ends, 2**bits - 1, *rng.integers(0, 2**bits, 200).tolist()})
        for code in codes:
            for name in {origin, rng.choice(names)}:
                yield str(name), origin, int(code)


def test_parity(js):
    run = """(m, cases) => cases.map(c => { const r = m.result(...c), text = v =>
        v === null ? null : Object.is(v, -0) ? "-0" : String(v);
        return [text(r.given), text(r.value), r.code, r.bits, r.kind,
            text(r.below), text(r.above)]; })"""
    told = list(cases())
    back = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan, None: None}
    for case, seen in zip(told, js(SOURCE, run, told), strict=True):
        name, origin, code = case
        want = convert(name, origin, code)
        assert seen[2:5] == [want["code"], want["bits"], want["kind"]], case
        for text, key in zip(
            (*seen[:2], *seen[5:]), ("given", "value", "below", "above"), strict=True
        ):
            got = back[text] if text in back else float(text)
            if got is None or math.isnan(got):
                assert want[key] is None if got is None else math.isnan(want[key]), (case, key)
            else:
                assert (got, math.copysign(1, got)) == (want[key], math.copysign(1, want[key])), (
                    case,
                    key,
                )


def bits(widget):
    return "".join(widget.root.locator(".fb-bits button:visible").all_inner_texts())


def assert_shows(widget, twin):
    settle(widget)
    want = twin.result()
    assert bits(widget) == want["bits"]
    assert number(readouts(widget)["value"]) == pytest.approx(want["value"], rel=6e-5)
    assert not widget.broken_text()


@pytest.mark.parametrize("width, dark", [(375, True), (800, False)])
def test_by_hand(browser, tmp_path, width, dark):
    twin = FloatBits(0.1)
    with stage(browser, tmp_path, twin, width=width, dark=dark, touch=width < 400) as widget:
        assert_shows(widget, twin)
        for name in ("INT4", "bfloat16", "FP8 E5M2"):
            widget.root.get_by_role("radio", name=name, exact=True).check(force=True)
            twin.format = name
            assert_shows(widget, twin)
        one = widget.root.get_by_role("button", name="turn it over").locator("visible=true")
        (one.nth(0).tap if width < 400 else one.nth(0).click)()  # the sign
        code = twin.result()["code"] ^ 128
        twin = FloatBits(format="FP8 E5M2", origin="FP8 E5M2", code=code)
        assert_shows(widget, twin)
        one.nth(0).press("ArrowRight")
        widget.root.page.keyboard.press("Enter")  # the exponent's highest bit
        twin.code = code = code ^ 64
        assert_shows(widget, twin)
        widget.click("Next above")
        twin = FloatBits(twin.result()["above"], "FP8 E5M2")
        assert_shows(widget, twin)
        size = widget.root.get_by_role("slider", name="Size of your number")
        size.press("PageUp")
        size.press("ArrowLeft")
        twin = FloatBits(
            math.copysign(2.0 ** (math.log2(abs(twin.value)) + 2.25), twin.value), "FP8 E5M2"
        )
        assert_shows(widget, twin)
        widget.click("70,000")
        widget.root.get_by_role("radio", name="float16", exact=True).check(force=True)
        settle(widget)
        assert readouts(widget)["value"] == "65,504" and "too large" in widget.text("figcaption")
        assert widget.evaluate("() => document.documentElement.scrollWidth") <= width


def test_special_numbers_are_told(browser, tmp_path):
    twin = FloatBits(2.0**-149)
    with stage(browser, tmp_path, twin) as widget:
        assert "subnormal" in widget.text("figcaption")
        widget.click("Next below")
        settle(widget)
        assert "this is zero" in widget.text("figcaption")
        ones = widget.root.get_by_role("button", name="exponent, worth").locator("visible=true")
        for k in range(8):
            ones.nth(k).click()
        settle(widget)
        assert "infinity" in widget.text("figcaption") and readouts(widget)["value"] == "∞"
        assert not widget.broken_text()
        widget.root.get_by_role("button", name="mantissa, worth").locator("visible=true").nth(
            3
        ).click()
        settle(widget)
        assert "not a number" in widget.text("figcaption")
        assert widget.root.get_by_role("button", name="Next above").is_disabled()
        widget.root.get_by_role("radio", name="INT8").check(force=True)
        settle(widget)
        assert bits(widget) == "00000000"
