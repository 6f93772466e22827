"""The simulated block in a browser: its quantizers are Python's, however the switches stand."""

import itertools

import pytest
from stage import stage
from test_affine_playground import readouts, settle

from minqbook.widgets import SimulatedBlock
from minqbook.widgets.bundle import bundle

SWITCHES = ("activations", "add", "fold", "fuse", "pool", "weights")
MEASURED = {
    c: {"sqnr": 50.0 - 2 * len(SimulatedBlock.quantizers(*c)) + 0.5 * ("fold" in c)}
    for c in SimulatedBlock.configurations()
    if SimulatedBlock.quantizers(*c)
}
SHOWN = """root => [...root.querySelectorAll('.sim-node')]
    .filter(n => n.getAttribute('display') !== 'none').map(n => n.dataset.name)"""
LABELS = {
    "activations": "activations", "add": "residual add", "fold": "fold batch norm",
    "fuse": "fuse activations", "pool": "max-pool passes through", "weights": "weights",
}  # fmt: skip


def check(widget, name):
    return widget.root.get_by_role("checkbox", name=LABELS[name], exact=True)


def node(widget, name):
    return widget.root.locator(f'.sim-node[data-name="{name}"]')


def on(**switches):
    return dict.fromkeys(SWITCHES, False) | switches


def test_the_script_agrees_with_python(js):
    source = bundle("simulated_block.js") + "\nexport { block, keyOf };"
    rows = itertools.product((False, True), repeat=6)
    every = [dict(zip(SWITCHES, row, strict=True)) for row in rows]
    call = "(m, every) => every.map(on => [m.keyOf(on), m.block(on)])"
    for state, (key, block) in zip(every, js(source, call, every), strict=True):
        names = [s for s, yes in state.items() if yes]
        rounded = SimulatedBlock.quantizers(*names)
        assert {k for k, yes in block["q"].items() if yes} == set(rounded)
        assert tuple(k for k in key.split("+") if k) in SimulatedBlock.configurations()
        # On the wires: what follows a quantizer is on a grid, what follows a convolution is a sum
        # of 32 bits only if both operands were integers.
        drawn = [w["tensor"] for w in block["wires"] if w["q"]]
        assert set(drawn) == set(rounded) - {"weight1", "weight2", "skip"}
        both = state["weights"] and state["activations"]
        for wire in block["wires"]:
            assert not wire["q"] or wire["after"] == "int"
            if wire["from"].startswith("conv"):
                assert wire["before"] == ("acc" if both else "float")
        if not state["activations"]:
            assert {w["after"] for w in block["wires"]} == {"float"} and not block["groups"]
        # Each box of the path is in at most one group, and none of them holds a quantizer inside.
        inside = [part for group in block["groups"] for part in group]
        assert len(inside) == len(set(inside))


@pytest.mark.parametrize("width", [375, 700])
def test_switches_change_the_picture_and_the_numbers(browser, tmp_path, width):
    twin = SimulatedBlock(MEASURED)
    with stage(browser, tmp_path, twin, width=width) as widget:
        for name in (None, "fold", "fuse", "pool", "add", "weights", "fold", "activations", "fuse"):
            if name and check(widget, name).is_enabled():
                check(widget, name).click()
                setattr(twin, name, not getattr(twin, name))
            settle(widget)
            shown = set(widget.evaluate(SHOWN))
            rounded = SimulatedBlock.quantizers(*twin.configuration)
            assert {s[2:] for s in shown if s.startswith("q-")} == set(rounded)
            assert ("bn1" in shown) == ("bn2" in shown) == (not twin.fold)
            numbers = readouts(widget)
            count = len([q for q in rounded if not q.startswith("weight")])
            assert numbers["activations rounded"].startswith(f"{count} time")
            assert numbers["SQNR"] == (
                f"{twin.result['sqnr']:.1f} dB" if twin.result else "nothing lost"
            )
            assert not widget.broken_text()
        for name in ("add", "fuse", "pool"):
            assert not check(widget, name).is_enabled()


def test_caption_tells_the_difference_and_what_was_not_measured(browser, tmp_path):
    measured = {
        "activations+add+weights": {"sqnr": 20.0},
        "activations+add+fold+weights": {"sqnr": 26.5},
    }
    with stage(browser, tmp_path, SimulatedBlock(measured), dark=True) as widget:  # fmt: skip
        check(widget, "fold").click()
        settle(widget)
        assert "Fold batch norm on: +6.5 dB SQNR." in widget.text(".mq-caption")
        check(widget, "fuse").click()
        settle(widget)
        assert "not measured" in widget.text(".mq-caption")
        assert readouts(widget)["SQNR"] == "not measured"
        check(widget, "fuse").click()
        check(widget, "fold").click()
        settle(widget)
        assert "Fold batch norm off: −6.5 dB SQNR." in widget.text(".mq-caption")


