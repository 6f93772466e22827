"""One widget alone on a page, played by the book's own player: for tests that need no chapter.

    def test_it(browser, tmp_path):
        with stage(browser, tmp_path, AffinePlayground(bits=3)) as widget: ...

`widget` is bookpage.Widget. On leaving, anything said on the console fails the test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bookpage import BookPage, Widget
from ipywidgets.embed import embed_data

ASSETS = Path(__file__).resolve().parents[2] / "book" / "_assets"
PAGE = """<!doctype html><html lang="en" data-theme="{theme}">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>One widget</title><link rel="icon" href="data:,"><body><main class="bd-article">
<script type="application/vnd.jupyter.widget-view+json">{view}</script></main>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>{scripts}
</body></html>"""


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
) -> Iterator[Widget]:
    data = embed_data(views=[widget], drop_defaults=False)
    scripts = sorted(ASSETS.glob("widgets*.js"))
    for script in scripts:
        shutil.copy(script, folder)
    (folder / "widget.html").write_text(
        PAGE.format(
            theme="dark" if dark else "light",
            view=json.dumps(data["view_specs"][0]),
            state=json.dumps(data["manager_state"]).replace("</", "<\\/"),
            scripts="".join(f'<script defer src="{s.name}"></script>' for s in scripts),
        ),
        "utf-8",
    )
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
