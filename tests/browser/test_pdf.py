"""The printed book, bound here from two small pages: numbers, bookmarks, contents and links."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pdf
import pytest
from pypdf import PdfReader

PAGE = """<!DOCTYPE html><html lang="en"><title>t</title><body><header class="bd-header">Chrome
</header><article class="bd-article"><h1>{title}<a class="headerlink">#</a></h1>
<p>{text} <a href="{link}">across</a></p><div style="height: {height}mm"></div><p>End of it.</p>
</article></body></html>"""


@pytest.fixture
def small_book(tmp_path) -> tuple[Path, Path]:
    first = PAGE.format(title="A first page", text="Scales", link="two.html#there", height=300)
    second = PAGE.format(
        title="7. A second", text="Steps", link="https://x.test/one.html", height=1
    )
    (tmp_path / "one.html").write_text(first, "utf-8")
    (tmp_path / "two.html").write_text(second, "utf-8")
    toc = "root: one\nparts:\n- caption: Part A\n  chapters:\n  - file: two\n"
    (tmp_path / "_toc.yml").write_text(toc, "utf-8")
    return tmp_path, tmp_path / "_toc.yml"


def test_two_pages_become_a_book(browser, small_book, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "sync_playwright", lambda: Running(browser))
    starts = pdf.bind(*small_book, tmp_path / "book.pdf")
    book = PdfReader(tmp_path / "book.pdf")
    texts = [normalize("NFKC", page.extract_text()) for page in book.pages]
    assert starts == {"one": 3, "two": 5} and len(texts) == 5  # title, contents, 2 + 1 pages
    assert "Scales" in texts[2] and "End of it." in texts[3] and "Steps" in texts[4]
    assert "Chrome" not in "".join(texts)
    assert [text.split()[-1] for text in texts[1:]] == ["2", "3", "4", "5"]
    assert "A first page 3" in texts[1] and "7. A second 5" in texts[1]

    contents, first, part, inside = book.outline
    marks = [contents, first, part, *inside]
    assert [m.title for m in marks] == ["Contents", "A first page", "Part A", "7. A second"]
    assert [book.get_destination_page_number(m) for m in marks] == [1, 2, 4, 4]

    across = book.pages[2]["/Annots"][0].get_object()
    assert across["/Dest"][0].get_object() == book.pages[4], "a link inside leads to its page"
    away = book.pages[4]["/Annots"][0].get_object()
    assert away["/A"]["/URI"] == "https://x.test/one.html", "a link away stays as it was"


def test_without_a_browser_it_says_what_to_install(small_book, tmp_path, monkeypatch):
    monkeypatch.setenv("MINQ_BROWSER", "no-such-browser")
    with pytest.raises(FileNotFoundError, match="Install one"):
        pdf.bind(*small_book, tmp_path / "book.pdf")


class Running:
    """The browser of the session in place of a second playwright, which one thread cannot run."""

    def __init__(self, browser):
        self.chromium = self
        self.context = browser.new_context()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()

    def launch(self, **options):
        return self

    def new_page(self, **options):
        return self.context.browser.new_page(**options)

    def close(self):
        pass
