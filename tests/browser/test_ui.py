"""The drawing kit: numbers for readers, ticks, scales, histograms."""

import numpy as np
import pytest

from minqbook.widgets.bundle import bundle

FIGURE = bundle("kit/figure.js") + "\nexport { widget };"
FORMAT = bundle("kit/format.js") + "\nexport { fmt, percent };"
SCALES = bundle("kit/scales.js") + "\nexport { niceTicks, linear, logarithmic };"
DATA = bundle("kit/data.js") + "\nexport { histogram };"


def test_numbers_for_readers(js):
    cases = {
        0.033333: "0.0333",
        12345.6: "12,346",
        -1.5: "−1.5",
        1.234e-7: "1.23×10⁻⁷",
        -2e12: "−2×10¹²",
        99.96: "100",
        0: "0",
    }
    got = js(FORMAT, "(m, values) => values.map(v => m.fmt(v))", list(cases))
    assert got == list(cases.values())
    odd = "m => [NaN, Infinity, -Infinity, undefined, null, 'x', -0].map(v => m.fmt(v))"
    assert js(FORMAT, odd) == ["–", "∞", "−∞", "–", "–", "–", "0"]
    assert js(FORMAT, "m => [0, 0.0001, 0.031, 0.9999, 1].map(m.percent)") == [
        *("0 %", "< 0.1 %", "3.1 %", "100 %", "100 %"),
    ]


@pytest.mark.parametrize("low", [-3e38, -7.0, -1e-40, 0.0, 12.0])
@pytest.mark.parametrize("width", [1e-9, 0.3, 1.0, 999.0, 4e38])
@pytest.mark.parametrize("count", [2, 5, 9])
def test_ticks_are_few_round_and_inside(js, low, width, count):
    high = low + width
    if low == high:
        assert js(SCALES, "(m, [a, b, n]) => m.niceTicks(a, b, n)", [low, high, count]) == [low]
        return
    ticks = np.array(js(SCALES, "(m, [a, b, n]) => m.niceTicks(a, b, n)", [low, high, count]))
    assert 1 <= len(ticks) <= 2 * count + 1
    slack = 1e-6 * width + 1e-11 * max(abs(low), abs(high))
    assert ticks.min() >= low - slack and ticks.max() <= high + slack
    if len(ticks) > 1:
        step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        assert np.allclose(np.diff(ticks), step, rtol=1e-6, atol=1e-11 * abs(ticks).max())


def test_scales_invert_and_survive_an_empty_domain(js):
    code = """(m, v) => {
        const x = m.linear([-2, 6], [40, 600]), y = m.logarithmic([1e-3, 1e3], [0, 90]);
        const point = m.linear([3, 3], [0, 10]);
        return [x.invert(x(v)), y.invert(y(v)), x(-2), x(6), y(1), point(3)]; }"""
    assert js(SCALES, code, 0.7) == pytest.approx([0.7, 0.7, 40, 600, 45, 5])
    assert js(SCALES, "m => m.logarithmic([1e-3, 1e3], [0, 90]).ticks(9)") == pytest.approx(
        [10.0**k for k in range(-3, 4)]
    )


def test_histogram_is_numpys(js):
    values = np.round(np.random.default_rng(0).normal(size=500) * 64) / 64  # many on the edges
    got = js(DATA, "(m, v) => m.histogram(v, -2, 2, 32)", values.tolist())
    assert got == np.histogram(values, bins=32, range=(-2, 2))[0].tolist()


def test_a_loop_runs_only_on_screen(js):
    """Steps of an animation: at the start, after the figure left the screen, after it came back."""
    code = """async m => {
        document.body.style.height = "9000px";
        const model = { get: () => null, on() {}, off() {}, save_changes() {} };
        const w = m.widget({ model, el: document.body.appendChild(document.createElement("div")) });
        w.add("A picture.");
        let steps = 0;
        const loop = w.loop(() => { steps += 1; });
        loop.play();
        const more = async enough => {
            const before = steps, end = performance.now() + 5000;
            while (steps - before < enough && performance.now() < end) await new Promise(r => setTimeout(r, 20));
            return steps - before;
        };
        const seen = await more(3);
        scrollTo(0, 8000);
        await new Promise(r => setTimeout(r, 500));
        const before = steps;
        await new Promise(r => setTimeout(r, 500));
        const away = steps - before;
        scrollTo(0, 0);
        return [seen, away, await more(3)];
    }"""  # noqa: E501
    seen, away, back = js(FIGURE, code)
    assert seen >= 3 and away == 0 and back >= 3