@pytest.mark.parametrize("width", [375, 700])
def test_boxes_explain_themselves(browser, tmp_path, width):
    with stage(
        browser, tmp_path, SimulatedBlock(MEASURED), width=width, touch=width < 400
    ) as widget:
        seen = set()
        for name in widget.evaluate(SHOWN):
            node(widget, name).click()
            settle(widget)
            panel = widget.text(".sim-panel")
            assert node(widget, name).get_attribute("aria-pressed") == "true"
            assert node(widget, name).get_attribute("aria-label") in panel
            seen.add(panel)
        assert len(seen) == 24
        node(widget, "q-bn1").click()
        settle(widget)
        assert "32-bit sum" in widget.text(".sim-panel")
        check(widget, "weights").click()
        node(widget, "conv1").click()
        settle(widget)
        assert "the weights are not rounded" in widget.text(".sim-panel")


def test_by_keyboard(browser, tmp_path):
    """Tab walks the boxes in the order of computation, and the panel follows."""
    with stage(browser, tmp_path, SimulatedBlock(MEASURED)) as widget:
        keyboard = widget.root.page.keyboard
        widget.root.get_by_role("radio", name="device").focus()
        order = []
        widget.root.get_by_role("radio", name="simulation").focus()
        for _ in range(24):
            keyboard.press("Tab")
            settle(widget)
            name = widget.evaluate("() => document.activeElement.dataset.name")
            assert node(widget, name).get_attribute("aria-pressed") == "true"
            order.append(name)
        assert order[:5] == ["x", "q-x", "weight1", "q-weight1", "conv1"] and order[-1] == "y"
        node(widget, "bn1").focus()
        keyboard.press("Enter")
        check(widget, "fold").evaluate("box => box.click()")
        settle(widget)
        assert widget.text(".sim-name") == "First convolution, batch norm folded in"


def test_bits_on_the_wires_of_the_device(browser, tmp_path):
    twin = SimulatedBlock(MEASURED, fold=True, fuse=True, pool=True, view="device", weight_bits=4)
    notes = """root => [...root.querySelectorAll('.mq-notes text')]
        .map(t => t.textContent).filter(Boolean)"""
    with stage(browser, tmp_path, twin, width=700) as widget:
        assert sorted(widget.evaluate(notes)) == sorted(
            ["f32→8", "32", "32→8", "32→8", "32", "32→8", "8", "skip", "8→8", "4", "4"]
        )
        assert "4-bit weights" in widget.text(".sim-panel")
        widget.click("simulation")
        settle(widget)
        assert widget.evaluate(notes) == ["skip"]


OUTSIDE = """root => {
    const box = e => e.getBoundingClientRect(), frame = box(root.querySelector('.mq-svg'));
    const out = b => b.left < frame.left - 1 || b.right > frame.right + 1
        || b.top < frame.top - 1 || b.bottom > frame.bottom + 1;
    return [...root.querySelectorAll('.mq-svg :is(text, .sim-shape)')]
        .filter(e => e.checkVisibility() && out(box(e))).map(e => e.outerHTML); }"""
OVERLAP = """root => {
    const all = [...root.querySelectorAll('.sim-shape:not(.sim-bare)')]
        .filter(e => e.parentNode.getAttribute('display') !== 'none')
        .map(e => [e.parentNode.dataset.name, e.getBoundingClientRect()]);
    const meet = (a, b) => a.left < b.right && b.left < a.right
        && a.top < b.bottom && b.top < a.bottom;
    return all.flatMap(([m, a], i) => all.slice(i + 1).filter(([n, b]) => meet(a, b))
        .map(([n]) => [m, n])); }"""


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("width", [320, 375, 599, 620, 700, 1000])
def test_nothing_sticks_out_or_overlaps(browser, tmp_path, width, fold):
    twin = SimulatedBlock(MEASURED, view="device", fold=fold, fuse=fold)
    with stage(browser, tmp_path, twin, width=width) as widget:
        assert widget.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert widget.evaluate(OUTSIDE) == []
        assert widget.evaluate(OVERLAP) == []
