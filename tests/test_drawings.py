"""The drawn figures: well-formed, readable by ear, in the theme's colours, with true numbers."""

import pkgutil
import re
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest

import minqbook.drawings
from minqbook.drawings import (
    arithmetic,
    equalization,
    folding,
    formats,
    kit,
    networks,
    rounding,
    shifts,
    training,
)
from minqbook.drawings import drawing as shown

BOOK = Path(__file__).resolve().parents[1] / "book"
SVG = "{http://www.w3.org/2000/svg}"


for part in pkgutil.iter_modules(minqbook.drawings.__path__):
    import_module(f"minqbook.drawings.{part.name}")


@pytest.fixture(params=shown.ALL)
def drawing(request):
    return shown.ALL[request.param]()


def test_is_well_formed_and_says_in_words_what_it_shows(drawing):
    figure = ElementTree.fromstring(drawing.html())
    pictures = list(figure.iter(f"{SVG}svg"))
    assert len(pictures) == len(drawing.panels)
    ids = [node.get("id") for node in figure.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) == 2 * len(pictures)
    for svg, panel in zip(pictures, drawing.panels, strict=True):
        title, desc = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
        assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert title.text and desc.text == panel.words and len(panel.words) > 60
        assert "  " not in panel.words and panel.words.endswith(".")
    assert figure.find("figcaption").text == drawing.claim
    assert not re.match("(a |the )?(figure|picture|drawing|diagram)", drawing.claim, re.I)
    assert repr(drawing) == f"{drawing!r}" and all(p.words in repr(drawing) for p in drawing.panels)


def test_has_no_colour_but_the_themes(drawing):
    figure = ElementTree.fromstring(drawing.html())
    allowed = {f"mq-{tone}" for tone in kit.TONES} | {"mq-edge", "mq-stroke", "mq-halo"}
    for node in figure.iter():
        kind = node.tag.removeprefix(SVG)
        if kind in ("rect", "path", "circle", "text"):
            assert set(node.get("class").split()) <= allowed
            assert {node.get("fill", "none"), node.get("stroke", "none")} <= {
                "none",
                "currentColor",
            }
        assert "color" not in node.get("style", "")


def test_no_text_leaves_its_panel_or_covers_another(drawing):
    for panel in drawing.panels:
        for a in panel.labels:
            inside = a.left >= -1 and a.right <= panel.width + 1 and a.top >= -1
            assert inside and a.bottom <= panel.height + 1, (panel.title, a)
        for a, b in combinations(panel.labels, 2):
            wide = min(a.right, b.right) - max(a.left, b.left)
            high = min(a.bottom, b.bottom) - max(a.top, b.top)
            assert wide < 1 or high < 1, (panel.title, a, b)


def test_guessed_widths_are_not_below_those_of_a_wide_font(drawing):
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", size=100)
    for label in (label for panel in drawing.panels for label in panel.labels):
        wide, _, _ = TextToPath().get_text_width_height_descent(label.text, font, False)
        size = label.bottom - label.top
        assert label.right - label.left > 0.93 * wide * size / 100 - 2, label


@cache
def cells_with_drawings():
    books = (nbformat.read(path, as_version=4) for path in BOOK.glob("*.ipynb"))
    return [c for book in books for c in book.cells if "minqbook.drawings" in c.source]


def test_stands_in_one_chapter_with_its_words(drawing):
    module = shown.ALL[drawing.name].__module__
    source = f"from {module} import {drawing.name}\n\n{drawing.name}()"
    cells = [cell for cell in cells_with_drawings() if cell.source == source]
    assert len(cells) == 1, f"{drawing.name} stands in {len(cells)} cells"
    assert cells[0].metadata.tags == ["hide-input", "drawing"]
    (output,) = cells[0].outputs
    assert output.data == {"text/plain": repr(drawing)}, "run `make outputs`"


