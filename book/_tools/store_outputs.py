"""Run notebooks and store in them their text outputs only, which nbval compares with later runs.

    python book/_tools/store_outputs.py [notebook ...]        all notebooks of the book by default

Pictures, widgets, timings and everything else that is heavy or differs from run to run is left out.
Ids and counts are positions. The standard first code cell is put in where it is missing.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parents[1]

DRAWING = '<figure class="mq-drawing"'  # how minqbook.drawings.drawing begins its HTML

# The first code cell of every notebook. On Colab it fetches the book and installs minq and
# minqbook, elsewhere it does nothing. The book hides it.
FIRST_CELL = """\
import sys

if "google.colab" in sys.modules:
    !git clone -q --depth 1 https://github.com/minq-book/minq
    %cd -q minq/book
    %pip install -q .. .
    from google.colab import output

    output.enable_custom_widget_manager()"""


def text_only(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The part of an output that nbval compares, or None: no picture, widget view or stderr."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error":
        return None
    data = without_pictures(output.data)
    return nbformat.from_dict({**output, "data": data, "metadata": {}})


def without_pictures(data: dict) -> dict:
    """What a value shows, without its pictures: an image, a widget, a drawing in HTML."""
    heavy = ("image/", "application/")
    return {
        kind: text
        for kind, text in data.items()
        if not kind.startswith(heavy) and not "".join(text).startswith(DRAWING)
    }


def with_first_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """With the standard first code cell, after the title."""
    kept = [cell for cell in notebook.cells if "google.colab" not in cell.source]
    first = nbformat.v4.new_code_cell(FIRST_CELL, metadata={"tags": ["remove-cell"]})
    notebook.cells = [*kept[:1], first, *kept[1:]]
    return notebook


def folded(cell: nbformat.NotebookNode) -> None:
    """Solutions and checks of exercises are folded, in the book and in JupyterLab.

    So is, in the book, code that computes what a widget asks.
    """
    tags = cell.metadata.get("tags", [])
    if "question=" in cell.source and cell.cell_type == "code" and "hide-input" not in tags:
        cell.metadata["tags"] = [*tags, "hide-input"]
    for tag, what in (("solution", "a solution"), ("check", "the check")):
        if tag in tags:
            cell.metadata["tags"] = [tag, "hide-input"]
            prompts = {f"code_prompt_{verb}": f"{verb.title()} {what}" for verb in ("show", "hide")}
            cell.metadata["mystnb"] = prompts
            cell.metadata["jupyter"] = {"source_hidden": True}


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without images, widget state, timings and editor details; ids and counts by position."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python"}
    needs = {k: v for k, v in notebook.metadata.items() if k == "needs"}  # a package, see build.py
    kept = {"kernelspec": kernel, "language_info": language, **needs}
    notebook.metadata = nbformat.from_dict(kept)
    notebook.nbformat_minor = 5
    counts = itertools.count(1)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        cell.pop("attachments", None)
        for key in ("execution", "collapsed", "scrolled", "jupyter", "editable", "slideshow"):
            cell.metadata.pop(key, None)
        folded(cell)
        if cell.cell_type == "code":
            ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
            outputs = [] if ignored else merged(filter(None, map(text_only, cell.outputs)))
            cell.outputs, cell.execution_count = outputs, next(counts)
            for output in outputs:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = cell.execution_count
    return notebook


def merged(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighbouring pieces of one stream joined, as they come in pieces of any size."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        if result and output["output_type"] == result[-1]["output_type"] == "stream":
            result[-1]["text"] += output["text"]
        else:
            result.append(output)
    return result


def store(path: Path) -> None:
    """Run one notebook and replace its file in one step; where a cell fails, leave it as it was."""
    notebook = with_first_cell(nbformat.read(path, as_version=4))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}})
    client.execute()
    write(clean(notebook), path)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    draft = path.with_suffix(".tmp")
    draft.write_text(nbformat.writes(notebook, indent=1) + "\n", "utf-8", newline="\n")
    os.replace(draft, path)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(BOOK.glob("*.ipynb"))):
        print(path.name, flush=True)
        store(path)
