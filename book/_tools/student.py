"""Write the student edition, and the same chapters as a course for nbgrader.

    python book/_tools/student.py

_build/student    the notebooks without solutions, checks kept, and what they read: hand it out
_build/course     the chapters as assignments for nbgrader: grade with it

A code exercise becomes a cell to fill in and a check worth as many points as the exercise has
stars. An exercise in words gets a cell to write in, which a teacher marks by hand.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import nbformat
import yaml
from exercises import EXERCISE, SOLUTION, Exercise, exercises, has_tag, stub
from store_outputs import BOOK, clean

BUILD = BOOK.parent / "_build"
READS = ("_assets", "results")  # what the notebooks show or read, beside them

README = """\
# {title}: student edition

The chapters of the book, as notebooks with exercises to fill in. They need Python 3.10 or newer:

    python -m venv .venv
    .venv/bin/python -m pip install "minq @ git+{url}" "minqbook @ git+{url}#subdirectory=book"
    .venv/bin/python -m pip install jupyterlab
    .venv/bin/python -m jupyterlab

Begin with `intro.ipynb`. A code exercise has a cell for your answer and one that checks it and says
what is wrong. The two use nothing from other cells, so they can be run alone. Do not edit the
checks: when your notebook is graded, they are put back.
"""


def for_students(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter without solutions, with nbgrader's marks on answers and checks."""
    notebook = clean(copy.deepcopy(notebook))
    found = {e.label: e for e in exercises(notebook)}
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cells += _with_room_to_answer(cell, found)
        else:
            if has_tag(cell, "solution") or has_tag(cell, "check"):
                _mark_code(cell, next(e for e in found.values() if cell in (e.answer, e.check)))
            cells.append(cell)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:03d}"
    notebook.cells = cells
    return notebook


def _with_room_to_answer(cell, found: dict[str, Exercise]) -> list[nbformat.NotebookNode]:
    """The text without solutions, cut behind each exercise that is answered in words."""
    text, cells, start = SOLUTION.sub("", cell.source), [], 0

    def add(end: int | None) -> None:
        if part := text[start:end].strip():
            cells.append(nbformat.v4.new_markdown_cell(part))

    for match in EXERCISE.finditer(text):
        exercise = found[match["label"]]
        if not exercise.answer:
            add(match.end())
            start = match.end()
            room = nbformat.v4.new_markdown_cell("*Your answer here.*")
            _mark(room, exercise, grade=True, solution=True)
            cells.append(room)
    add(None)
    return cells


def _mark_code(cell: nbformat.NotebookNode, exercise: Exercise) -> None:
    if cell is exercise.answer:
        cell.source, cell.outputs, cell.execution_count = stub(cell.source), [], None
        _mark(cell, exercise, solution=True)
    else:
        cell.outputs, cell.execution_count = [], None
        _mark(cell, exercise, "-check", grade=True, locked=True)


def _mark(cell, exercise: Exercise, suffix: str = "", **flags: bool) -> None:
    """What nbgrader reads; folded no longer, as the answer is gone."""
    mark = {"grade": False, "solution": False, "locked": False, "task": False} | flags
    mark |= {"schema_version": 3, "grade_id": exercise.label + suffix, "cell_type": cell.cell_type}
    if mark["grade"]:
        mark["points"] = exercise.grade
    cell.metadata = nbformat.from_dict({"nbgrader": mark})


def write_student_edition(folder: Path, course: Path) -> None:
    """Both folders, made anew; what nbgrader has collected in the course is left as it is."""
    config = yaml.safe_load((BOOK.parent / "_config.yml").read_text("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    for name in READS:
        shutil.copytree(BOOK / name, folder / name)
    url = config["repository"]["url"]
    (folder / "README.md").write_text(README.format(title=config["title"], url=url), "utf-8")
    for path in sorted(BOOK.glob("*.ipynb")):
        notebook = for_students(nbformat.read(path, as_version=4))
        nbformat.write(notebook, folder / path.name)
        if any("nbgrader" in cell.metadata for cell in notebook.cells):
            assignment = course / "source" / path.stem
            assignment.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, assignment / path.name)
    shutil.copy(Path(__file__).with_name("nbgrader_config.py"), course)


if __name__ == "__main__":
    write_student_edition(BUILD / "student", BUILD / "course")
    print(f"The student edition is in {BUILD / 'student'}, the course in {BUILD / 'course'}.")
