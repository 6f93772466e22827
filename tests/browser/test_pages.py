"""Every page of the book, as a reader without a network, a mouse or a wide screen meets it."""

import os
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bookpage import toc_pages
from fontTools.ttLib import TTFont

# Success criteria of WCAG 2.2 up to level AA.
WCAG = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
    "resultTypes": ["violations"],
    "preload": False,  # what it fetches again would look like a missing file
}

# Formulas are boxes of their size to axe: their thousands of glyphs are MathJax's business.
EMPTY_FORMULAS = """() => {
    const all = [...document.querySelectorAll('mjx-container')];
    const sizes = all.map(e => e.getBoundingClientRect());
    all.forEach((e, i) => {
        if (getComputedStyle(e).display === 'inline') e.style.display = 'inline-block';
        e.style.width = `${sizes[i].width}px`;
        e.style.height = `${sizes[i].height}px`;
        e.replaceChildren();
    });
}"""

# Thousands of code tokens look like the first of their class and place: axe would measure each.
THIN_CODE = """() => {
    const seen = new Set(), again = [];
    for (const e of document.querySelectorAll('.bd-article :is(.highlight, .sig) span')) {
        if (e.querySelector('a, button')) continue;
        const place = e.closest('.highlight, .sig').parentElement.closest('[class]');
        const look = `${e.className} in ${place.className}`;
        if (!e.checkVisibility() || seen.has(look)) again.push(e); // axe passes over what is hidden
        else seen.add(look);
    }
    for (const e of again) e.remove();
}"""

# Of words with the same classes and colours, theirs and of all that they lie in, the first is left.
# In figures all are left: there, one thing lies on another.
FIRST_OF_EACH_LOOK = """() => {
    const style = document.createElement('style'), looks = new Map(), seen = new Set();
    style.textContent = '[data-again] { visibility: hidden !important }';
    const look = e => {
        if (e && !looks.has(e)) {
            const s = getComputedStyle(e);
            looks.set(e, [look(e.parentElement), e.tagName, e.className, s.color, s.opacity,
                s.backgroundColor, s.backgroundImage, s.fontSize, s.fontWeight].join());
        }
        return looks.get(e);
    };
    const isNew = e => !seen.has(look(e)) && seen.add(look(e));
    const hide = e => { // what is not new down to its last word
        if (e.matches('.ws-root')) return false;
        const words = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
        let left = words && e.checkVisibility() && isNew(e);
        for (const child of e.children) if (!hide(child)) left = true;
        e.toggleAttribute('data-again', !left);
        return !left;
    };
    for (const e of document.querySelectorAll('[data-again]')) e.removeAttribute('data-again');
    hide(document.body);
    document.head.append(style);
}"""

# Pictures without a text twin, and controls without a name.
SILENT = """() => {
    const name = e => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
        || e.querySelector(':scope > title')?.textContent || e.closest('[aria-hidden=true]');
    const bad = [];
    const all = selector => document.querySelectorAll(`.bd-article :is(${selector})`);
    for (const e of all('img')) if (!e.alt.trim()) bad.push(e);
    for (const e of all('svg:not(svg svg, button svg), canvas'))
        if (!name(e) && !e.closest('[role=img][aria-label]')) bad.push(e);
    for (const e of all('input, select, textarea, button')) {
        const words = e.labels?.[0]?.textContent || e.textContent || e.title;
        if (!name(e) && !words.trim()) bad.push(e);
    }
    return bad.map(e => e.outerHTML.slice(0, 160));
}"""

# Elements that stick out of a narrow screen, when the page itself scrolls sideways. (A phone's
# browser widens `innerWidth` with the page; `screen.width` stays.)
WIDE = """() => document.documentElement.scrollWidth <= screen.width ? [] :
    [...document.querySelectorAll('.bd-article *')]
    .filter(e => e.getBoundingClientRect().right > screen.width + 1 && !e.closest('pre'))
    .map(e => `<${e.tagName.toLowerCase()} class="${e.getAttribute('class') ?? ''}"> right edge ` +
        Math.round(e.getBoundingClientRect().right)).slice(-8)"""


