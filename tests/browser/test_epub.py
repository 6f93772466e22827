"""The e-book, bound here from two small pages: its files, formulas, pictures and links."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import epub
import pytest
from PIL import Image
from test_pdf import Running

H, M, S = (
    "{http://www.w3.org/1999/xhtml}",
    "{http://www.w3.org/1998/Math/MathML}",
    "{http://www.w3.org/2000/svg}",
)
FIRST = """<!DOCTYPE html><html lang="en"><title>t</title><style>:root { --ink: rgb(1, 2, 3); }
rect { fill: var(--ink); }</style><body><article class="bd-article"><h1>A first page
<a class="headerlink">#</a></h1><p id="twice" onclick="x()">One &amp; <br>two
<a href="two.html#there">across</a></p><p id="twice">again</p>
<button>Run</button><script>var x;</script>
<mjx-container display="true"><mjx-math>x</mjx-math><mjx-assistive-mml>
<math><mtable><mlabeledtr><mtd><mtext>(7)</mtext></mtd><mtd><mi>x</mi></mtd></mlabeledtr></mtable>
</math></mjx-assistive-mml></mjx-container>
<div class="ws-root" style="width: 50px; height: 40px; background: red">
<span role="img" aria-label="A red square."></span><button>Play</button></div>
<svg viewBox="0 0 9 9" role="img" aria-label="ink">
<title>Ink</title><rect width="9" height="9" class="x"/><rect style="display: none"/></svg>
<img src="_images/dot.png"><details><summary><p class="collapsed">Show</p><p class="expanded">Hide
</p></summary>code</details></article></body></html>"""
SECOND = """<!DOCTYPE html><html lang="en"><title>t</title><body><article class="bd-article">
<h1>2. Steps</h1><p id="there">There. <a href="https://x.test/one.html">away</a></p></article>"""


@pytest.fixture
def bound(browser, tmp_path, monkeypatch) -> zipfile.ZipFile:
    (tmp_path / "one.html").write_text(FIRST, "utf-8")
    (tmp_path / "two.html").write_text(SECOND, "utf-8")
    toc = "root: one\nparts:\n- caption: Part A\n  chapters:\n  - file: two\n"
    (tmp_path / "_toc.yml").write_text(toc, "utf-8")
    (tmp_path / "_images").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "_images/dot.png")
    monkeypatch.setattr(epub, "sync_playwright", lambda: Running(browser))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    epub.bind(tmp_path, tmp_path / "_toc.yml", tmp_path / "out.epub")
    return zipfile.ZipFile(tmp_path / "out.epub")


def test_two_pages_become_an_e_book(bound):
    first, *_ = bound.infolist()
    assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED
    assert bound.read("mimetype") == b"application/epub+zip"
    listing = ElementTree.fromstring(bound.read("EPUB/book.opf"))
    named = {i.get("href"): i for i in listing.iter("{http://www.idpf.org/2007/opf}item")}
    written = {n.removeprefix("EPUB/") for n in bound.namelist() if n.startswith("EPUB/")}
    assert set(named) == written - {"book.opf"}, "the list names all files and no others"
    assert named["one.xhtml"].get("properties") == "mathml svg"
    assert named["two.xhtml"].get("properties") is None
    assert named["nav.xhtml"].get("properties") == "nav"
    assert named["images/cover.png"].get("properties") == "cover-image"
    order = [i.get("idref") for i in listing.iter("{http://www.idpf.org/2007/opf}itemref")]
    ids = {i.get("id"): name for name, i in named.items()}
    assert [ids[k] for k in order] == ["nav.xhtml", "one.xhtml", "two.xhtml"]
    assert b"1970-01-01T00:00:00Z" in bound.read("EPUB/book.opf")
    contents = ElementTree.fromstring(bound.read("EPUB/nav.xhtml"))
    links = [(a.get("href"), a.text) for a in contents.iter(f"{H}a")]
    assert links == [("one.xhtml", "A first page"), ("two.xhtml", "2. Steps")]
    assert "Part A" in "".join(contents.itertext())


def test_a_page_keeps_what_can_be_read(bound):
    page = ElementTree.fromstring(bound.read("EPUB/one.xhtml"))  # well formed
    assert page.get("lang") == "en", "a reader's voice must know"
    assert [n.get("href") for n in page.iter(f"{H}link")] == ["book.css"]
    text = " ".join("".join(page.itertext()).split())
    assert "One & two across" in text and "again" in text
    assert not any(word in text for word in ("#", "Run", "Play", "var x", "Hide"))
    assert [p.get("id") for p in page.iter(f"{H}p")] == ["twice", None], "an id stands once"
    assert not any("onclick" in node.attrib for node in page.iter())
    assert next(page.iter(f"{H}a")).get("href") == "two.xhtml#there"
    assert "".join(next(page.iter(f"{H}summary")).itertext()) == "Show"
    second = ElementTree.fromstring(bound.read("EPUB/two.xhtml"))
    assert next(second.iter(f"{H}a")).get("href") == "https://x.test/one.html"


def test_formulas_drawings_and_pictures(bound):
    page = ElementTree.fromstring(bound.read("EPUB/one.xhtml"))
    math = next(page.iter(f"{M}math"))
    assert math.get("display") == "block" and not list(math.iter(f"{M}mlabeledtr"))
    assert ["".join(c.itertext()) for c in next(math.iter(f"{M}mtr"))] == ["x", "(7)"]
    shown, hidden = page.iter(f"{S}rect")
    assert shown.get("fill") == "rgb(1, 2, 3)", "no variables are needed"
    assert hidden.get("display") == "none" != shown.get("display")
    assert next(page.iter(f"{S}title")).attrib == {}, "paint belongs on shapes alone"
    widget, dot = page.iter(f"{H}img")
    assert widget.get("alt") == "A red square." and dot.get("alt") == ""
    shot = Image.open(io.BytesIO(bound.read(f"EPUB/{widget.get('src')}")))
    assert abs(shot.width - 100) <= 2 >= abs(shot.height - 80)
    assert shot.getpixel((95, 75))[:3] == (255, 0, 0)
    assert Image.open(io.BytesIO(bound.read(f"EPUB/{dot.get('src')}"))).size == (3, 2)


def test_without_a_browser_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("MINQ_BROWSER", "no-such-browser")
    with pytest.raises(FileNotFoundError, match="Install one"):
        epub.bind(tmp_path, Path("_toc.yml"), tmp_path / "out.epub")


def test_links_that_lead_nowhere_are_named():
    links = "".join(
        f'<a href="{to}"/>' for to in ("two.xhtml#a", "gone.xhtml", "#a", "https://x.test/a")
    )
    files = {
        "one.xhtml": f'<html xmlns="{H[1:-1]}">{links}</html>'.encode(),
        "two.xhtml": b"<html/>",
    }
    assert list(epub.dangling(files)) == ["one.xhtml: gone.xhtml"]
