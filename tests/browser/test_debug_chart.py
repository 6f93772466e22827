"""The debugging chart in a browser: the evidence shown is that of the case, and so is the way."""

import numpy as np
import pytest
from stage import stage
from test_affine_playground import number, readouts, settle

from minqbook.widgets import DebugChart
from minqbook.widgets.debug_chart import QUESTIONS, VERDICTS


def layers(count, bad=(), kinds=("",), seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"name": f"blocks.{i}.conv", "sqnr": -3.0 if i in bad else rng.uniform(20, 40)}
        | ({"kind": kinds[i % len(kinds)]} if kinds[0] else {})
        for i in range(count)
    ]


def step(answer, **metric):
    return {"metric": metric, "answer": answer, "text": f"the numbers say {answer}"}


KINDS = ("weight", "activation")
CASES = [
    {
        "name": "healthy", "verdict": "nothing to do",
        "steps": {
            "sanity": step("no", agreement=100.0), "all": step("yes", agreement=99.1, SQNR=24.8),
        },
        "layers": layers(5),
    },
    {
        "name": "per tensor", "verdict": "scales per channel", "note": "weights per tensor",
        "steps": {
            "sanity": step("no", agreement=100.0), "all": step("no", agreement=3.1, SQNR=-2.2),
            "weights": step("yes", SQNR=-2.1), "fix_weights": step("yes", SQNR=21.25),
            "activations": step("no", SQNR=21.5),
        },
        "layers": layers(48, (4,), KINDS),
        "after": {"metric": {"SQNR": 21.3, "size": "1.2 MB"}, "layers": layers(48, (), KINDS, 1)},
    },
    {
        "name": "outlier", "verdict": "16 bits for it",
        "steps": {
            "sanity": step("no", SQNR=90.0), "all": step("no", SQNR=4.0),
            "weights": step("no", SQNR=28.0), "activations": step("yes", SQNR=4.1),
            "fix_activations": step("no", SQNR=6.0),
            "sweep": step("yes", worst=4.2, next=27.0) | {"layers": layers(20, (7,))},
            "look": step("yes", ratio=310.0),
        },
        "layers": layers(30, (3,)),
    },
    {
        "name": "setup bug", "verdict": "pixels were not normalized",
        "steps": {"sanity": step("yes", agreement=12.0)},
    },
]  # fmt: skip


def box(widget, name):
    return widget.root.locator(f'.dbg-node[data-name="{name}"]')


def here(widget):
    return widget.evaluate("root => root.querySelector('.dbg-here').dataset.name")


def press(widget, name):
    widget.root.get_by_role("button", name=name, exact=True).click()


def bars(widget):
    return widget.evaluate("""root => [...root.querySelectorAll('.mq-bars rect.mq-area')]
        .map(r => +r.getAttribute('height'))""")


@pytest.mark.parametrize("width", [375, 760])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_way_of_the_evidence(browser, tmp_path, case, width):
    """Answer as the evidence says: the path is Python's, the numbers are the case's."""
    twin = DebugChart(CASES, case=case)
    with stage(browser, tmp_path, twin, width=width, touch=width < 400) as widget:
        path, given = twin.path(case), CASES[case]
        for k, name in enumerate(path):
            assert here(widget) == name and not widget.broken_text()
            assert widget.evaluate("root => root.querySelectorAll('.dbg-lit').length") == k
            assert widget.evaluate("root => root.querySelectorAll('.dbg-astray').length") == 0
            if name in VERDICTS:
                break
            assert QUESTIONS[name][1] in widget.text(".dbg-panel")
            evidence = given["steps"][name]
            assert {k: number(v) for k, v in readouts(widget).items()} == pytest.approx(
                evidence["metric"], rel=6e-3
            )
            shown = evidence.get("layers") or given.get("layers", [])
            if shown:
                heights = np.array(bars(widget))
                assert len(heights) == len(shown)
                sizes = np.abs([layer["sqnr"] for layer in shown])
                assert np.abs(heights / heights.max() - sizes / sizes.max()).max() < 0.02
            press(widget, "Yes" if evidence["answer"] == "yes" else "No")
            settle(widget)
            assert evidence["text"] in widget.text(".dbg-told")
        assert given["verdict"] in widget.text(".dbg-panel")
        assert not widget.root.get_by_role("button", name="Yes", exact=True).is_visible()
        if given.get("after"):
            assert readouts(widget) == {"SQNR": "−2.2 → 21.3", "size": "1.2 MB"}
            assert widget.evaluate("root => root.querySelectorAll('.mq-bars circle').length") == 48


