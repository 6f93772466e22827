"""The large files of the pages, as scripts in `_static/live`: live.py and picture.py add theirs.

The table of them stands in the head of every page that has code; `page-parts.js` reads it.
"""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_tools"))

from pack import pack  # noqa: E402


class Packs:
    """What was packed: `files`, {name: its hash and sizes}, and `bundles`, {name: files}."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, list] = {}
        self.bundles: dict[str, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, bundle: str, contents: dict[str, bytes]) -> None:
        """A bundle of files, each written once for the same content."""
        self.bundles[bundle] = list(contents)
        for name, content in contents.items():
            self.files[name] = pack(name, content, self.folder)

    def tidy(self) -> None:
        """Delete the scripts of files that are no longer there."""
        stems = {f"{name}.{known[0]}" for name, known in self.files.items()}
        for path in self.folder.glob("*.js"):
            if path.name.removesuffix(".js").rpartition(".")[0] not in stems:
                path.unlink()


def prepare(app):
    app.packs = (
        Packs(Path(app.outdir) / "_static" / "live") if app.builder.format == "html" else None
    )


def finish(app, exception):
    if exception is None and getattr(app, "packs", None):
        app.packs.tidy()


def page(app, pagename, templatename, context, doctree):
    """The table, in the head of a page that a notebook made."""
    if getattr(app, "packs", None) and app.packs.files and pagename in app.env.nb_metadata:
        content = json.dumps({"files": app.packs.files, "bundles": app.packs.bundles})
        tag = f'<meta name="minq-parts" content="{html.escape(content)}">'
        context["metatags"] = context.get("metatags", "") + tag


def setup(app):
    app.connect("builder-inited", prepare, priority=100)
    app.connect("html-page-context", page)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
