"""Print the built pages into one book, _build/minq.pdf, with an installed Chrome or Chromium.

Each page is printed by itself; pypdf joins them, adds bookmarks and page numbers, and turns links
from page to page into links inside the file. Widgets are printed in their first state.
"""

from __future__ import annotations

import argparse
import io
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from chrome import ADVICE, find_browser, launched
from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
TOC = ROOT / "book" / "_toc.yml"
OUT = ROOT / "_build" / "minq.pdf"
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"}
# What only paper needs; the rest of the print rules is in book.css.
PAPER = """
.bd-header, .bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .prev-next-area,
.bd-footer, .bd-footer-content, .headerlink, .copybtn, .skip-link, #pst-back-to-top, dialog,
.header-article, .footer-article, #jb-print-docs-body { display: none !important; }
.bd-main, .bd-content, .bd-article-container, .bd-container, .bd-container__inner {
  display: block !important; max-width: none !important; width: 100% !important;
  padding: 0 !important; margin: 0 !important; }
.bd-article { padding: 0 !important; font-size: 11pt; }
img, svg, figure, tr, .ws-root, .admonition, .exercise, mjx-container[display] {
  break-inside: avoid; }
article.bd-article h1:first-of-type { display: block !important; }
h1, h2, h3, h4 { break-after: avoid; }
pre { white-space: pre-wrap !important; }
"""
# Draw every widget now, and answer no question for the reader.
WAKE = """async () => {
    await window.minqSettled;
    document.documentElement.dataset.theme = 'light';
    dispatchEvent(new Event('beforeprint'));
}"""
DRAWN = "() => !document.querySelector('.ws-root[data-state=waiting]')"
FRONT = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 12pt/1.5 Georgia, serif; }}
h1 {{ font-size: 32pt; line-height: 1.15; margin-top: 70mm; }}
h2 {{ break-before: page; }} h3 {{ margin: 1.2em 0 0.2em; }}
p {{ display: flex; margin: 0; break-inside: avoid; }}
a {{ flex: 1; color: inherit; text-decoration: none; }}
</style><h1>{title}</h1><p>{author}, {year}</p><h2>Contents</h2>{contents}</html>"""


def parts(toc: Path) -> list[tuple[str | None, list[str]]]:
    """The parts of the book with their pages, in reading order; the first has no name."""
    content = yaml.safe_load(toc.read_text("utf-8"))
    named = [(p["caption"], [c["file"] for c in p["chapters"]]) for p in content["parts"]]
    return [(None, [content["root"]]), *named]


def heading(page: Path) -> str:
    """The title of a page, with its number."""
    h1 = BeautifulSoup(page.read_text("utf-8"), "html.parser").select_one("article h1")
    for anchor in h1.select(".headerlink"):
        anchor.decompose()
    return " ".join(h1.get_text().split())


def opened(browser: Browser, page: Path, **view) -> Page:
    """One page of the book as on paper, with every figure drawn; `view` is of its window."""
    tab = browser.new_page(color_scheme="light", reduced_motion="reduce", **view)
    tab.goto(page.as_uri(), wait_until="load")
    tab.emulate_media(media="print", color_scheme="light")
    tab.add_style_tag(content=PAPER)
    tab.evaluate(WAKE)
    tab.wait_for_function(DRAWN)
    return tab


def printed(browser: Browser, page: Path) -> PdfReader:
    """One page of the book on A4."""
    tab = opened(browser, page)
    sheet = tab.pdf(format="A4", margin=MARGIN, print_background=True, tagged=True)
    tab.close()
    return PdfReader(io.BytesIO(sheet))


def front_matter(browser: Browser, titles: dict, starts: dict, sections: list, config: dict):
    """The title page and the contents; `starts` are page numbers."""
    rows = []
    for caption, names in sections:
        rows += [f"<h3>{escape(caption)}</h3>"] if caption else []
        rows += [
            f'<p><a href="file:///{name}.html">{escape(titles[name])}</a> {starts[name]}</p>'
            for name in names
        ]
    text = FRONT.format(
        title=escape(config["title"]),
        author=escape(config["author"]),
        year=escape(config["copyright"]),
        contents="".join(rows),
    )
    tab = browser.new_page()
    tab.set_content(text)
    sheet = tab.pdf(format="A4", margin=MARGIN)
    tab.close()
    return PdfReader(io.BytesIO(sheet))


def number_pages(browser: Browser, writer: PdfWriter) -> None:
    """A number at the foot of every page but the first: one blank sheet of numbers, laid over."""
    rows = "".join(
        f"<div>{number if number > 1 else ''}</div>" for number in range(1, len(writer.pages) + 1)
    )
    tab = browser.new_page()
    tab.set_content(
        "<style>@page { size: A4; margin: 0 } body { margin: 0; font: 9pt sans-serif }"
        "div { height: 296mm; padding-top: 283mm; box-sizing: border-box; text-align: center;"
        f"break-after: page; overflow: hidden }}</style>{rows}"
    )
    numbers = PdfReader(io.BytesIO(tab.pdf(prefer_css_page_size=True)))
    tab.close()
    for page, number in zip(writer.pages, numbers.pages, strict=False):
        page.merge_page(number)


def link_inside(writer: PdfWriter, starts: dict[str, int]) -> int:
    """Links to other pages of the book lead to where these begin; the answer: how many."""
    turned = 0
    for page in writer.pages:
        for entry in page.get("/Annots", []) or []:
            link = entry.get_object()
            action = link.get("/A", {}).get_object() if "/A" in link else {}
            address = urlsplit(str(action.get("/URI", "")))
            name = Path(unquote(address.path)).stem
            if address.scheme == "file" and name in starts:
                del link["/A"]
                to = [writer.pages[starts[name] - 1].indirect_reference, NameObject("/Fit")]
                link[NameObject("/Dest")] = ArrayObject(to)
                turned += 1
    return turned


def bind(html: Path, toc: Path, out: Path) -> dict[str, int]:
    """Print all pages of the table of contents into one file; answer where each begins."""
    executable = find_browser()
    if executable is None:
        raise FileNotFoundError(f"`make pdf` prints with a browser, but {ADVICE}.")
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    sections = parts(toc)
    names = [name for _, pages in sections for name in pages]
    titles = {name: heading(html / f"{name}.html") for name in names}
    with sync_playwright() as playwright:
        browser = launched(playwright, executable)
        sheets = {name: printed(browser, html / f"{name}.html") for name in names}
        guess = front_matter(browser, titles, dict.fromkeys(names, 100), sections, config)
        starts, at = {}, len(guess.pages) + 1
        for name in names:
            starts[name], at = at, at + len(sheets[name].pages)
        front = front_matter(browser, titles, starts, sections, config)
        writer = PdfWriter()
        writer.append(front, import_outline=False)
        for name in names:
            writer.append(sheets[name], import_outline=False)
        writer.add_outline_item(title="Contents", page_number=1)
        for caption, pages in sections:
            first = starts[pages[0]] - 1
            parent = writer.add_outline_item(title=caption, page_number=first) if caption else None
            for name in pages:
                writer.add_outline_item(
                    title=titles[name], page_number=starts[name] - 1, parent=parent
                )
        number_pages(browser, writer)
        browser.close()
    link_inside(writer, starts)
    writer.add_metadata({"/Title": config["title"], "/Author": config["author"]})
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write(out)
    return starts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HTML, help="the built book")
    parser.add_argument("--toc", type=Path, default=TOC, help="its table of contents")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        bind(options.html, options.toc, options.out)
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"The book is printed: {options.out}, {len(PdfReader(options.out).pages)} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
