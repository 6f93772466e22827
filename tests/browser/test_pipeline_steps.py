"""The pipeline's switches in a browser: every number shown is that of the records."""

import itertools
import math

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import PipelineSteps
from minqbook.widgets.bundle import bundle

STEPS = {
    "equalize": "Equalize",
    "ranges": "Ranges",
    "rounding": ("Rounding", {"nearest": "nearest", "adaround": "AdaRound"}),
    "bits": "Bits",
}
TABLE = """root => [...root.querySelectorAll('tbody tr')]
    .map(r => [...r.children].map(c => c.textContent))"""


def records(seed=0, missing=0):
    rng = np.random.default_rng(seed)
    combinations = itertools.product(
        (False, True), ("min-max", "MSE"), ("nearest", "adaround"), ("W8A8", "W4A8")
    )
    rows = []
    for e, r, a, b in combinations:
        sqnr = 8 * e + 3 * (r == "MSE") + 4 * (a == "adaround") + 15 * (b == "W8A8") + rng.normal()
        steps = {"equalize": e, "ranges": r, "rounding": a, "bits": b}
        rows.append({"steps": steps, "sqnr": sqnr, "agreement": 100 / (1 + np.exp(-sqnr / 5))})
    return rows[: len(rows) - missing]


def assert_shows(widget, twin):
    settle(widget)
    assert not widget.broken_text()
    shown, m = readouts(widget), twin.metric
    values = {tuple(r["at"]): r["values"] for r in twin.records}
    column = [k["key"] for k in twin.metrics].index(m)
    now = values.get(tuple(twin.choice), [None, None])[column]
    label = twin.metrics[column]["label"]
    if now is None:
        assert shown[label] == "not measured" and shown["rank"] == "–"
        assert "not measured" in widget.text(".mq-caption")
    else:
        assert number(shown[label]) == pytest.approx(now, abs=0.051)
        ranked = sorted((v[column] for v in values.values()), reverse=True)
        assert shown["rank"] == f"{1 + ranked.index(now)} of {len(ranked)}"
        if twin.naive:
            gain = now - values[tuple(twin.naive)][column]
            assert number(shown["against naive"].replace("±", "")) == pytest.approx(gain, abs=0.051)
    # The table: all options that are one flip away, best first, those not measured last.
    expected = []
    for i, step in enumerate(twin.chain):
        for o, option in enumerate(step["options"]):
            if o != twin.choice[i]:
                at = (*twin.choice[:i], o, *twin.choice[i + 1 :])
                words = f"{step['label']}: {step['options'][twin.choice[i]]} → {option}"
                expected.append((words, values.get(at, [None, None])[column]))
    expected.sort(key=lambda e: -math.inf if e[1] is None or now is None else e[1], reverse=True)
    rows = widget.evaluate(TABLE)
    assert len(rows) == len(expected)
    if now is not None:
        assert [row[0] for row in rows] == [words for words, _ in expected]
    then = {words: value for words, value in expected}
    for words, _, gain, value in rows:
        if then[words] is None:
            assert (gain, value) == ("–", "not measured")
        else:
            assert number(value) == pytest.approx(then[words], abs=0.051)
            if now is not None:
                assert number(gain.replace("±", "")) == pytest.approx(then[words] - now, abs=0.051)


@pytest.mark.parametrize("width", [375, 720])
def test_switches_and_table(browser, tmp_path, width):
    twin = PipelineSteps(records(), steps=STEPS, fp32={"sqnr": math.inf, "agreement": 100.0})
    with stage(browser, tmp_path, twin, width=width, touch=width < 400) as widget:
        assert_shows(widget, twin)
        radio = lambda name: widget.root.get_by_role("radio", name=name, exact=True)  # noqa: E731
        for name, choice in (
            ("MSE", [0, 1, 0, 0]), ("W4A8", [0, 1, 0, 1]), ("AdaRound", [0, 1, 1, 1]),
            ("on", [1, 1, 1, 1]), ("off", [0, 1, 1, 1]),
        ):  # fmt: skip
            before = twin.result
            radio(name).check(force=True)
            twin.choice = choice
            assert_shows(widget, twin)
            gain = twin.result["sqnr"] - before["sqnr"]
            told = widget.text(".mq-caption").split(" here.")[0].split(": ")[-1]
            assert number(told) == pytest.approx(gain, abs=0.051)
        radio("agreement with FP32").check(force=True)
        twin.metric = "agreement"
        assert_shows(widget, twin)
        assert "points" in widget.text(".pipe-table")
        widget.click("Go to the best")
        twin.choice = max(twin.records, key=lambda r: r["values"][1])["at"]
        assert_shows(widget, twin)
        assert "No single switch improves it" in widget.text(".mq-caption")
        widget.click("Back to naive")
        twin.choice = twin.naive
        assert_shows(widget, twin)