def test_a_text_too_wide_for_its_box_is_refused():
    panel = kit.Panel("title", "words")
    panel.box(0, 0, 60, 20, "ReLU")
    with pytest.raises(ValueError, match="does not fit a box 60 wide: it needs"):
        panel.box(0, 0, 60, 20, "batch norm")
    with pytest.raises(ValueError, match="too small"):
        panel.text(0, 0, "x", size=9)
    with pytest.raises(ValueError, match="too pale"):
        panel.text(0, 0, "x", tone="yellow")
    with pytest.raises(ValueError, match="at most 390"):
        kit.Panel("title", "words", width=700)
    with pytest.raises(ValueError, match="needs a caption"):
        shown.Drawing("name", "no sentence", (panel,))


def test_indices_and_italics():
    text = kit.rich("*s*_{i} < 2")
    parts = ElementTree.fromstring(f"<text>{text}</text>")
    assert "".join(parts.itertext()).replace("\u200b", "") == "si < 2"
    assert [node.get("font-style") for node in parts][:1] == ["italic"]

    down, back, up, again = (float(n.get("dy")[:-2]) for n in ElementTree.fromstring(
        f"<text>{kit.rich('x_{i}^{2}')}</text>"))  # fmt: skip
    assert down > 0 > up, "an index stands lower, a power higher"
    assert 0.78 * down + back == pytest.approx(0, abs=0.01) == 0.78 * up + again


def test_the_kit_draws_where_it_says():
    panel = kit.Panel("title", "words", heading=False)
    x, y = kit.Scale(-2, 2, 10, 210), kit.Scale(0, 4, 100, 20)
    panel.curve(lambda v: v * v, x, y)
    panel.axis(x, 150, [-1, 2])
    panel.arrow((0, 0), (30, 40))
    panel.block(1, 2, 3, 4, "blue")
    curve, line, tick, label, *_ = svg = [*ElementTree.fromstring(panel.svg("p"))][2:]
    points = [tuple(map(float, p.split())) for p in curve.get("d")[1:].split("L")]
    assert points[0] == (10, 20) and points[40] == (110, 100) and points[60] == (160, 80)
    assert line.get("d") == "M10 150L210 150" and tick.get("d") == "M60 146L60 154"
    assert (label.get("x"), label.get("text-anchor"), label.text) == ("60", "middle", "−1")
    shaft, head, bar = svg[6:]
    assert shaft.get("d").startswith("M0 0") and head.get("d").startswith("M30 40")
    assert bar.get("fill-opacity") is None and bar.get("width") == "3"


def test_every_tone_has_a_colour_in_light_and_in_dark():
    rules = shown.style()
    for tone in kit.TONES:
        assert f".mq-drawing .mq-{tone} {{ color: var(--mq-{tone}); }}" in rules
        assert re.search(rf"--mq-{tone}: var\(--mq-light, #\w+\) var\(--mq-dark, #\w+\)", rules)
    dark = r"\.mq-drawing \{ --mq-light: ; --mq-dark: initial;"
    assert re.search(r'html\[data-theme="dark"\][^{]*' + dark, rules), "a page's switch"
    assert re.search(r"@media \(prefers-color-scheme: dark\) \{[^{]*" + dark, rules), "a system's"


# The numbers in a figure are the library's.


def test_equalized_ranges():
    from minq.ptq import equalize

    s, after1, after2 = equalization.equalized()
    assert np.allclose(s, equalize.equalization_scales(equalization.R1, equalization.R2))
    assert np.allclose(after1, after2) and np.allclose(after1, [2, 2, 1])
    c = equalize.absorbable(np.array([equalization.BETA]), np.array([equalization.GAMMA]))
    assert f"c = {c[0]:g}" in equalization.absorbed_bias().claim


def test_folded_weights():
    from minq import fold_batch_norm

    w, b = fold_batch_norm(
        folding.W[None],
        None,
        *np.array([[folding.GAMMA], [folding.BETA], [folding.MEAN]]),
        np.array([folding.SIGMA**2]),
        0.0,
    )
    ours = folding.folded()
    assert np.allclose(w, ours[0]) and np.allclose(b, ours[1])


def test_rectified_sigmoid():
    torch = pytest.importorskip("torch")
    from minq.ptq import soft_rounding

    v = torch.linspace(-6, 6, 101, dtype=torch.float64)
    ours = torch.tensor([rounding.h(float(x)) for x in v], dtype=torch.float64)
    assert torch.allclose(ours, soft_rounding.rectified_sigmoid(v), atol=1e-9)
    start = soft_rounding.initial_v(torch.tensor([[rounding.WEIGHT]]), torch.tensor([1.0]), axis=0)
    share = rounding.WEIGHT - int(rounding.WEIGHT)
    assert float(start) == pytest.approx(rounding.v_of(share), abs=1e-4)


