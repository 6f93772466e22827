"""A page of the built book as a reader meets it, for the browser tests.

`BookPage` collects all that a reader's console would show and every request that leaves the book;
`Widget` and `Slider` move what stands on the page. Tests get them from the fixtures of conftest.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml
from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parents[2]

# Text that a formula gone wrong leaves in a picture, a readout or an attribute.
BROKEN = r"\b(NaN|undefined|Infinity|null|\[object \w+\])\b"

# What is drawn below an element: words, vector pictures, and the pixels of canvases.
SNAPSHOT = """root => [root.innerText,
    ...[...root.querySelectorAll('svg')].map(s => s.outerHTML),
    ...[...root.querySelectorAll('canvas')].map(c => c.toDataURL()),
    ...[...root.querySelectorAll('input:not([type=range])')].map(i => i.value + i.checked),
].join('\\n')"""

# Words and drawing attributes below an element that match a pattern.
SUSPECTS = """([root, pattern]) => {
    const bad = new RegExp(pattern), found = [];
    for (const line of root.innerText.split('\\n')) if (bad.test(line)) found.push(line);
    for (const e of root.querySelectorAll('*')) for (const a of e.attributes)
        if (!['class', 'style', 'id'].includes(a.name) && bad.test(a.value))
            found.push(`<${e.tagName.toLowerCase()} ${a.name}="${a.value.slice(0, 80)}">`);
    return found;
}"""

# Move a slider to a position as a drag does, and time the handlers, and then the frame.
MOVE = """async (input, value) => {
    input.value = value;
    const start = performance.now();
    input.dispatchEvent(new Event('input', { bubbles: true }));
    const handled = performance.now() - start;
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    input.dispatchEvent(new Event('change', { bubbles: true }));
    return { handler_ms: handled, frame_ms: performance.now() - start };
}"""

# The page looks and works as it will. A page may only lead to another; a deck has its own script.
SETTLED = """async () => {
    if (!window.minqSettled && document.querySelector('meta[http-equiv=Refresh]')) return false;
    await window.minqSettled;
    if (window.MathJax && !window.MathJax.startup?.promise) return false;
    await window.MathJax?.startup?.promise;
    return true;
}"""

# Open a figure that waits for an answer.
SKIP = "root => root.querySelector('.mq-question.mq-shut .mq-ask [type=button]')?.click()"

# Scroll to each figure and wait until it is drawn; gives what those say that cannot be.
DRAWN = f"""async skip => {{
    const broken = [], late = performance.now() + 30_000;
    for (const host of document.querySelectorAll('.ws-root')) {{
        host.scrollIntoViewIfNeeded();
        while (host.dataset.state === 'waiting' && performance.now() < late)
            await new Promise(done => setTimeout(done, 5));
        if (host.dataset.state !== 'ready') broken.push(host.innerText || host.dataset.state);
        else if (skip) ({SKIP})(host);
    }}
    return broken;
}}"""


def toc_pages() -> list[str]:
    """The names of all pages, in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


def ask(element: Locator, javascript: str, argument=None):
    """`(element, argument) => ...` in the page: one message, where Locator.evaluate sends three."""
    return element.evaluate_all(f"(all, argument) => ({javascript})(all[0], argument)", argument)


