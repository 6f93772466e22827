"""A page with one widget and nothing else on it, in _build/alone.

python book/_tools/alone.py "LevelCount(bits=4)"
python book/_tools/alone.py "Descent(np.ones(9), np.linspace(0, 1, 9))"
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ipywidgets.embed import embed_data

from minqbook import widgets

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "book" / "_assets"
PAGE = """<!doctype html><html lang="en" data-theme="{theme}">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>One widget</title><link rel="icon" href="data:,">{head}<body><main class="bd-article">
<script type="application/vnd.jupyter.widget-view+json">{view}</script></main>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>{scripts}
</body></html>"""


def write_page(widget: Any, folder: Path, theme: str = "light", head: str = "") -> Path:
    """``widget.html`` in the folder, with the book's own player beside it; ``head`` goes into its
    head."""
    data = embed_data(views=[widget], drop_defaults=False)
    scripts = sorted([*ASSETS.glob("page-*.js"), *ASSETS.glob("widgets*.js")])
    for script in scripts:
        shutil.copy(script, folder)
    page = folder / "widget.html"
    page.write_text(
        PAGE.format(
            theme=theme,
            head=head,
            view=json.dumps(data["view_specs"][0]),
            state=json.dumps(data["manager_state"]).replace("</", "<\\/"),
            scripts="".join(f'<script defer src="{s.name}"></script>' for s in scripts),
        ),
        "utf-8",
    )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("widget", help='Python that makes it, such as "Descent(...)"; np is NumPy')
    parser.add_argument("--to", type=Path, default=ROOT / "_build" / "alone", help="folder")
    options = parser.parse_args()
    names = {"np": np} | {name: getattr(widgets, name) for name in widgets.__all__}
    options.to.mkdir(parents=True, exist_ok=True)
    page = write_page(eval(options.widget, names), options.to)
    print(f"Open it:  {page.resolve().as_uri()}")


if __name__ == "__main__":
    main()
