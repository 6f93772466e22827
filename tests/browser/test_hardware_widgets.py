"""ElementSize and Waveform in a browser: the page says what Python computes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import ElementSize, Waveform
from minqbook.widgets.bundle import bundle
from minqbook.widgets.element_size import BITS

RESULTS = Path(__file__).parents[2] / "book" / "results"


def records():
    return json.loads((RESULTS / "gates.json").read_text("utf-8"))["records"]


def test_sizes_of_all_elements_equal_python(js):
    """One call computes all 72, ties of safe widths included."""
    twin = ElementSize(records())
    cases = [list(c) for c in itertools.product(BITS, BITS, ("32", "safe"))]
    source = bundle("element_size.js") + "\nexport { result };"
    found = js(
        source,
        "(m, [e, f, cases]) => cases.map(([weightBits, inputBits, accumulator]) =>"
        " m.result(e, f, { weightBits, inputBits, accumulator }))",
        [twin.elements, twin.floats, cases],
    )
    for (twin.weight_bits, twin.input_bits, twin.accumulator), one in zip(
        cases, found, strict=True
    ):
        assert one == twin.result()


@pytest.mark.parametrize(("width", "dark"), [(375, True), (800, False)])
def test_an_element_is_shown(browser, tmp_path, width, dark):
    twin = ElementSize(records())
    with stage(browser, tmp_path, twin, width=width, dark=dark) as widget:
        for name, accumulator in (("safe for 1,152 products", "safe"), ("32 bits", "32")):
            widget.root.get_by_role("radio", name=name, exact=True).click()
            twin.accumulator = accumulator
            settle(widget)
            shown, want = readouts(widget), twin.result()
            assert number(shown["cells"]) == want["cells"]
            assert number(shown["done in a cycle"]) == want["per_cycle"]
            share = 100 * want["multiplier"] / want["cells"]
            assert number(shown["multiplier"]) == pytest.approx(share, abs=0.6)
        assert not widget.broken_text()
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "dark"), [(375, False), (800, True)])
def test_waveforms_say_what_the_dump_holds(browser, tmp_path, width, dark):
    twin = Waveform(json.loads((RESULTS / "waves.json").read_text("utf-8")))
    with stage(browser, tmp_path, twin, width=width, dark=dark) as widget:
        for cycle in range(twin.cycles + 1):
            twin.cycle = cycle
            settle(widget)
            caption = widget.root.locator(".mq-caption").inner_text().replace("−", "-")
            for name, value in twin.values().items():
                if name != "clk":
                    assert f"{name} {'x' if value is None else value}" in caption
            widget.root.get_by_role("button", name="Step").click()
        assert f"cycle {twin.cycles}" in caption  # and no step leads beyond the end
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