def test_missing_combinations(browser, tmp_path):
    twin = PipelineSteps(records(missing=5), steps=STEPS, start=records()[-1]["steps"])
    with stage(browser, tmp_path, twin, dark=True) as widget:
        assert_shows(widget, twin)
        assert "was not measured" in widget.root.locator(".mq-svg").first.text_content()
        for choice in ([1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 1]):
            i = [a != b for a, b in zip(choice, twin.choice, strict=True)].index(True)
            step = twin.chain[i]
            name = (
                f"{step['label']}: {step['options'][twin.choice[i]]} → {step['options'][choice[i]]}"
            )
            widget.root.get_by_role("button", name=name).click()
            twin.choice = choice
            assert_shows(widget, twin)


def test_by_keyboard_the_focus_stays_with_the_step(browser, tmp_path):
    twin = PipelineSteps(records(), steps=STEPS)
    with stage(browser, tmp_path, twin) as widget:
        keyboard = widget.root.page.keyboard
        focused = "() => document.activeElement.textContent"
        widget.root.get_by_role("button", name="Equalize: off → on").focus()
        for expected, choice in (
            ("Equalize: on → off", [1, 0, 0, 0]),
            ("Equalize: off → on", [0] * 4),
        ):
            keyboard.press("Enter")
            twin.choice = choice
            assert_shows(widget, twin)
            assert widget.evaluate(focused) == expected
        widget.root.get_by_role("radio", name="min-max").focus()
        keyboard.press("ArrowRight")
        twin.choice = [0, 1, 0, 0]
        assert_shows(widget, twin)


def test_dots_stand_at_their_values_and_can_be_clicked(browser, tmp_path):
    twin = PipelineSteps(records(), steps=STEPS)
    dots = """root => [...root.querySelectorAll('.mq-others circle, .pipe-here')].map(c =>
        [+c.getAttribute('cx'), +c.getAttribute('cy')])"""
    with stage(browser, tmp_path, twin) as widget:
        seen = np.array(sorted(widget.evaluate(dots)))
        values = np.sort([r["values"][0] for r in twin.records])
        line = np.polyfit(values, seen[:, 0], 1)
        assert line[0] > 0 and np.abs(np.polyval(line, values) - seen[:, 0]).max() < 0.06
        x, y = seen[-1]
        svg = widget.root.locator(".mq-svg").first
        svg.scroll_into_view_if_needed()
        svg.click(position={"x": x, "y": y})
        twin.choice = max(twin.records, key=lambda r: r["values"][0])["at"]
        assert_shows(widget, twin)


def test_less_can_be_better(browser, tmp_path):
    rows = [{"steps": {"clip": c}, "loss": v} for c, v in ((False, 2.0), (True, 0.5))]
    twin = PipelineSteps(rows, metrics={"loss": ("loss", "", "lower")}, fp32={"loss": 0.25})
    with stage(browser, tmp_path, twin) as widget:
        assert "The switch worth most from here is clip: on (−1.5)" in widget.text(".mq-caption")
        widget.click("Go to the best")
        settle(widget)
        assert "the best of 2" in widget.text(".mq-caption")
        assert readouts(widget)["rank"] == "1 of 2"
        assert "FP32 0.25" in widget.root.locator(".mq-svg").first.text_content()


def test_swarm_keeps_dots_apart(js):
    rng = np.random.default_rng(0)
    places = [rng.uniform(0, 300, 120).tolist(), [5.0] * 9, [1.0]]
    source = bundle("pipeline_steps.js") + "\nexport { swarm };"
    for xs, spots in zip(
        places, js(source, "(m, all) => all.map(x => m.swarm(x, 4))", places), strict=True
    ):
        spots = np.array(spots)
        assert np.array_equal(spots[:, 0], xs)
        gaps = np.linalg.norm(spots[:, None] - spots[None], axis=-1)[~np.eye(len(xs), dtype=bool)]
        assert not gaps.size or gaps.min() >= 8 - 1e-6


OUTSIDE = """root => {
    const box = e => e.getBoundingClientRect(), frame = box(root.querySelector('.mq-svg'));
    const out = b => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1;
    return [...root.querySelectorAll('.mq-svg text')].filter(e => out(box(e)))
        .map(e => e.textContent); }"""


@pytest.mark.parametrize("metric", ["sqnr", "agreement"])
@pytest.mark.parametrize("width", [320, 375, 620, 1000])
def test_nothing_sticks_out(browser, tmp_path, width, metric):
    twin = PipelineSteps(
        records(), steps=STEPS, metric=metric, fp32={"sqnr": math.inf, "agreement": 100.0}
    )
    with stage(browser, tmp_path, twin, width=width) as widget:
        for press in (None, "Go to the best", "Back to naive"):
            if press:
                widget.click(press)
                settle(widget)
            assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            assert widget.evaluate(OUTSIDE) == []
