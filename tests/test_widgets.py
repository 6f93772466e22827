"""The widgets' Python side: one script a widget, checked traits, a stable repr, a text twin."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

import minqbook.widgets
from minq import affine
from minqbook.widgets import AffinePlayground, ImageBits, Question, base, bundle
from minqbook.widgets.image_bits import sample_image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*bundle.HERE.rglob("*.js"), *(ROOT / "book" / "_assets").glob("*.js")]
SCRIPTS = sorted(p.name for p in bundle.HERE.glob("*.js") if p.stem not in ("quantize", "floats"))


# --- Loading and bundling -------------------------------------------------------------------------


def test_importing_the_package_loads_no_widget_machinery():
    code = "import sys, minqbook.widgets as w; print('anywidget' in sys.modules, dir(w))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, _, names = done.stdout.partition(" ")
    assert heavy == "False" and "ImageBits" in names


def test_unknown_widget_and_missing_anywidget_say_what_to_do():
    with pytest.raises(AttributeError, match="it has AffinePlayground"):
        _ = minqbook.widgets.Playground
    code = "import sys; sys.modules['anywidget'] = None; from minqbook.widgets import ImageBits"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install anywidget" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_bundle_is_one_module_without_imports(name, tmp_path):
    source = bundle.bundle(name)
    assert not re.search(r"^\s*import\b", source, re.MULTILINE)
    assert re.findall(r"^export .*", source, re.MULTILINE) == ["export default {"]
    texts = [bundle.read(module) for module in bundle.modules(name)]
    declared = bundle.TOP_LEVEL.findall("".join(texts))
    assert len(declared) == len(set(declared))
    # Only those names may be used that are declared in the bundle: none is lost with its import.
    for text in texts:
        for names in re.findall(r"^import\s*\{([^}]*)\}", text, re.MULTILINE):
            assert {n.strip() for n in names.split(",") if n.strip()} <= set(declared)
    if shutil.which("node"):  # the parser also rejects a name declared twice
        file = tmp_path / "bundle.mjs"
        file.write_text(source, "utf-8")
        subprocess.run(["node", "--check", file], check=True)


def test_bundler_refuses_what_it_cannot_join(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "HERE", tmp_path)

    def joined(**files):
        for stem, text in files.items():
            (tmp_path / f"{stem}.js").write_text(text)
        return bundle.bundle.__wrapped__(next(iter(files)) + ".js")

    importing = 'import { f } from "./b.js";\n'
    both = joined(a=importing + "export default { f };\n", b="export function f() {}\n")
    assert both == "function f() {}\nexport default { f };\n"
    with pytest.raises(ValueError, match="a.js and b.js both declare f"):
        joined(a=importing + "const f = 1;\n", b="export function f() {}\n")
    with pytest.raises(ValueError, match="cannot bundle"):
        joined(a='import x from "./b.js";\n', b="export const x = 1;\n")
    with pytest.raises(ValueError, match="cannot bundle"):
        joined(a=importing, b="const f = 1;\nexport { f };\n")
    with pytest.raises(ValueError, match="default export"):
        joined(a=importing, b="export const f = 1;\nexport default {};\n")


def test_bundle_leaves_out_what_no_browser_reads(tmp_path, monkeypatch):
    source = """// What it is.

/** In words.
 *  In more words. */
