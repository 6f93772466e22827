"""What every notebook must look like in the repository (nbval runs them: `make notebooks`)."""

import copy
import textwrap
from pathlib import Path

import nbformat
import pytest
import store_outputs as tool
import yaml

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))



@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stores_text_outputs_only(path):
    """No image, no widget state, no error, no timing: the cleaning tool finds nothing to do."""
    stored = nbformat.read(path, as_version=4)
    cleaned = tool.clean(tool.with_first_cell(copy.deepcopy(stored)))
    for before, after in zip(stored.cells, cleaned.cells, strict=False):
        assert before == after, "run `make outputs`"
    assert stored == cleaned, "run `make outputs`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_starts_with_a_title_and_the_standard_cell(path):
    title, first = nbformat.read(path, as_version=4).cells[:2]
    assert title.source.startswith("# ")
    assert first.source == tool.FIRST_CELL
    assert first.metadata.tags == ["remove-cell"]


def test_contributing_shows_the_standard_cell():
    shown = (BOOK.parent / "CONTRIBUTING.md").read_text("utf-8")
    assert textwrap.indent(tool.FIRST_CELL, "   ", lambda line: line.strip()) in shown


def test_the_guide_shows_the_standard_cell():
    guide = (BOOK.parent / "CONTRIBUTING.md").read_text("utf-8")
    assert textwrap.indent(tool.FIRST_CELL, "   ") in guide


def test_every_chapter_of_the_contents_exists():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8"))
    names = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    for name in names:
        assert any((BOOK / name).with_suffix(kind).exists() for kind in (".md", ".ipynb")), name
    assert {p.stem for p in NOTEBOOKS} <= set(names), "a notebook that no reader can reach"


def test_cleaning_removes_what_differs_from_run_to_run():
    v4 = nbformat.v4
    image = v4.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
    widget = v4.new_output(
        "execute_result",
        {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Widget()"},
    )
    number = v4.new_output("execute_result", {"text/plain": "3", "text/html": "<b>3</b>"})
    pieces = [v4.new_output("stream", name="stdout", text=text) for text in ("a", "b\n")]
    noise = v4.new_output("stream", name="stderr", text="a warning")
    error = v4.new_output("error", ename="E", evalue="", traceback=[])
    cell = v4.new_code_cell("1", outputs=[*pieces, noise, image, widget, number, error])
    timing = {"iopub.execute_input": "2026"}
    cell.metadata = nbformat.from_dict({"execution": timing, "tags": ["a"]})
    timed = v4.new_code_cell("2", outputs=[copy.deepcopy(number)])
    timed.metadata["tags"] = ["nbval-ignore-output"]
    notebook = v4.new_notebook(cells=[cell, timed], metadata={"widgets": {"state": {}}})

    cell, timed = tool.clean(notebook).cells
    stream, figure, view, value = cell.outputs
    assert stream.text == "ab\n"
    assert figure.data == {"text/plain": "<Figure>"}
    assert view.data == {"text/plain": "Widget()"} and view.execution_count == 1
    assert value.data == {"text/plain": "3", "text/html": "<b>3</b>"}
    assert cell.metadata == {"tags": ["a"]} and (cell.id, cell.execution_count) == ("cell-000", 1)
    assert timed.outputs == [] and timed.execution_count == 2
    assert "widgets" not in notebook.metadata