@dataclass
class Slider:
    """A range input inside a widget."""

    locator: Locator

    @property
    def value(self) -> float:
        return float(self.locator.input_value())

    @property
    def limits(self) -> tuple[float, float]:
        return tuple(ask(self.locator, "i => [+i.min || 0, i.max === '' ? 100 : +i.max]"))

    @property
    def label(self) -> str:
        """Its accessible name."""
        return ask(
            self.locator,
            "i => i.getAttribute('aria-label') || [...i.labels].map(l => l.innerText).join(' ') "
            "|| document.getElementById(i.getAttribute('aria-labelledby'))?.innerText || ''",
        )

    @property
    def spoken(self) -> str:
        """What a screen reader says of its value."""
        return ask(self.locator, "i => i.getAttribute('aria-valuetext') || i.value")

    def set(self, value: float) -> dict[str, float]:
        """Move it to `value`; the answer holds handler_ms and frame_ms, the time it took."""
        return ask(self.locator, MOVE, str(value))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.locator.press(key)

    def drag(self, start: float = 0.25, end: float = 0.75) -> None:
        """Drag with the mouse between two fractions of its width."""
        self.locator.scroll_into_view_if_needed()
        box, mouse = self.locator.bounding_box(), self.locator.page.mouse
        height = box["y"] + box["height"] / 2
        mouse.move(box["x"] + start * box["width"], height)
        mouse.down()
        mouse.move(box["x"] + end * box["width"], height, steps=4)
        mouse.up()

    def tap(self, at: float) -> None:
        """Touch it at a fraction of its width (the page must be opened with touch=True)."""
        self.locator.scroll_into_view_if_needed()
        box = self.locator.bounding_box()
        self.locator.page.touchscreen.tap(
            box["x"] + at * box["width"], box["y"] + box["height"] / 2
        )


@dataclass
class Widget:
    """One widget on a page: an anywidget, or the ipywidgets shown by one cell."""

    root: Locator

    def text(self, selector: str | None = None) -> str:
        """The words shown, of the whole widget or of one element in it."""
        return (self.root.locator(selector).first if selector else self.root).inner_text()

    def snapshot(self) -> str:
        """A digest of words, vector pictures and canvas pixels: equal if nothing changed."""
        return hashlib.sha256(ask(self.root, SNAPSHOT).encode()).hexdigest()

    def sliders(self) -> list[Slider]:
        """The sliders a reader could move: visible, enabled, and not in a figure that is shut."""
        inputs = self.root.locator("input[type=range]:not([inert] *)").all()
        return [Slider(i) for i in inputs if i.is_visible() and i.is_enabled()]

    def slider(self, name: str) -> Slider:
        """The slider whose accessible name holds `name`."""
        return Slider(self.root.get_by_role("slider", name=name).first)

    def click(self, name: str) -> None:
        """Click the button, radio button or checkbox with this accessible name."""
        roles = (self.root.get_by_role(r, name=name) for r in ("button", "radio", "checkbox"))
        next(found for found in roles if found.count()).first.click()

    def choose(self, name: str, option: str) -> None:
        """Choose an option of the dropdown with this accessible name."""
        self.root.get_by_role("combobox", name=name).first.select_option(label=option)

    def broken_text(self) -> list[str]:
        """NaN, undefined and the like, in words or in drawing attributes."""
        return ask(self.root, f"root => ({SUSPECTS})([root, {BROKEN!r}])")

    def evaluate(self, javascript: str, argument=None):
        """Run `(root, argument) => ...` in the page."""
        return ask(self.root, javascript, argument)


class BookPage:
    """An open page; `problems` lists what its console said and what it asked of other hosts."""

    def __init__(self, page: Page, base: str):
        self.page, self.base = page, base
        self.problems: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", self._request)

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console {message.type}: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.problems.append(f"request to elsewhere: {request.url}")

    def goto(self, name: str) -> BookPage:
        """Open a page by its name in _toc.yml (or another file with its .html) and wait for it."""
        path = name if ".html" in name else f"{name}.html"
        self.page.goto(self.base + path, wait_until="load")
        self.page.wait_for_function(SETTLED)
        return self

    def widgets(self, skip: bool = True) -> list[Widget]:
        """All widgets, each scrolled to and waited for until it is drawn; questions are skipped."""
        broken = self.page.evaluate(DRAWN, skip)
        assert not broken, f"figures that are not drawn: {broken}; {self.problems}"
        return [Widget(host) for host in self.page.locator(".ws-root").all()]

    def widget(self, selector: str, skip: bool = True) -> Widget:
        """The first widget that holds an element matching the selector."""
        self.widgets(skip)
        found = self.page.locator(".ws-root", has=self.page.locator(selector))
        assert found.count(), f"no widget on {self.page.url} holds {selector}"
        return Widget(found.first)
