"""The reader's own picture: the page's networks answer as ONNX Runtime and as the integers do."""

import base64
import html
import io
import json

import numpy as np
import pytest
import torch
from bookpage import BROKEN, ROOT
from pack import pack
from PIL import Image
from stage import stage
from test_pages import WIDE, low_contrast, violations

from minq.deploy import to_integer
from minqbook import zoo
from minqbook.picture import STORED, networks
from minqbook.picture.answers import Files
from minqbook.picture.samples import samples
from minqbook.widgets import OwnPicture, bundle
from minqbook.zoo.photos import read

stored = json.loads(STORED.read_text("utf-8"))
DIGITS = ("resnet_basic", "mobilenet_v2")
WAIT = 120_000
WASM = "ort-wasm-simd-threaded"
ENGINE = ("ort.wasm.min.js", "worker.js", f"{WASM}.mjs", f"{WASM}.wasm")
HERE = "document.querySelector('.minq-OwnPicture').dataset.answers === 'here'"


def module(name, *exported):
    """The source of a script and all it imports, as one module that exports these names."""
    return f"{bundle.bundle(name)}\nexport {{ {', '.join(exported)} }};"


@pytest.fixture(scope="session")
def made(book):
    """The folder of the networks' files, where the book was built with the engine."""
    folders = list((ROOT / "_build" / "networks").glob("*/files"))
    if not folders or not list((book.html / "_static/live").glob("ort.wasm*")):
        pytest.skip("the book was built without onnxruntime-web")
    return folders[0]


def scenes(count):
    """Digit scenes in whole pixels."""
    images = zoo.test_set("resnet_basic", count, seed=5)[0].numpy()
    return np.moveaxis(np.rint(images * 63.75 + 127.5).astype(np.uint8), 1, -1)


# --- The numbers ----------------------------------------------------------------------------------

RUN = """async ([source, jobs]) => {
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const { open, answer, compared } = await import(url), found = {};
    const forms = ["fp32", "int8", "int4"];
    for (const [name, pictures] of Object.entries(jobs)) {
        for (const form of forms) await open(name, form);
        found[name] = { logits: Object.fromEntries(forms.map(form => [form, []])) };
        for (const text of pictures) {
            const raw = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            const x = new Float32Array(raw.buffer);
            for (const form of forms)
                found[name].logits[form].push([...await answer(name, form, x)]);
            found[name].sqnr ??= await compared(name, x);
        }
    }
    return found;
}"""


def test_answers_equal_onnx_runtimes_and_the_integers(open_page, made):
    """40 scenes and a photo, through the page's own engine."""
    inputs = {name: networks.prepared(scenes(40), networks.NETWORKS[name]) for name in DIGITS}
    photo = samples("photo")[0].pixels[None]
    name = "efficientnet_lite0"
    inputs[name] = networks.prepared(photo, networks.NETWORKS[name])
    jobs = {n: [base64.b64encode(v.tobytes()).decode() for v in x] for n, x in inputs.items()}
    page = open_page("ch18_deployment").page
    source = module("picture/engine.js", "open", "answer", "compared")
    found = page.evaluate(RUN, [source, jobs])
    for name, x in inputs.items():
        files = Files(name, made)
        for form in networks.BITS:
            ours = np.array(found[name]["logits"][form])
            theirs = files.logits(form, x)
            assert (ours.argmax(1) == theirs.argmax(1)).all(), (name, form)
            # FP32 adds in another order. Integers differ where a sum lies beside a tie: in a few
            # logits, by a step of the last grid; by two behind EfficientNet-Lite0's fifty layers.
            last = files.info["sites"][-1][form]
            step = 1e-3 if form == "fp32" else last["scale"]
            off = np.abs(ours - theirs) / step
            if name in DIGITS:
                assert off.max() < 1.01 and (off > 0.5).mean() < 0.03, (name, form)
            else:
                assert off.max() < 3.01, (name, form)
        theirs = files.decibels(x[:1])
        for form, ours in found[name]["sqnr"].items():
            ours = np.array([np.inf if v is None else v for v in ours])
            near = 0.02 if name in DIGITS else 1.0
            assert np.allclose(ours, theirs[form], rtol=0, atol=near), (name, form)
    name = "resnet_basic"
    integers = to_integer(networks.in_forms(name, ["int8"])["int8"])
    theirs = integers(torch.from_numpy(inputs[name])).numpy()
    ours = np.array(found[name]["logits"]["int8"])
    step = Files(name, made).info["sites"][-1]["int8"]["scale"]
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    steps = np.abs(ours - theirs) / step
    assert steps.max() < 1.01 and (steps > 0.5).mean() < 0.06


