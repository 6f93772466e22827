"""The decks of slides: cut from the built pages, live, offline, and never taller than a slide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bookpage import ROOT, SKIP, BookPage, Widget, toc_pages
from filelock import FileLock

CHAPTERS = [name for name in toc_pages() if name.startswith("ch")]
# Slides whose words or pictures leave the 1280x720 of the slide, sideways or, unscrolled, below.
TALL = """() => [...document.querySelectorAll('section.leaf')].flatMap(leaf => {
    Reveal.slide(...Object.values(Reveal.getIndices(leaf)));
    const blocks = [...leaf.children].filter(b => !b.matches('aside, h1, h2, h3'));
    const scrolls = leaf.scrollHeight > 721, wide = leaf.scrollWidth > 1281;
    return wide || (scrolls && blocks.length > 1)
        ? [`${leaf.innerText.slice(0, 60)}: ${leaf.scrollWidth} x ${leaf.scrollHeight}`] : [];
})"""


@pytest.fixture(scope="module")
def decks(book):
    """The decks of the built book, under the addresses of the fixture `book`."""
    command = [
        sys.executable,
        str(ROOT / "book" / "_tools" / "slides.py"),
        "--html",
        str(book.html),
    ]
    cut = book.html.parent / ".slides.cut"
    sources = [*book.html.glob("ch*.html"), *ROOT.glob("book/_assets/slides.*"), Path(command[1])]
    with FileLock(book.html.parent / ".slides.lock"):  # once, however many test processes
        if not cut.exists() or cut.stat().st_mtime < max(p.stat().st_mtime for p in sources):
            subprocess.run(command, check=True)
            cut.touch()
    return SimpleNamespace(folder=book.html / "slides")


def open_deck(open_page, name, **options) -> BookPage:
    deck = open_page(f"slides/{name}.html", formulas=True, **options)
    deck.page.wait_for_function("window.Reveal?.isReady()")
    return deck


def show(deck: BookPage, selector: str) -> Widget:
    """Go to the slide that holds the element; its widget, drawn."""
    deck.page.evaluate(
        """selector => {
            const leaf = document.querySelector(selector).closest('section.leaf');
            Reveal.slide(...Object.values(Reveal.getIndices(leaf)));
        }""",
        selector,
    )
    host = deck.page.locator("section.present .ws-root:visible").first
    deck.page.wait_for_function("h => h.dataset.state == 'ready'", arg=host.element_handle())
    host.evaluate(SKIP)
    return Widget(host)


# What a page or a deck holds.
FACTS = """{
    widgets: all('script[type="application/vnd.jupyter.widget-view+json"]').length,
    headings: new Set(all(':is(article, .slides) h2').map(h => h.textContent)).size,
    exercises: all('div.exercise').length,
    crowded: all('section.leaf').filter(s => s.querySelectorAll('div.exercise').length > 1).length,
    solutions: all('.solution, .tag_solution, .tag_check').length,
    notes: all('aside.notes').length,
    silent: all('section img:not([alt]), section img[alt=""]').map(i => i.outerHTML),
    paths: all('[src], link[href]').map(e => e.getAttribute('src') ?? e.getAttribute('href')),
}"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_deck_holds_the_lesson_and_no_solution(decks, name, parse):
    folders = decks.folder.parent, decks.folder
    page, deck = (parse(folder / f"{name}.html", FACTS) for folder in folders)
    for kind in ("widgets", "headings", "exercises"):
        assert deck[kind] == page[kind], kind
    assert deck["headings"] and deck["notes"] and page["solutions"]
    assert not deck["crowded"] and not deck["solutions"] and not deck["silent"]
    for path in (path.split("?")[0] for path in deck["paths"]):
        assert path.startswith("data:") or (decks.folder / path).exists(), path


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_deck_fits_its_slides(decks, open_page, name):
    deck = open_deck(open_page, name, width=1280, height=720, over="file")
    assert deck.page.evaluate(TALL) == []
    count = deck.page.evaluate("Reveal.getTotalSlides()")
    assert count >= deck.page.locator("h2").evaluate_all(
        "h => new Set(h.map(e => e.innerText)).size"
    )
    assert "/" in deck.page.locator(".slide-number").inner_text()


@pytest.mark.parametrize("over", ["http", "file"])
def test_a_widget_lives_on_its_slide(decks, open_page, over):
    deck = open_deck(open_page, "ch03_uniform_affine", over=over, width=1024, height=640)
    widget = show(deck, ".ws-root")
    before = widget.snapshot()
    slider = widget.slider("Scale")
    slider.drag(0.5, 0.2)
    assert widget.snapshot() != before, "dragging on a scaled slide does nothing"
    here = "JSON.stringify(Reveal.getIndices())"  # the address follows later
    start, value = deck.page.evaluate(here), slider.value
    slider.locator.focus()
    slider.press("ArrowRight")
    assert slider.value > value, "the slider does not take its key"
    assert deck.page.evaluate(here) == start, "the deck took the slider's key"
    widget.root.locator(".mq-handle[tabindex]").first.press("ArrowRight")
    assert deck.page.evaluate(here) == start, "the deck took the key of a handle in a picture"
    deck.page.evaluate("document.activeElement.blur()")
    deck.page.keyboard.press("ArrowRight")  # the keys of the deck are alive
    deck.page.wait_for_function(f"start => {here} != start", arg=start)


def test_dark_and_the_speakers_view(decks, open_page):
    deck = open_deck(open_page, "ch03_uniform_affine", dark=True)
    ground = deck.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, ground[4:-1].split(",")[:3])) < 200, ground
    with deck.page.expect_popup() as popup:
        deck.page.keyboard.press("s")
    deck.page.keyboard.press("ArrowRight")
    popup.value.wait_for_selector("iframe", state="attached")


def test_print_mode_has_a_sheet_for_each_slide(decks, open_page):
    deck = open_page("slides/ch03_uniform_affine.html?print-pdf", formulas=True)
    deck.page.wait_for_selector(".pdf-page", state="attached")
    assert deck.page.locator(".pdf-page").count() == deck.page.locator("section.leaf").count()


def test_live_code_leads_to_where_it_runs(book, decks, parse):
    """Each link of a deck to a cell of its chapter, which is live there."""
    name = "ch04_symmetric_granularity"
    links = parse(decks.folder / f"{name}.html", "all('.mq-run').map(a => a.getAttribute('href'))")
    live = parse(book.html / f"{name}.html", "all('.mq-live').map(e => e.id)")
    if not live:
        pytest.skip("the book was built without live cells")
    assert links and {link.partition("#")[0] for link in links} == {f"../{name}.html"}
    assert {link.partition("#")[2] for link in links} <= set(live)
