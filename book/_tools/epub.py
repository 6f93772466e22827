"""Bind the built pages into one e-book, _build/minq.epub (EPUB 3), with an installed Chrome.

Each page is opened in the browser, which has typeset its formulas as MathML too and drawn its
figures; widgets become pictures of their first state. `epub_page.js` does that in the page, and
here is what an EPUB is: a zip of XHTML pages with a list of its files and a table of contents.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import yaml
from chrome import ADVICE, find_browser, launched
from pdf import HTML, ROOT, TOC, heading, opened, parts
from playwright.sync_api import Browser, Page, sync_playwright

OUT = ROOT / "_build" / "minq.epub"
IN_PAGE = (Path(__file__).parent / "epub_page.js").read_text("utf-8")
VIEW = {"viewport": {"width": 700, "height": 1000}, "device_scale_factor": 2}
"""The window in which figures are drawn, about a tablet."""
KINDS = {
    ".xhtml": "application/xhtml+xml", ".css": "text/css", ".png": "image/png",
    ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif",
    ".webp": "image/webp",
}  # fmt: skip
XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="en" \
xml:lang="en"><head><meta charset="utf-8"/><title>{title}</title>
<link rel="stylesheet" type="text/css" href="book.css"/></head><body>{body}</body></html>"""
CSS = """
body { line-height: 1.45; }
h1, h2, h3 { line-height: 1.2; }
pre { white-space: pre-wrap; font-size: 0.8em; border: 1px solid #999; padding: 0.5em; }
img, svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85em; } th, td { border: 1px solid #999; \
padding: 0.2em 0.5em; }
.admonition { border-left: 4px solid #777; padding-left: 0.8em; margin: 1em 0; }
.admonition-title, summary { font-weight: bold; }
.mq-term { color: inherit; }
.k, .kn, .ow { font-weight: bold; } .c1, .sd { font-style: italic; }
"""
CONTAINER = """<?xml version="1.0" encoding="utf-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="EPUB/book.opf" media-type="application/oebps-package+xml"/>
</rootfiles></container>"""
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="en">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">urn:uuid:{id}</dc:identifier><dc:title>{title}</dc:title>
<dc:creator>{author}</dc:creator><dc:language>en</dc:language>
<dc:rights>Code: Apache-2.0. Text and figures: CC BY 4.0.</dc:rights>
<meta property="dcterms:modified">{now}</meta>
<meta property="schema:accessMode">textual</meta><meta property="schema:accessMode">visual</meta>
<meta property="schema:accessModeSufficient">textual</meta>
<meta property="schema:accessibilityFeature">alternativeText</meta>
<meta property="schema:accessibilityFeature">MathML</meta>
<meta property="schema:accessibilityFeature">tableOfContents</meta>
<meta property="schema:accessibilityHazard">none</meta>
</metadata><manifest>{items}</manifest><spine>{spine}</spine></package>"""
MARK = """() => [...document.querySelectorAll('article .ws-root')].map((root) => {
    root.dataset.epub = '';
    const said = [...root.querySelectorAll('[role=img][aria-label]')];
    return said.map((n) => n.getAttribute('aria-label')).join(' ')
        || root.getAttribute('aria-label') || 'A figure to play with in the online book.';
})"""


def chapter(page: Page, name: str, files: dict[str, bytes]) -> str:
    """One page as XHTML; its pictures go to ``files``."""
    pictures = []
    for number, said in enumerate(page.evaluate(MARK)):
        place = f"images/{name}-{number}.png"
        files[place] = page.locator("article [data-epub]").nth(number).screenshot()
        pictures.append({"src": place, "alt": said})
    return page.evaluate(IN_PAGE, pictures)


def gathered(text: str, html: Path, files: dict[str, bytes]) -> str:
    """The page with the pictures it shows, which are copied from the built book."""

    def moved(match: re.Match) -> str:
        source = html / unquote(match[1])
        place = f"images/{source.name}"
        if match[1] not in files:
            files[place] = source.read_bytes()
        return f'src="{match[1] if match[1] in files else place}"'

    return re.sub('src="([^"]+)"', moved, text)


def contents(sections: list, titles: dict[str, str]) -> str:
    """The table of contents, by parts."""
    rows = []
    for caption, names in sections:
        links = "".join(
            f'<li><a href="{name}.xhtml">{escape(titles[name])}</a></li>' for name in names
        )
        rows.append(
            f"<li><span>{escape(caption)}</span><ol>{links}</ol></li>" if caption else links
        )
    return f'<nav epub:type="toc" id="toc"><h1>Contents</h1><ol>{"".join(rows)}</ol></nav>'


def properties(name: str, data: bytes) -> str:
    """What a reading system must know of a file before it opens it."""
    said = ["nav"] * (name == "nav.xhtml") + ["cover-image"] * (name == "images/cover.png")
    if name.endswith(".xhtml"):
        said += [kind for kind, tag in (("mathml", b"<math"), ("svg", b"<svg")) if tag in data]
    return f' properties="{" ".join(said)}"' if said else ""


def package(files: dict[str, bytes], order: list[str], config: dict) -> str:
    """The list of all files, and the order in which they are read."""
    ids = {name: f"f{k}" for k, name in enumerate(files)}
    items = "".join(
        f'<item id="{ids[name]}" href="{escape(name)}" '
        f'media-type="{KINDS[Path(name).suffix.lower()]}"{properties(name, data)}/>'
        for name, data in files.items()
    )
    spine = "".join(f'<itemref idref="{ids[name]}"/>' for name in order)
    now = time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    return PACKAGE.format(
        id=uuid.uuid5(uuid.NAMESPACE_URL, config["repository"]["url"]),
        title=escape(config["title"]),
        author=escape(config["author"]),
        now=time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        items=items,
        spine=spine,
    )


def cover(browser: Browser, config: dict) -> bytes:
    page = browser.new_page(viewport={"width": 800, "height": 1200}, device_scale_factor=2)
    logo = (ROOT / "book" / config["logo"]).read_text("utf-8")
    page.set_content(
        "<style>body { margin: 0; padding: 90px 70px; font: 64px/1.15 Georgia, serif; }"
        "svg, img { width: 300px; height: auto; margin-bottom: 260px; display: block; }"
        f"p {{ font-size: 30px; }}</style>{logo[logo.index('<svg') :]}"
        f"{escape(config['title'])}<p>{escape(config['author'])}, {config['copyright']}</p>"
    )
    shot = page.screenshot()
    page.close()
    return shot


def bind(html: Path, toc: Path, out: Path) -> list[str]:
    """Bind all pages of the table of contents; answer the files of the book."""
    executable = find_browser()
    if executable is None:
        raise FileNotFoundError(f"`make epub` draws with a browser, but {ADVICE}.")
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    sections = parts(toc)
    names = [name for _, pages in sections for name in pages]
    titles = {name: heading(html / f"{name}.html") for name in names}
    files: dict[str, bytes] = {"book.css": CSS.encode()}
    with sync_playwright() as playwright:
        browser = launched(playwright, executable)
        files["images/cover.png"] = cover(browser, config)
        for name in names:
            page = opened(browser, html / f"{name}.html", **VIEW)
            page.evaluate("() => window.MathJax?.startup?.promise")
            text = gathered(chapter(page, name, files), html, files)
            files[f"{name}.xhtml"] = XHTML.format(title=escape(titles[name]), body=text).encode()
            page.close()
        browser.close()
    nav = XHTML.format(title="Contents", body=contents(sections, titles))
    files["nav.xhtml"] = nav.encode()
    if missing := sorted(set(dangling(files))):
        print("links to pages outside of the book:", ", ".join(missing), file=sys.stderr)
    order = ["nav.xhtml", *(f"{name}.xhtml" for name in names)]
    write(out, files, package(files, order, config))
    return list(files)


def dangling(files: dict[str, bytes]) -> Iterator[str]:
    """Links that lead to no file of the book and not out of it."""
    for name, data in files.items():
        if name.endswith(".xhtml"):
            for link in ElementTree.fromstring(data).iter("{http://www.w3.org/1999/xhtml}a"):
                address = urlsplit(link.get("href", ""))
                if not address.scheme and address.path and address.path not in files:
                    yield f"{name}: {address.path}"


def write(out: Path, files: dict[str, bytes], listing: str) -> None:
    """The zip: its kind first and as it is, so that the file tells what it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_suffix(".part")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("EPUB/book.opf", listing)
        for name, data in files.items():
            book.writestr(f"EPUB/{name}", data)
    fresh.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HTML, help="the built book")
    parser.add_argument("--toc", type=Path, default=TOC, help="its table of contents")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        files = bind(options.html, options.toc, options.out)
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        return 1
    size = options.out.stat().st_size / 1e6
    print(f"The book is bound: {options.out}, {len(files)} files, {size:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
