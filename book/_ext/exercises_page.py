"""Exercises that can be answered in the page, and the table of the progress page.

A chapter gets a list of its exercises in code: the stub, as text and as it is printed, and the
check; of those that need PyTorch the label alone. `exercise.js` makes editors of them where live.py
found what Python takes. The directive `{exercise-table}` writes the table that `progress-page.js`
fills.
"""

from __future__ import annotations

import ast
import html
import json
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).resolve().parents[1]
TABLE = 'id="mq-progress"'
sys.path.insert(0, str(BOOK / "_tools"))

from exercises import Exercise, exercises, number, pages, stub  # noqa: E402


def in_code(path: Path) -> list[Exercise]:
    """The exercises of a notebook that are answered in code."""
    return [e for e in exercises(nbformat.read(path, as_version=4)) if e.answer]


def listed(exercise: Exercise, highlight) -> dict:
    """What exercise.js has to know of one."""
    if not exercise.in_page:
        return {"label": exercise.label}
    given = stub(exercise.answer.source)
    shown = highlight(given, "python")
    return {"label": exercise.label, "stub": given, "html": shown, "check": exercise.check.source}


def page(app, pagename, templatename, context, doctree):
    """The list and the scripts, on the pages that need them."""
    if doctree is None or app.builder.format != "html":
        return
    path = Path(app.env.doc2path(pagename))
    is_table = any(TABLE in raw.astext() for raw in doctree.findall(nodes.raw))
    found = in_code(path) if path.suffix == ".ipynb" and getattr(app, "live_cells", None) else []
    if found:
        highlight = app.builder.highlighter.highlight_block
        text = json.dumps([listed(e, highlight) for e in found]).replace("</", "<\\/")
        app.add_js_file(None, body=text, type="application/json", id="exercises", priority=942)
    for name in ("progress.js", "exercise.js") if found else ():
        app.add_js_file(name, defer="defer", priority=943)
    for name in ("progress.js", "progress-page.js") if is_table else ():
        app.add_js_file(name, defer="defer", priority=943)


class ExerciseTable(SphinxDirective):
    """All exercises in code, by chapter, with room for what a reader has done."""

    def run(self):
        rows = []
        for path in pages():
            self.env.note_dependency(str(path))
            if found := in_code(path):
                rows.append(chapter(path, found))
        head = "".join(f'<th scope="col">{t}</th>' for t in ("Exercise", "Grade", "Passed"))
        table = (
            '<table class="mq-progress-table"><caption class="visually-hidden">Exercises in code'
            f"</caption><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
        )
        return [nodes.raw("", f"<div {TABLE}>{table}</div>", format="html")]


def chapter(path: Path, found: list[Exercise]) -> str:
    """A chapter's rows, or those of a step of the lab, or of a page of problems."""
    title = nbformat.read(path, as_version=4).cells[0].source
    name = html.escape(title.splitlines()[0].removeprefix("# "))
    count = f"{int(path.stem[2:4])}. " if path.stem.startswith("ch") else ""
    head = f'<a href="{path.stem}.html">{count}{name}</a>'
    rows = "".join(row(path, exercise) for exercise in found)
    return f'<tbody><tr><th scope="rowgroup" colspan="3">{head}</th></tr>{rows}</tbody>'


def asked(source: str) -> str:
    r"""What an answer is called: its function, or the numbers that it gives.

    >>> asked("import math\ndef f(x):\n    return x"), asked("### BEGIN SOLUTION\na = 1\nb = 2")
    ('f', 'a, b')
    """
    parts = ast.parse(source).body
    functions = [part.name for part in parts if isinstance(part, ast.FunctionDef)]
    targets = [t for part in parts if isinstance(part, ast.Assign) for t in part.targets]
    given = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return functions[0] if functions else ", ".join(given)


def row(path: Path, exercise: Exercise) -> str:
    name = asked(exercise.answer.source)
    link = f"{path.stem}.html#{exercise.label}"
    told = f"{number(exercise.label)} <code>{name}</code>"
    stars = f'<span aria-label="{exercise.grade} of 3" role="img">{"★" * exercise.grade}</span>'
    torch, state = ("", "–") if exercise.in_page else (" data-torch", "with PyTorch")
    return (
        f'<tr data-label="{exercise.label}"{torch}><td><a href="{link}">{told}</a></td>'
        f'<td>{stars}</td><td class="mq-progress-state">{state}</td></tr>'
    )


def setup(app):
    app.add_directive("exercise-table", ExerciseTable)
    app.connect("html-page-context", page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