export function f(x) {
  // Why.
  return `${x}// no comment`; // how
}
"""
    (tmp_path / "a.js").write_text(source)
    monkeypatch.setattr(bundle, "HERE", tmp_path)
    short = "function f(x) {\nreturn `${x}// no comment`; // how\n}\n"
    assert bundle.bundle.__wrapped__("a.js") == short


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_lines_are_short_and_no_string_goes_over_them(path):
    """A string of several lines would lose its indents in the bundle of a widget."""
    for line in path.read_text("utf-8").splitlines():
        assert len(line) <= 120, line
        if path.is_relative_to(bundle.HERE):
            is_comment = line.lstrip().startswith(("//", "*"))
            assert line.count("`") % 2 == 0 or is_comment, line


def test_style_is_shared_and_scoped():
    """No rule may reach out of the figure into the page around it."""
    text = re.sub(r"/\*.*?\*/", "", ImageBits._css, flags=re.DOTALL)
    assert ImageBits._css == AffinePlayground._css
    for selector in re.findall(r"([^{}]+)\{[^{}]*\}", text):
        selector = selector.strip()
        assert ".minq" in selector, selector


# --- What every widget does -----------------------------------------------------------------------

FACTORIES = [lambda **k: AffinePlayground(**k), lambda **k: ImageBits(np.eye(4), **k)]


@pytest.mark.parametrize("make", FACTORIES)
def test_repr_is_stable_and_the_text_twin_is_there(make):
    assert repr(make()) == repr(make())
    data, _ = make()._repr_mimebundle_()
    assert data["text/plain"] == f"{make()!r}\n{make().alt}"
    assert "application/vnd.jupyter.widget-view+json" in data
    assert make(alt="Mine.").alt == "Mine."
    with pytest.raises(ValueError, match="say in a sentence what the picture shows"):
        make(alt="  ")
    with pytest.raises(traitlets.TraitError):
        make(alt=None)
    with pytest.raises(TypeError, match="no argument 'colour'"):
        make(colour="red")


def test_a_widget_without_alt_cannot_be_made():
    class Mute(base.Widget):
        _esm = "export default {}"

    with pytest.raises(ValueError, match="Mute needs alt"):
        Mute()


@pytest.mark.parametrize("make", FACTORIES)
def test_state_travels_as_json_and_bytes(make):
    widget = make()
    state = widget.get_state()
    name = type(widget).__name__
    home = getattr(minqbook.widgets, name)
    assert (state["_esm"], state["_css"]) == (home._esm, home._css)
    assert state["_anywidget_id"] == f"{home.__module__}.{name}"  # the figure's class: minq-NAME
    json.dumps({k: v for k, v in state.items() if not isinstance(v, bytes) and k != "layout"})


def test_pack():
    values, raw = base.pack([1, 2.5], "data", 2)
    assert np.frombuffer(raw, "<f4").tolist() == [1, 2.5] == values.tolist()
    torch = pytest.importorskip("torch")
    _, raw = base.pack(torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True), "data", 2)
    assert np.frombuffer(raw, "<f4").tolist() == [1.5]


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ([], ValueError, "empty"),
        ([1.0, float("nan")], ValueError, "1 NaN or infinite"),
        ([float("inf")], ValueError, "infinite"),
        (np.arange(3), TypeError, "floating point"),
        ("abc", TypeError, "a list of numbers"),
        (np.zeros(200_001), ValueError, r"pass a sample, e.g. data.flat\[::3\]"),
        ([1e39], ValueError, "float32"),
    ],
)
def test_bad_data_are_refused(bad, error, says):
    with pytest.raises(error, match=says):
        AffinePlayground(bad)


# --- A question first -----------------------------------------------------------------------------

CHOICES = dict(text="How?", choices=["a", "b"], answer=1)
LINE = dict(text="How much?", low=0, high=12, answer=6.0)


def test_question_travels_and_stands_in_the_text_twin():
    question = Question(**CHOICES, because="So.")
    widget = AffinePlayground(question=question)
    assert json.loads(json.dumps(widget.get_state("question")["question"])) == {
        **CHOICES,
        **dict(because="So.", low=None, high=None, step=None, unit=""),
    }
    said = "Question: How?\na / b\nAnswer: b. So."
    assert widget._repr_mimebundle_()[0]["text/plain"] == f"{widget!r}\n{widget.alt}\n{said}"
    assert AffinePlayground().get_state("question") == {"question": None}
    with pytest.raises(traitlets.TraitError, match="Question"):
        AffinePlayground(question="How?")
    with pytest.raises(AttributeError):
        question.answer = 0


@pytest.mark.parametrize(
    ("high", "step"), [(12, 0.1), (100, 1.0), (1, 0.01), (0.3, 0.001), (49.9, 0.1)]
)
def test_slider_of_a_question_moves_in_a_power_of_ten(high, step):
    assert Question("?", low=0, high=high, answer=np.float32(0)).step == pytest.approx(step)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(text=" "), ValueError, "text must not be empty"),
        (dict(text=None), TypeError, "text must be a string"),
        (dict(because=None), TypeError, "because must be a string"),
        (dict(choices=["a"]), ValueError, "two or more"),
        (dict(choices=["a", "a"]), ValueError, "all different"),
        (dict(choices=["a", ""]), ValueError, "every choice must not be empty"),
        (dict(choices="ab"), TypeError, "a list of strings"),
        (dict(answer=2), ValueError, "0 to 1, not 2"),
        (dict(answer=-1), ValueError, "0 to 1, not -1"),
        (dict(answer=1.0), TypeError, "index of a choice"),
        (dict(answer=True), TypeError, "index of a choice"),
        (dict(low=0), ValueError, "not both"),
        (dict(unit="dB"), ValueError, "not both"),
        (dict(choices=None), ValueError, "choices, or low and high"),
    ],
)
def test_question_of_words_refuses(change, error, says):
    with pytest.raises(error, match=says):
        Question(**(CHOICES | change))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(answer=float("nan")), ValueError, "answer must be finite"),
        (dict(answer=np.float64("inf")), ValueError, "answer must be finite"),
        (dict(answer=12.1), ValueError, "outside low to high"),
        (dict(answer="6"), TypeError, "answer must be a number"),
        (dict(low=12), ValueError, "low must be below high"),
        (dict(high=None), ValueError, "choices, or low and high"),
        (dict(step=0), ValueError, "step must be above 0"),
        (dict(step=13), ValueError, "at most high - low"),
    ],
)
def test_question_of_a_number_refuses(change, error, says):
    with pytest.raises(error, match=says):
        Question(**(LINE | change))


# --- Affine playground ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_playground_starts_with_the_min_max_grid(bits, signed, symmetric):
    data = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    kind = dict(signed=signed)
    if signed and bits == 1:
        with pytest.raises(ValueError, match="no positive level"):
            AffinePlayground(data, bits=bits, signed=signed)
        return
    w = AffinePlayground(data, bits=bits, signed=signed, symmetric=symmetric)
    low = 0.0 if symmetric and not signed else float(data.min())
    scale, z = affine.scale_zero_point(low, float(data.max()), bits, symmetric=symmetric, **kind)
    assert (w.scale, w.zero_point) == (float(scale), int(z))
    flat = data.astype(np.float64)
    assert (w.x_hat == affine.fake_quantize(flat, scale, int(z), bits, **kind)).all()
    assert np.frombuffer(w.data, "<f4").tolist() == data.ravel().tolist()


def test_playground_with_a_given_scale_puts_the_zero_point_where_the_data_begin():
    w = AffinePlayground([-1.0, 3.0], scale=0.5, bits=4)
    assert (w.scale, w.zero_point) == (0.5, 2)
    assert AffinePlayground([-1.0, 3.0], scale=0.5, symmetric=True, signed=True).zero_point == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(bits=0), "bits must be from 1 to 16"),
        (dict(bits=17), "bits must be from 1 to 16"),
        (dict(scale=0.0), "scale must be"),
        (dict(scale=float("nan")), "scale must be"),
        (dict(scale=float("inf")), "scale must be"),
        (dict(zero_point=16), "on the grid"),
        (dict(zero_point=-1), "on the grid"),
        (dict(symmetric=True, zero_point=3), "symmetric grid has zero_point 0"),
    ],
)
def test_playground_refuses_what_makes_no_grid(arguments, says):
    with pytest.raises(ValueError, match=says):
        AffinePlayground(**arguments)


def test_live_changes_stay_on_the_grid():
    w = AffinePlayground(bits=8, zero_point=200)
    w.bits = 4
    assert w.zero_point == 15
    w.signed = True
    assert w.zero_point == 7
    w.symmetric = True
    assert w.zero_point == 0
    with pytest.raises(ValueError, match="symmetric grid"):
        w.zero_point = 1
    with pytest.raises(ValueError, match="no positive level"):
        w.bits = 1
    with pytest.raises(ValueError, match="scale must be"):
        w.scale = -1.0
    assert (w.bits, w.signed, w.zero_point) == (4, True, 0)
    # What the page sends arrives as one message, and is checked as a whole.
    w.set_state({"symmetric": False, "signed": False, "bits": 8, "zero_point": 255, "scale": 0.5})
    assert (w.bits, w.zero_point, w.scale) == (8, 255, 0.5)


# --- Pictures -------------------------------------------------------------------------------------


def test_pictures_from_arrays():
    grey = ImageBits(np.array([[0.0, 0.5, 1.0]]), bits=2)
    assert grey.pixels == bytes([0, 128, 255]) and grey.shape == [1, 3, 1]
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    w = ImageBits(np.asfortranarray(colour), channels=[True, False, True])
    assert (
        w.pixels == colour.tobytes() and w.shape == [4, 5, 3] and w.channels == [True, False, True]
    )


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (np.zeros((3, 8, 8), np.uint8), ValueError, "moveaxis"),
        (np.zeros(5), ValueError, "must be"),
        (np.zeros((0, 4)), ValueError, "empty"),
        (np.zeros((600, 600), np.uint8), ValueError, "shrink it"),
        (np.zeros((4, 4), np.int64), TypeError, "uint8 or floats"),
        (np.full((4, 4), 255.0), ValueError, "scale it first"),
        (np.full((4, 4), np.nan), ValueError, "without NaN"),
        ("cat", ValueError, "one of flower, china, digit"),
    ],
)
def test_bad_pictures_are_refused(image, error, says):
    with pytest.raises(error, match=says):
        ImageBits(image)


def test_bad_bits_and_channels_are_refused():
    for bits in (0, 9):
        with pytest.raises(ValueError, match="bits must be from 1 to 8"):
            ImageBits(np.eye(3), bits=bits)
    with pytest.raises(ValueError, match="one a channel"):
        ImageBits(np.eye(3), channels=[True, True])


@pytest.mark.parametrize(("name", "shape"), [("flower", (128, 128, 3)), ("digit", (8, 8))])
def test_sample_pictures(name, shape):
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    image = sample_image(name)
    assert (
        image.shape == shape and image.dtype == np.uint8 and image.max() > 200 and image.min() < 10
    )
