"""The choice of bits and method in a browser: it names what Python chooses."""

import itertools

import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import MethodChoice
from minqbook.widgets.bundle import bundle

FP32, TRAINED, WEIGHTS = {"a": 94.0, "b": 72.5}, {"a": 94.6}, {"a": 40_000, "b": 1200}
LOSSES = {  # of W8A8, W4A8, W4A4: (PTQ, QAT)
    ("a", False): [(0.1, -0.2), (0.9, 0.3), (5.0, 1.2)],
    ("a", True): [(0.0, None), (0.4, 0.1), (3.0, [0.7, 1.1])],
    ("b", False): [(None, 0.3), (9.0, 4.0), (30.0, 12.0)],
}


def records():
    rows = []
    for (name, grain), losses in LOSSES.items():
        for bits, pair in zip(("W8A8", "W4A8", "W4A4"), losses, strict=True):
            row = {"network": name, "per_channel": grain, "bits": bits, "ptq_cost": "128 inputs"}
            row["qat_cost"] = f"38,400 labelled inputs for {bits}"
            for method, loss in zip(("ptq", "qat"), pair, strict=True):
                many = [FP32[name] - v for v in loss] if isinstance(loss, list) else None
                row[method] = many or (None if loss is None else FP32[name] - loss)
            rows.append(row)
    return rows


def choice(**traits):
    return MethodChoice(
        records(),
        fp32=FP32,
        trained=TRAINED,
        weights=WEIGHTS,
        **traits,
    )


def press(widget, name):
    widget.root.get_by_role("radio", name=name, exact=True).check(force=True)


def assert_shows(widget, twin):
    settle(widget)
    assert not widget.broken_text()
    shown, best = readouts(widget), twin.choice
    caption = widget.text(".mq-caption")
    if best is None:
        assert shown["smallest inside"] == "none" and "keep FP32" in caption
        return
    assert shown["smallest inside"] == best["bits"] and best["bits"] in caption
    assert shown["cheapest way"].lower() == best["method"]
    assert number(shown["accuracy"]) == pytest.approx(best["accuracy"], abs=0.051)
    lost = number(shown["lost"].replace("gains ", "−"))
    level = twin.limit + twin.allowed
    assert lost == pytest.approx(level - best["accuracy"], abs=0.051)
    unit = {"B": 1, "kB": 1e3, "MB": 1e6}[shown["weights"].split(" ")[1]]
    assert number(shown["weights"]) * unit == pytest.approx(best["bytes"], rel=6e-3)
    inputs = f"labelled inputs for {best['bits']})" if best["method"] == "qat" else "(128 inputs)"
    assert inputs in caption and ("takes QAT" in caption) == (best["method"] == "qat")


@pytest.mark.parametrize("width", [375, 800])
def test_it_names_what_python_chooses(browser, tmp_path, width):
    twin = choice()
    with stage(browser, tmp_path, twin, width=width, touch=width < 400) as widget:
        slider, seen = widget.slider("May be lost"), set()
        for grain, reference in itertools.product((False, True), ("fp32", "trained")):
            press(widget, "per channel" if grain else "per tensor")
            press(widget, "trained on" if reference == "trained" else "as it was")
            twin.per_channel, twin.reference = grain, reference
            for allowed in (0.0, 0.5, 1.0, 2.0, 5.0):
                slider.set(allowed)
                twin.allowed = allowed
                assert_shows(widget, twin)
                seen.add((twin.choice or {}).get("bits"))
        assert seen == {None, "W8A8", "W4A8", "W4A4"}
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_missing_results_and_a_network_without_control(browser, tmp_path):
    twin = choice(network="b", reference="trained", allowed=4.0)
    with stage(browser, tmp_path, twin, dark=True) as widget:
        assert_shows(widget, twin)
        assert "not measured" in widget.root.locator(".mq-svg").get_attribute("aria-label")
        press(widget, "per channel")
        twin.per_channel = True  # nothing at all was measured there
        assert_shows(widget, twin)
        widget.choose("Network", "a")
        twin.network = "a"
        assert_shows(widget, twin)


def test_dots_stand_at_their_accuracies(browser, tmp_path):
    places = """root => ['.choice-ptq', '.choice-qat'].map(s => [...root.querySelectorAll(s)].map(
        e => { const b = e.getBBox(); return b.x + b.width / 2; }))"""
    with stage(browser, tmp_path, choice()) as widget:
        ptq, qat = widget.evaluate(places)
        losses = [*zip(*LOSSES["a", False], strict=True)]
        spots = [*zip([*losses[0], *losses[1]], [*ptq, *qat], strict=True)]
        (a, x_a), (b, x_b) = min(spots), max(spots)
        for loss, x in spots:
            assert x == pytest.approx(x_a + (loss - a) * (x_b - x_a) / (b - a), abs=0.2)
        assert x_b < x_a


def test_choose_counts_rows_from_the_smallest(js):
    row = lambda *pair: {"ptq": pair[0] and [pair[0]], "qat": pair[1] and [pair[1]]}  # noqa: E731
    rows = [row(94, 94), row(90, 93), row(None, 92)]
    source = bundle("method_choice.js") + "\nexport { choose };"
    found = js(
        source,
        "(m, [rows, limits]) => limits.map(l => { const c = m.choose(rows, l);"
        " return c && [rows.indexOf(c.row), c.method]; })",
        [rows, [95, 93.5, 92.5, 91, 89]],
    )
    assert found == [None, [0, "ptq"], [1, "qat"], [2, "qat"], [2, "qat"]]
