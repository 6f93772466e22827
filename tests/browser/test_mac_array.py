"""The MAC array in a browser: what it draws and says is what minq.mac computes, in every cycle."""

import re

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minq import mac
from minqbook.widgets import MacArray

TEXTS = "(root, kind) => [...root.querySelectorAll(`.${kind}`)].map(e => e.textContent)"
TABLE = """root => [...root.querySelectorAll('tbody tr')].filter(r => r.children.length > 2)
    .map(r => [...r.children].map(c => c.textContent))"""

# Texts that leave the picture, and numbers that leave their element.
OUTSIDE = """root => {
    const box = e => e.getBoundingClientRect(), frame = box(root.querySelector('.mq-svg'));
    const within = (a, b) => b.left - 1 <= a.left && a.right <= b.right + 1;
    const elements = [...root.querySelectorAll('.mac-pe')].map(box);
    const all = [...root.querySelectorAll('.mq-svg text')];
    const held = [...root.querySelectorAll('.mac-product, .mac-held')];
    return [...all.filter(t => !within(box(t), frame) || box(t).bottom > frame.bottom),
        ...held.filter(t => !elements.some(e => within(box(t), e)))].map(t => t.textContent);
}"""


def texts(widget, kind):
    return widget.evaluate(TEXTS, kind)


def numbers(widget, kind):
    return [number(re.sub(r"^.*= ", "", text)) for text in texts(widget, kind)]


def sentence(widget):
    return widget.text(".mac-sentence")


def assert_shows(page, widget, k, cycles):
    """The page shows cycle k (1 to K) as Python's trace has it."""
    cycle = cycles[k - 1]
    assert sentence(page).startswith(f"Cycle {k} of {len(cycles)}: ")
    assert page.evaluate("root => root.querySelector('.mq-svg').ariaLabel").endswith(sentence(page))
    if cycle.vector is None:
        assert texts(page, "mac-product") == []
        n, start, stop = cycle.loading
        kind = "mac-next" if widget.double_buffer else "mac-held"  # rows above have as many
        held = [number(t.removeprefix("next ")) for t in texts(page, kind)]
        first = n % widget.rows * (stop - start)
        assert held[first : first + stop - start] == widget.operands[0][n, start:stop].tolist()
    else:
        assert numbers(page, "mac-product") == cycle.products.flatten().tolist()
        assert numbers(page, "mac-value") == cycle.after.tolist()
        notes = [t for t in page.evaluate(TEXTS, "mq-red") if re.search("wraps|saturates", t)]
        assert len(notes) == cycle.overflow.sum()
    assert not page.broken_text()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overflow": "saturate", "accumulator_bits": 14},
        {"rows": 3, "columns": 3, "double_buffer": True, "accumulator_bits": 12},
        {"weight_bits": 4, "activation_bits": 5, "rows": 2, "columns": 5},
    ],
)
def test_every_cycle(browser, tmp_path, options):
    widget = MacArray(cycle=0, **options)
    w, x, b = widget.operands
    cycles = list(widget.array.trace(w, x, b))
    shown = np.full((len(w), len(x)), -1)
    with stage(browser, tmp_path, widget) as page:
        assert sentence(page).startswith("Before the first cycle: 48 weights and 3 input vectors")
        for k, cycle in enumerate(cycles, 1):
            page.slider("Cycle").press("ArrowRight")
            settle(page)
            assert_shows(page, widget, k, cycles)
            if cycle.columns and cycle.columns[1] == w.shape[1]:
                y = mac.requantize(cycle.after, **widget.requantization)
                shown[slice(*cycle.rows), cycle.vector] = y
                rows = page.evaluate(TABLE)
                assert [number(r[1]) for r in rows] == cycle.after.tolist()
                assert [number(r[5]) for r in rows] == y.tolist()
            assert numbers(page, "mac-output") == shown[shown >= 0].tolist()
        result = widget.array.run(w, x, b)
        cells = page.evaluate("root => root.querySelectorAll('rect.mac-full + rect').length")
        assert cells == result.overflowed.sum(), "wrong sums are hatched"
        words = readouts(page)
        cost = mac.layer_cost(
            *w.shape,
            len(x),
            widget.array,
            weight_bits=widget.weight_bits,
            activation_bits=widget.activation_bits,
        )
        assert words["Multiplications"] == f"{cost.macs} of {cost.macs}"
        assert words["Bits needed"] == f"{result.bits_needed} of {widget.accumulator_bits}"
        used = number(words["Utilisation so far"].removesuffix(" %"))
        assert used == pytest.approx(100 * cost.utilisation, abs=0.51)
        names = {
            "Weights read": "weights",
            "Inputs read": "inputs",
            "Outputs written": "outputs",
            "Biases read": "bias",
            "Partial sums moved": "partial_sums",
        }
        assert {v: number(words[k]) for k, v in names.items()} == cost.bytes


