"""Every link within the built book leads somewhere, to the very heading or equation it names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bookpage import toc_pages
from bs4 import BeautifulSoup


@cache
def read(path: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """The anchors of a page, and what it links to, loads and shows."""
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    anchors = {e["id"] for e in soup.find_all(id=True)} | {
        e["name"] for e in soup.select("a[name]")
    }
    found = [(e, "href") for e in soup.find_all(href=True)] + [
        (e, "src") for e in soup.find_all(src=True)
    ]
    return frozenset(anchors), tuple(e[attribute] for e, attribute in found)


def broken(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link == "#":
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return True
    return (
        bool(parts.fragment)
        and target.suffix == ".html"
        and (unquote(parts.fragment) not in read(target)[0])
    )


def test_links_within_the_book(book):
    pages = [book.html / f"{name}.html" for name in toc_pages()]
    wrong = [f"{p.name}: {link}" for p in pages for link in read(p)[1] if broken(p, link)]
    assert not wrong
    assert sum(len(read(p)[1]) for p in pages) > 50 * len(pages), "where are the links?"


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a href="gone.html"></a><a href="#here" id="here"></a><a href="#gone"></a>')
    assert [link for link in read(page)[1] if broken(page, link)] == ["gone.html", "#gone"]
