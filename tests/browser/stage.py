"""One widget alone on a page, played by the book's own player: for tests that need no chapter.

    def test_it(browser, tmp_path):
        with stage(browser, tmp_path, AffinePlayground(bits=3)) as widget: ...

`widget` is bookpage.Widget. On leaving, anything said on the console fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alone import write_page
from bookpage import BookPage, Widget


@contextmanager
def stage(
    browser: Any,
    folder: Path,
    widget: Any,
    *,
    dark: bool = False,
    width: int = 800,
    touch: bool = False,
    skip: bool = True,
    head: str = "",
) -> Iterator[Widget]:
    write_page(widget, folder, "dark" if dark else "light", head)
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        has_touch=touch,
        is_mobile=touch,
        reduced_motion="reduce",
    )
    page = BookPage(context.new_page(), folder.as_uri() + "/")
    page.goto("widget.html")
    yield page.widget(".minq", skip)
    context.close()
    assert not page.problems, "\n".join(page.problems)