def test_the_numbers_of_requantization_follow_from_each_other(browser, tmp_path):
    widget = MacArray(cycle=13)
    multiplier, shift = mac.fixed_point_multiplier(widget.requantization["scale_ratio"])
    with stage(browser, tmp_path, widget) as page:
        caption = page.text("caption")
        assert f"M = {multiplier:,}, s = {shift}" in caption and "Now: vector 2" in caption
        for name, acc, product, rounded, moved, y, *_ in page.evaluate(TABLE):
            integer = [int(t.replace("−", "-").replace(",", "")) for t in (acc, product, rounded)]
            assert integer[1] == integer[0] * multiplier
            assert integer[2] == (integer[1] + (1 << (shift - 1))) >> shift
            assert number(moved) == integer[2] + widget.requantization["zero_point"]
            assert number(y) == min(max(number(moved), 0), 255)
            assert ("wrong" in name) == (name.startswith("y₄"))


def test_buttons(browser, tmp_path):
    with stage(browser, tmp_path, MacArray()) as page:
        cycle, at = page.slider("Cycle"), lambda: int(page.slider("Cycle").value)
        assert at() == 5, "it starts where the first vector meets the weights"
        for name, expected in (("Step", 6), ("Step", 7), ("Back", 6), ("Reset", 0), ("Back", 0)):
            page.click(name)
            settle(page)
            assert at() == expected
        cycle.press("End")
        settle(page)
        assert "1 of 18 accumulators hold a wrong sum" in sentence(page)
        page.click("Step")
        assert at() == 24
        page.root.get_by_role("radio", name="fast").check()
        button = page.root.get_by_role("button", name="Play")
        button.focus()
        page.root.page.keyboard.press("Enter")  # from the end it starts again, without gliding
        page.root.page.wait_for_function("i => +i.value == 3", arg=cycle.locator.element_handle())
        page.click("Pause")
        stopped = at()
        page.root.page.wait_for_timeout(600)
        assert at() == stopped < 24
        cycle.set(22)
        page.click("Play")
        page.root.get_by_role("button", name="Play").wait_for()  # it stops by itself
        assert at() == 24
        page.click("Play")
        cycle.press("End")  # a reader who scrubs has taken over
        page.root.page.wait_for_timeout(400)
        assert at() == 24 and page.root.get_by_role("button", name="Play").count()


def test_it_rests_while_nobody_sees_it(browser, tmp_path):
    with stage(browser, tmp_path, MacArray(cycle=0)) as page:
        page.root.get_by_role("radio", name="fast").check()
        page.click("Play")
        page.evaluate("() => { document.body.style.paddingBottom = '5000px'; scrollTo(0, 4500); }")
        page.root.page.wait_for_timeout(300)
        away = page.slider("Cycle").value
        page.root.page.wait_for_timeout(700)
        assert page.slider("Cycle").value == away < 24
        page.evaluate("() => scrollTo(0, 0)")
        page.root.page.wait_for_function(
            "([i, k]) => +i.value > k", arg=[page.slider("Cycle").locator.element_handle(), away]
        )


def test_settings(browser, tmp_path):
    with stage(browser, tmp_path, MacArray(cycle=24)) as page:
        page.click("saturate")
        settle(page)
        assert "1 of 18" in sentence(page)
        page.slider("Accumulator").press("ArrowRight")
        settle(page)
        assert "all 18 sums are exact" in sentence(page)
        assert readouts(page)["Bits needed"] == "17 of 17"
        page.root.locator("summary").click()
        page.slider("Array rows").press("End")
        page.slider("Array columns").press("End")
        settle(page)
        k = MacArray(rows=6, columns=6).array.cycles(6, 8, 3)
        assert page.slider("Cycle").limits == (0, k) and page.slider("Cycle").value == k
        page.click("float32")
        settle(page)
        assert page.root.locator(".mac-steps").is_hidden()
        assert page.slider("Accumulator").locator.is_disabled()
        assert readouts(page)["Weights read"] == "192 B"
        widget = MacArray()
        n, m, batch = widget.sizes
        values = np.frombuffer(widget.data, "<f4").astype(float)
        w, x, b = np.split(values, [n * m, n * m + batch * m])
        y = x.reshape(batch, m) @ w.reshape(n, m).T + b
        assert np.array(numbers(page, "mac-output")) == pytest.approx(y.T.flatten(), rel=6e-3)


@pytest.mark.parametrize("numbers", ["integers", "float32"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 620, 1000])
def test_nothing_sticks_out_or_overlaps(browser, tmp_path, width, dark, numbers):
    """Every text of the picture lies inside it, and products inside their elements."""
    rng = np.random.default_rng(0)
    widget = MacArray(
        rng.normal(size=(12, 12)), rng.normal(size=(6, 12)), rows=6, columns=6, cycle=8,
        double_buffer=True, numbers=numbers,
    )  # fmt: skip
    with stage(browser, tmp_path, widget, width=width, dark=dark) as page:
        wide = "() => document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(wide)
        assert page.evaluate(OUTSIDE) == []


def test_drawing_is_fast(browser, tmp_path, measure):
    times = []
    with stage(browser, tmp_path, MacArray(rows=6, columns=6, double_buffer=True)) as page:
        for k in range(16):
            times.append(page.slider("Cycle").set(k)["frame_ms"])
        page.root.locator("summary").click()
        rebuild = [page.slider("Array rows").set(r)["frame_ms"] for r in (2, 3, 4, 5, 6, 2, 4, 6)]
    numbers = {"cycle_ms": np.median(times), "settings_ms": np.median(rebuild)}
    measure("mac-array", **numbers)
    assert max(numbers.values()) < 250