@pytest.mark.parametrize("size", [(40, 97), (300, 231), (32, 32), (7, 9), (1201, 640)])
def test_pictures_are_prepared_as_pillow_does(js, tmp_path, size):
    """To the last bit: crop, bicubic resizing, normalisation."""
    random = np.random.default_rng(size[0])
    coarse = random.integers(0, 256, (size[1] // 5 + 1, size[0] // 5 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.BICUBIC)
    image.save(tmp_path / "picture.png")
    source = module("picture/resize.js", "middleSquare", "resized", "normalised")
    for name in ("resnet_basic", "efficientnet_lite0"):
        network = networks.NETWORKS[name]
        pixels = read(tmp_path / "picture.png", middle=network.middle, size=network.size)
        rgba = base64.b64encode(np.array(image.convert("RGBA")).tobytes()).decode()
        call = """({ middleSquare, resized, normalised }, [text, w, h, n]) => {
            const raw = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            const { x, y, side } = middleSquare(w, h, n.middle);
            const square = new Uint8Array(side * side * 4);
            for (let row = 0; row < side; row++)
                square.set(raw.subarray(4 * ((y + row) * w + x), 4 * ((y + row) * w + x + side)),
                    4 * side * row);
            return [...normalised(resized(square, 4, side, n.size), n.mean, n.std)];
        }"""
        facts = {k: getattr(network, k) for k in ("middle", "size", "mean", "std")}
        ours = np.array(js(source, call, [rgba, *size, facts]), np.float32)
        assert (ours == networks.prepared(pixels[None], network).ravel()).all(), name


# --- The figure -----------------------------------------------------------------------------------


def answers(widget):
    """{form: [[name, percent], ...]} as shown."""
    cards = widget.evaluate(
        """root => Object.fromEntries([...root.querySelectorAll('.mqp-card')].map(card =>
            [card.getAttribute('aria-label').toLowerCase(), [...card.querySelectorAll('li')]
                .map(li => [...li.querySelectorAll('span, b')].map(e => e.innerText))]))"""
    )
    assert list(cards) == list(networks.BITS)
    return cards


def close_to(found, stored):
    """The same first answer, and probabilities as a network gives them whose ranges another machine
    found: sums beside a tie fall the other way, and two logits move by a step or two of about 0.11.
    """
    percent = [{name: float(p.split()[0]) for name, p in shown} for shown in (found, stored)]
    both = percent[0].keys() & percent[1].keys()
    ratios = [percent[0][name] / percent[1][name] for name in both]
    return found[0][0] == stored[0][0] and all(abs(np.log(r)) < 4 * 0.11 for r in ratios)


def names(network, sample, form):
    known = stored["networks"][network]
    return [known["classes"][str(i)] for i, _ in known["answers"][sample]["tops"][form]]


def test_without_the_engine_it_shows_stored_answers_and_says_so(browser, tmp_path):
    with stage(browser, tmp_path, OwnPicture(network="efficientnet_lite0"), width=375) as widget:
        page = widget.root.page
        assert "built without the engine" in widget.text()
        assert not widget.root.get_by_role("button", name="Run").count()
        assert not widget.root.get_by_role("button", name="Draw").count()
        for sample in (0, 1):
            widget.root.locator(f"[data-sample='{sample}']").click()
            page.wait_for_timeout(50)
            for form, shown in answers(widget).items():
                assert [a for a, _ in shown] == names("efficientnet_lite0", sample, form)
        widget.click("MobileNet")
        page.wait_for_timeout(50)
        assert [a for a, _ in answers(widget)["int4"]] == names("mobilenet_v2", 0, "int4")
        assert page.evaluate(WIDE) == []
        assert not widget.broken_text()


def picture(name, size, kind="PNG"):
    file = io.BytesIO()
    Image.new("1", size).save(file, kind)
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def test_by_keyboard_from_a_disk(open_page, made):
    """Nothing loads before Run; then samples, a drawing, and files that are none; and a phone."""
    book_page = open_page("intro", over="file", width=800)
    page, asked = book_page.page, []
    page.on("request", lambda request: asked.append(request.url))
    widget = book_page.widget(".minq-OwnPicture")
    before = answers(widget)
    assert {form: [a for a, _ in shown] for form, shown in before.items()} == {
        form: names("resnet_basic", 0, form) for form in networks.BITS
    }
    assert not [url for url in asked if "/live/" in url]
    widget.root.get_by_role("button", name="Run ResNet").press("Enter")
    page.wait_for_function(HERE, timeout=WAIT)
    for form, shown in answers(widget).items():  # stored by another machine, see close_to
        assert close_to(shown, before[form]), "the page computes what was stored"
    page.wait_for_function("document.querySelector('.minq-OwnPicture').dataset.timed", timeout=WAIT)
    page.wait_for_timeout(100)
    assert "here, on your machine" in widget.text("figcaption")
    assert widget.text(".mqp-facts").endswith(" ms")
    widget.root.locator("[data-sample='1']").press("Enter")
    page.wait_for_function(HERE, timeout=WAIT)
    page.wait_for_timeout(100)
    for form, shown in answers(widget).items():
        assert [a for a, _ in shown][:2] == names("resnet_basic", 1, form)[:2]
    # a stroke downwards is a one
    widget.root.get_by_role("button", name="Draw a digit").press("Enter")
    sheet = widget.root.locator("canvas.mqp-pad")
    assert sheet.evaluate("e => e === document.activeElement")
    page.keyboard.press("Space")
    for _ in range(12):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_function(HERE, timeout=WAIT)
    page.wait_for_timeout(100)
    assert answers(widget)["fp32"][0][0] == "1", answers(widget)
    # a file as large as the network's square is read pixel by pixel
    chosen, pixels = io.BytesIO(), scenes(3)[2]
    Image.fromarray(pixels).save(chosen, "PNG")
    pick = widget.root.locator("input[type=file]")
    pick.set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": chosen.getvalue()})
    page.wait_for_function(HERE, timeout=WAIT)
    page.wait_for_timeout(100)
    assert "mine.png" in sheet.get_attribute("aria-label")
    files = Files("resnet_basic", made)
    x = networks.prepared(pixels[None], networks.NETWORKS["resnet_basic"])
    for form, shown in answers(widget).items():
        assert shown[0][0] == str(files.logits(form, x).argmax())
    complaint = widget.root.locator(".mqp-problem")
    for given, says in (
        ({"name": "x.png", "mimeType": "image/png", "buffer": b"nothing"}, "x.png is no picture"),
        (picture("wide.png", (4200, 4100)), "too large"),
    ):
        pick.set_input_files(given)
        page.wait_for_function("document.querySelector('.mqp-problem').textContent")
        assert says in complaint.inner_text()
        assert "mine.png" in sheet.get_attribute("aria-label"), "the last good picture stays"
    assert not widget.broken_text(), BROKEN
    assert not violations(page, rules={"color-contrast": {"enabled": False}})
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        assert not low_contrast(page), theme
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.fixture
def head(tmp_path):
    """The head of a page that says it has the engine; the network's file is damaged."""
    folder, names = tmp_path / "live", (*ENGINE, "resnet_basic.json")
    folder.mkdir()
    table = {name: pack(name, b"{}" * 200, folder) for name in names}
    (path,) = folder.glob("resnet_basic.json.*.js")
    path.write_text(path.read_text().replace("H4sI", "H4sA"))
    content = html.escape(json.dumps({"files": table, "bundles": {}}))
    return f'<meta name="minq-parts" content="{content}">'


def problem(widget):
    """What the figure says went wrong, once it does."""
    said = widget.root.locator(".mqp-problem:not(:empty)")
    said.wait_for()
    return said.inner_text()


def test_a_damaged_file_is_named(browser, tmp_path, head):
    with stage(browser, tmp_path, OwnPicture(), head=head) as widget:
        widget.click("Run ResNet")
        assert "resnet_basic.json is damaged" in problem(widget)
        assert widget.root.get_by_role("button", name="Run ResNet").is_enabled()


def test_a_file_that_is_too_large_is_not_read(browser, tmp_path, head):
    drop = """root => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(41e6)], "huge.png", { type: "image/png" }));
        root.querySelector(".mqp-pad").dispatchEvent(
            new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    with stage(browser, tmp_path, OwnPicture(), head=head) as widget:
        before = widget.root.locator("canvas.mqp-pad").get_attribute("aria-label")
        widget.evaluate(drop)
        assert problem(widget) == "The file huge.png has 41 MB; the most is 40 MB."
        assert widget.root.locator("canvas.mqp-pad").get_attribute("aria-label") == before


# A moving canvas stands for a camera, and an error for a reader or a machine that gives none.
CAMERA = """(root, error) => {
    navigator.mediaDevices.getUserMedia = async () => {
        if (error) throw new DOMException("no", error);
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
        const paint = canvas.getContext("2d");
        setInterval(() => paint.fillRect(0, 0, 9 + Math.random(), 9), 20);
        return (root.stream = canvas.captureStream());
    };
}"""


def test_a_picture_from_the_camera(browser, tmp_path, head):
    with stage(browser, tmp_path, OwnPicture(), head=head) as widget:
        widget.evaluate(CAMERA)
        widget.click("Use the camera")
        widget.root.page.wait_for_function("document.querySelector('video').videoWidth === 64")
        widget.click("Take it")
        widget.root.locator("canvas[aria-label*='from the camera']").wait_for()
        assert not widget.root.locator(".mqp-camera").is_visible()
        assert not widget.evaluate("root => root.stream.active"), "the camera is off"


@pytest.mark.parametrize(
    "error, says",
    [
        ("NotAllowedError", "The camera was not allowed; choose a file instead."),
        ("NotFoundError", "There is no camera to use here; choose a file instead."),
    ],
)
def test_a_camera_that_is_refused_or_missing(browser, tmp_path, head, error, says):
    with stage(browser, tmp_path, OwnPicture(), head=head) as widget:
        widget.evaluate(CAMERA, error)
        widget.click("Use the camera")
        assert problem(widget) == says
        assert not widget.root.locator(".mqp-camera").is_visible()
