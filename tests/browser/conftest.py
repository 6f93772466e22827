"""The built book in a browser whose network is cut: fixtures for every test below this folder."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from bookpage import ROOT, BookPage, toc_pages
from chrome import ADVICE, find_browser, launched
from filelock import FileLock
from playwright.sync_api import sync_playwright

BUILD = ROOT / "_build"
MEASURES = BUILD / "measures"
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# When each widget of a page was drawn, in ms since the navigation began.
NOTE_READY = """window.readyTimes = [];
new MutationObserver(changes => {
    for (const { target } of changes)
        if (target.dataset.state === 'ready') readyTimes.push(performance.now());
}).observe(document, { subtree: true, attributes: true, attributeFilter: ['data-state'] });"""

# A test that looks at figures alone need not wait for MathJax.
NO_FORMULAS = """document.addEventListener('readystatechange', () => {
    document.querySelector('script[src*="mathjax/startup"]')?.remove();
    delete window.MathJax;
}, { once: true });"""


def pytest_generate_tests(metafunc):
    if "toc_page" in metafunc.fixturenames:
        metafunc.parametrize("toc_page", toc_pages())


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def book():
    """The book, built if stale, under `book.http` and `book.file` (both end in a slash)."""
    BUILD.mkdir(exist_ok=True)
    with FileLock(BUILD / ".lock"):  # one build, however many test processes
        command = [sys.executable, str(ROOT / "book" / "_tools" / "build.py")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    html = BUILD / "html"
    handler = functools.partial(QuietHandler, directory=html)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(
            html=html,
            http=f"http://127.0.0.1:{server.server_port}/",
            file=html.as_uri() + "/",
        )
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """An installed Chrome, Chromium or Edge, without a network."""
    executable = find_browser()
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ADVICE)
    with sync_playwright() as playwright:
        chrome = launched(playwright, executable, FLAGS)
        yield chrome
        chrome.close()


@pytest.fixture
def open_page(browser, book):
    """open_page(name, over="http", dark=False, width=1280, ...) -> BookPage.

    After the test, anything in the consoles of the pages it opened fails it.
    """
    contexts, pages = [], []

    def open_page(
        name,
        over="http",
        dark=False,
        width=1280,
        height=900,
        touch=False,
        formulas=False,
    ):
        context = browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            has_touch=touch,
            is_mobile=touch,
            reduced_motion="reduce",
        )
        context.add_init_script(NOTE_READY if formulas else NOTE_READY + NO_FORMULAS)
        contexts.append(context)
        page = BookPage(context.new_page(), getattr(book, over))
        pages.append(page)
        return page.goto(name)

    yield open_page
    problems = [problem for page in pages for problem in page.problems]
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def js(browser):
    """js(source, expression, argument): import an ES module's source, and call the expression,
    `(module, argument) => ...`, in the browser. For comparing JavaScript with Python. Each call
    has a module of its own."""
    context = browser.new_context()
    page = context.new_page()

    def run(source, expression, argument=None):
        return page.evaluate(
            f"""async ([source, argument]) => {{
                const url = URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }}));
                return ({expression})(await import(url), argument);
            }}""",
            [source, argument],
        )

    yield run
    context.close()


@pytest.fixture(scope="session")
def parse(js):
    """parse(path, expression): an HTML file as the browser reads it, without running its scripts.
    In the expression `page` is the document, and `all(selector)` gives its elements."""

    def read(path, expression):
        return js(
            "",
            f"""(_, html) => {{
                const page = new DOMParser().parseFromString(html, 'text/html');
                const all = selector => [...page.querySelectorAll(selector)];
                return ({expression});
            }}""",
            path.read_text("utf-8"),
        )

    return read


@pytest.fixture
def measure():
    """measure(name, numbers): keep measurements for the summary and in _build/measures."""

    def keep(name, **numbers):
        MEASURES.mkdir(parents=True, exist_ok=True)
        (MEASURES / f"{name}.json").write_text(json.dumps(numbers, indent=1), "utf-8")

    return keep


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "workerinput") or not MEASURES.is_dir():
        return
    terminalreporter.section("measured in the browser (_build/measures)")
    for path in sorted(MEASURES.glob("*.json")):
        numbers = json.loads(path.read_text("utf-8"))
        line = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        terminalreporter.write_line(f"{path.stem}: {line}")