def violations(page, **options):
    found = Axe().run(page, options=WCAG | options)
    return found.generate_report() if found.response["violations"] else ""


def low_contrast(page):
    page.evaluate(FIRST_OF_EACH_LOOK)
    return violations(page, runOnly={"type": "rule", "values": ["color-contrast"]})


def photograph(page, name):
    if folder := os.environ.get("MINQ_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def test_page_is_soon_there_and_quiet_and_can_be_read_by_all(open_page, toc_page, measure):
    book_page = open_page(toc_page, formulas=True)
    page = book_page.page
    assert page.locator(".bd-article h1").first.is_visible()
    if found := is_soon_there(book_page):
        measure(f"ready-{toc_page}", **found)
    wrong = page.locator("mjx-merror, mjx-container [style*='color: red']").all()
    assert not wrong, f"formulas that MathJax cannot read: {[e.inner_text() for e in wrong]}"
    assert page.evaluate(SILENT) == []
    photograph(page, f"{toc_page}-light")
    page.evaluate(THIN_CODE)
    page.evaluate(EMPTY_FORMULAS)
    assert not violations(page, rules={"color-contrast": {"enabled": False}})
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        assert not low_contrast(page), theme


def is_soon_there(book_page):
    """Figures in sight after the page; the others in a window so tall that all start at once.

    How soon, and how heavy the page is; nothing without figures.
    """
    page, usual, found = book_page.page, book_page.page.viewport_size, {}
    first, start = page.evaluate("[readyTimes[0], performance.now()]")
    page.set_viewport_size({"width": usual["width"], "height": 20_000})
    if widgets := book_page.widgets():
        ready = page.evaluate("Math.max(...readyTimes)")
        weight = page.evaluate(
            "performance.getEntries().reduce((sum, e) => sum + (e.decodedBodySize ?? 0), 0)"
        )
        seconds = {"first_s": first / 1e3} if first else {}  # if one is in sight
        seconds["others_s"] = max(ready - start, 0) / 1e3
        found = {"widgets": len(widgets), **seconds, "page_mb": weight / 1e6}
        assert ready < 15_000
        scripts = page.evaluate(
            "performance.getEntriesByType('resource').filter(e => /\\.js(\\?|$)/.test(e.name))"
            ".map(e => e.decodedBodySize)"
        )
        assert scripts and 0 < sum(scripts) < 1e6, "a page loads less than 1 MB of scripts"
    page.set_viewport_size(usual)
    return found


def test_page_on_a_phone(open_page, toc_page):
    """As a file, in the dark, under a finger."""
    phone = {"width": 375, "height": 720, "touch": True}
    page = open_page(toc_page, over="file", dark=True, formulas=True, **phone)
    widgets = page.widgets()
    assert page.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.page.evaluate(WIDE) == []
    photograph(page.page, f"{toc_page}-phone")
    for where, widget, slider in sliders(widgets):
        moves(where, widget, slider, slider.tap)


def sliders(widgets):
    for number, widget in enumerate(widgets):
        for slider in widget.sliders():
            yield f"widget {number}, slider {slider.label!r}", widget, slider


def moves(where, widget, slider, pull):
    """Pulled to one end and to the other, it has another value, and the figure another look."""
    if slider.locator.is_disabled():  # by where another slider now stands: a dead channel
        return
    pull(0.02)
    value, drawn = slider.value, widget.snapshot()
    pull(0.98)
    assert slider.value != value, where
    assert widget.snapshot() != drawn, where


def test_sliders_by_keyboard_and_by_mouse(open_page, toc_page, measure):
    page = open_page(toc_page, width=800)
    latency, widgets = [], page.widgets()
    for where, widget, slider in sliders(widgets):
        low, high = slider.limits
        first, seen = slider.value, set()
        for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
            slider.press(key)
            seen.add(widget.snapshot())
            assert not widget.broken_text(), f"{where}, {key}"
            if key in ("Home", "End") and "," not in slider.label:  # ends of a range push
                assert slider.value == pytest.approx(low if key == "Home" else high), where
        assert len(seen) > 1 or low == high, f"{where}: nothing on the screen changed"
        latency.append(slider.set(first))
    for where, widget, slider in sliders(widgets):
        moves(where, widget, slider, lambda at, slider=slider: slider.drag(1 - at, at))
    if latency:
        handled = sorted(m["handler_ms"] for m in latency)
        frames = sorted(m["frame_ms"] for m in latency)
        measure(
            f"redraw-{toc_page}",
            sliders=len(latency),
            handler_ms_median=handled[len(handled) // 2],
            handler_ms_worst=handled[-1],
            frame_ms_median=frames[len(frames) // 2],
        )
        assert handled[-1] < 250, "a drag should redraw at once"


def test_figures_far_below_wait(open_page):
    page = open_page("how_to_use", width=1280, height=300)
    states = ".map(host => [host.getBoundingClientRect().top, host.dataset.state])"
    page.page.wait_for_timeout(300)
    hosts = page.page.evaluate(f"[...document.querySelectorAll('.ws-root')]{states}")
    far = [state for top, state in hosts if top > 300 + 600]
    assert far and set(far) == {"waiting"}


def test_sections_out_of_sight_wait_for_the_figures_in_sight(open_page):
    """Where the page opens at its top; not at a section, nor where it was before a reload."""
    book_page = open_page("intro")
    page = book_page.page
    page.add_init_script("""new MutationObserver(() => {
        window.waited ||= document.documentElement.classList.contains('mq-first');
    }).observe(document, { subtree: true, attributes: true, attributeFilter: ['class'] });""")
    done = "!document.documentElement.classList.contains('mq-first')"
    book_page.goto("ch03_uniform_affine")
    page.wait_for_function(done)
    assert page.evaluate("window.waited")
    page.reload()
    page.wait_for_function(done)
    assert not page.evaluate("window.waited")
    book_page.goto("ch04_symmetric_granularity.html#exercises")
    assert not page.evaluate("window.waited")


def test_icons_in_use_are_in_the_trimmed_fonts(book):
    static = book.html / "_static"
    rule = re.compile(r'((?:\.fa-[\w-]+::?before,?)+)\{content:"\\(\w+)')

    def icons(paths):
        sheets = "".join(path.read_text("utf-8") for path in paths)
        found = [(names, int(code, 16)) for names, code in rule.findall(sheets)]
        return {name: code for names, code in found for name in re.findall(r"fa-[\w-]+", names)}

    stock, ours = icons(static.glob("styles/*.css")), icons(static.glob("all-*.css"))
    text = "".join(path.read_text("utf-8") for path in book.html.glob("*.html"))
    used = stock.keys() & set(re.findall(r"fa-[\w-]+", text))
    fonts = [TTFont(path) for path in static.glob("vendor/fontawesome/webfonts/*.ttf")]
    held = set().union(*(font.getBestCmap() for font in fonts))
    assert used and used <= ours.keys() and {stock[name] for name in used} <= held
    assert len(held) < 100 < len(stock)


@pytest.mark.parametrize("over", ["http", "file"])
def test_search_finds_a_page(open_page, over):
    page = open_page("search.html?q=quantize", over=over)
    page.page.wait_for_selector("#search-results li a")


def test_front_door_leads_to_the_first_page(open_page):
    page = open_page("index.html", over="file")
    page.page.wait_for_url(f"**/{toc_pages()[0]}.html")


def test_chapters_open_in_colab_and_binder(open_page, book):
    chapter = next(name for name in toc_pages() if name.startswith("ch"))
    page = open_page(chapter).page
    for host in ("colab.research.google.com", "mybinder.org"):
        button = f".dropdown-launch-buttons a[href*='{host}'][href*='{chapter}.ipynb']"
        assert page.locator(button).count() == 1