def test_a_wrong_turn_is_explained(browser, tmp_path):
    with stage(browser, tmp_path, DebugChart(CASES, case=1), dark=True) as widget:
        for _ in range(3):  # at the third, the weights, the evidence says yes
            press(widget, "No")
            settle(widget)
        assert here(widget) == "activations"
        assert "speaks against “no”: the numbers say yes" in widget.text(".dbg-told")
        assert widget.evaluate("root => root.querySelectorAll('.dbg-astray').length") == 1
        assert number(readouts(widget)["SQNR"]) == 21.5  # measured, so it is shown here too
        press(widget, "No")
        settle(widget)
        assert here(widget) == "sweep" and "Nothing was measured" in widget.text(".dbg-verdict")
        press(widget, "No")
        settle(widget)
        assert here(widget) == "train" and "This is not what is wrong here" in widget.text(
            ".dbg-verdict"
        )
        assert "scales per channel" not in widget.text(".dbg-panel")
        press(widget, "Back to where the evidence was left")
        settle(widget)
        assert here(widget) == "weights"
        assert widget.evaluate("root => root.querySelectorAll('.dbg-astray').length") == 0
        for name, expected in (("Back", "all"), ("No", "weights"), ("Start over", "sanity")):
            press(widget, name)
            settle(widget)
            assert here(widget) == expected


def test_boxes_are_buttons(browser, tmp_path):
    """The chart alone suffices: the next box answers, an old one goes back."""
    with stage(browser, tmp_path, DebugChart(CASES, case=2)) as widget:
        keyboard = widget.root.page.keyboard
        for name in ("all", "weights", "activations"):
            box(widget, name).click()
            settle(widget)
            assert here(widget) == name
        box(widget, "fix_activations").focus()
        keyboard.press("Enter")
        settle(widget)
        assert here(widget) == "fix_activations"
        box(widget, "weights_fixed").click(force=True)  # not reachable from here
        settle(widget)
        assert here(widget) == "fix_activations"
        reachable = widget.evaluate("""root => [...root.querySelectorAll('.dbg-node')]
            .filter(n => n.tabIndex === 0).map(n => n.dataset.name)""")
        path = ["sanity", "all", "weights", "activations", "fix_activations"]
        assert set(reachable) == {*path, "ranges_fixed", "sweep"}
        box(widget, "weights").focus()
        keyboard.press("Space")
        settle(widget)
        assert here(widget) == "weights"
        label = box(widget, "weights").get_attribute("aria-label")
        assert label == f"{QUESTIONS['weights'][0]}, you are here"


def test_another_case_starts_over(browser, tmp_path):
    with stage(browser, tmp_path, DebugChart(CASES)) as widget:
        press(widget, "No")
        press(widget, "Yes")
        settle(widget)
        assert here(widget) == "ready"
        widget.root.get_by_role("radio", name="setup bug").check(force=True)
        settle(widget)
        assert here(widget) == "sanity" and number(readouts(widget)["agreement"]) == 12
        assert bars(widget) == [] or not widget.root.locator(".mq-bars").is_visible()


def test_focus_is_not_lost_at_the_verdict(browser, tmp_path):
    with stage(browser, tmp_path, DebugChart(CASES[3:])) as widget:
        widget.root.get_by_role("button", name="Yes", exact=True).focus()
        widget.root.page.keyboard.press("Enter")
        settle(widget)
        assert here(widget) == "setup"
        assert widget.evaluate("() => document.activeElement.textContent") == "Back"


# Texts that leave their box, or the picture.
OUTSIDE = """root => { const bad = [];
    const out = (t, frame, by) => {
        const a = t.getBoundingClientRect(), b = frame.getBoundingClientRect();
        if (a.left < b.left - by || a.right > b.right + by || a.top < b.top - 1
            || a.bottom > b.bottom + 1) bad.push(t.textContent);
    };
    for (const node of root.querySelectorAll('.dbg-node')) {
        for (const t of node.querySelectorAll('text')) out(t, node.querySelector('rect'), 0);
    }
    for (const s of root.querySelectorAll('.mq-svg')) {
        for (const t of s.querySelectorAll('text')) if (t.checkVisibility()) out(t, s, 2);
    }
    return bad; }"""


@pytest.mark.parametrize("width", [320, 375, 620, 760, 1000])
def test_nothing_sticks_out(browser, tmp_path, width):
    twin = DebugChart(CASES, case=1, answers=["no", "no", "yes", "yes"])
    with stage(browser, tmp_path, twin, width=width) as widget:
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert widget.evaluate(OUTSIDE) == []
        while here(widget) != "sanity":
            press(widget, "Back")
            settle(widget)
            assert widget.evaluate(OUTSIDE) == []