def test_no_order_needs_less_memory():
    from minq.deploy.c.arena import best_order, lifetimes, needed
    from minqbook.drawings.memory import SHORT_FIRST, STEPS

    best = [STEPS[k] for k in best_order(STEPS)]
    assert needed(lifetimes(SHORT_FIRST)) == needed(lifetimes(best)) < needed(lifetimes(STEPS))


def test_requantized_sum():
    from minq.mac import requantize

    exact = requantize(np.array([arithmetic.SUM]), arithmetic.RATIO, arithmetic.ZERO_POINT, 8)
    assert int(exact[0]) == 120 == arithmetic.output(16) == arithmetic.output(31)
    assert arithmetic.output(8) == 121  # beside a tie, one step too high
    assert arithmetic.fixed_point(8) == (205, 14)


def test_shift_of_the_outputs():
    error, mean, errors = shifts.parts()
    assert np.allclose(errors.mean(), error @ mean) and np.allclose(errors.mean(), 0.3)
    assert "+0.3" in shifts.biased_error().claim


def test_detour_is_what_autograd_computes():
    torch = pytest.importorskip("torch")
    y = torch.tensor(training.VALUE, requires_grad=True)
    added = (torch.round(y) - y).detach()
    (y + added).backward()
    ours = training.detour(training.VALUE)
    assert ours == pytest.approx((float(added), float(torch.round(y.detach()))), abs=1e-6)
    forward, backward = training.straight_and_detour().panels
    assert f"which gives {ours[0]:.1f}" in forward.words and f": {ours[1]:g}, the" in forward.words
    assert f"So {float(y.grad):g} arrives" in backward.words


def test_a_register_is_full_and_all_products_are_counted():
    """By the instructions' definitions: vfmadd231ps, vpdpbusd; vpmovsxbw, vpmaddwd, vpaddd."""
    for name, bits, steps in formats.WAYS:
        numbers = formats.REGISTER // bits
        assert numbers * bits == formats.REGISTER
        multiplied = sum("multiply" in step for step in steps) * numbers
        assert multiplied == formats.PRODUCTS, name
        # Both factors are widened, sums of 32 bits are added once for each multiplication.
        assert steps.count("widen") == (2 * steps.count("multiply") if bits == 16 else 0)
        assert steps.count("add") == steps.count("multiply")


def test_starts_against_a_sample():
    from minq import quantize, ranges

    w = np.random.default_rng(0).laplace(0, training.SPREAD, 100_000)
    low, high = ranges.mse(w, 2, signed=True, symmetric=True)
    assert float(high) == pytest.approx(training.least_error(), rel=0.08)
    for scale in training.starts().values():
        codes = quantize(w, scale, 0, 2, signed=True)
        zero, clipped = training.shares(scale)
        assert np.mean(codes == 0) == pytest.approx(zero, abs=0.01)
        outside = (w < -2.5 * scale) | (w > 1.5 * scale)
        assert outside.mean() == pytest.approx(clipped, abs=0.01)


@pytest.mark.parametrize("name", ["text_encoder", "resnet_basic"])
def test_quantizers_sit_where_the_library_puts_them(name):
    pytest.importorskip("torch")
    import minq
    from minq.simulate import activation_quantizers, weight_quantizers
    from minqbook import zoo

    model = zoo.load(name)
    x = zoo.calibration_set(name, 2)
    q = minq.insert_quantizers(
        minq.fold_batch_norms(minq.capture(model, x)), weights=8, activations=8
    )
    block = "layers.0." if name == "text_encoder" else "blocks.0."
    results = [k for k in activation_quantizers(q) if k.startswith(block)]
    weights = [k for k in weight_quantizers(q) if k.startswith(block)]
    panels = (
        networks.transformer_quantizers()
        if name == "text_encoder"
        else networks.residual_quantizers()
    ).panels
    assert sum(p.dots for p in panels) == len(results), results
    assert sum(p.squares for p in panels) == len(weights), weights
