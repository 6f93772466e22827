"""Every link within the built book leads somewhere, to the very heading or equation it names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bookpage import toc_pages

# The anchors of a page, and what it links to, loads and shows.
READ = """{
    anchors: [...all('[id]').map(e => e.id), ...all('a[name]').map(e => e.name)],
    links: ['href', 'src'].flatMap(name => all(`[${name}]`).map(e => e.getAttribute(name))),
}"""


@pytest.fixture
def read(parse):
    return cache(lambda path: parse(path, READ))


def broken(read, page: Path) -> list[str]:
    """The links of a page that lead nowhere."""

    def leads_nowhere(link: str) -> bool:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or link == "#":
            return False
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists():
            return True
        return (
            bool(parts.fragment)
            and target.suffix == ".html"
            and unquote(parts.fragment) not in read(target)["anchors"]
        )

    return [link for link in read(page)["links"] if leads_nowhere(link)]


def test_links_within_the_book(book, read):
    pages = [book.html / f"{name}.html" for name in toc_pages()]
    assert not {page.name: links for page in pages if (links := broken(read, page))}
    assert sum(len(read(p)["links"]) for p in pages) > 50 * len(pages), "where are the links?"


def test_a_broken_link_is_found(read, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a href="gone.html"></a><a href="#here" id="here"></a><a href="#gone"></a>')
    assert broken(read, page) == ["gone.html", "#gone"]
