"""The student edition, and a class whose notebooks nbgrader marks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import student
from exercises import exercises, has_tag
from nbgrader.apps.api import NbGraderAPI
from test_exercises import CODE, NOTEBOOKS, WRONG_ANSWERS, source_of
from traitlets.config import Config, PyFileConfigLoader

CHAPTER = "ch03_uniform_affine"
LABEL = "ex-ch03-2"


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_no_solution_is_left_and_every_check_is(chapter):
    source, handed_out = NOTEBOOKS[chapter], student.for_students(NOTEBOOKS[chapter])
    nbformat.validate(handed_out)
    text = "\n".join(cell.source for cell in handed_out.cells)
    assert "{solution}" not in text and "BEGIN SOLUTION" not in text
    marks = {c.metadata.nbgrader.grade_id: c for c in handed_out.cells if "nbgrader" in c.metadata}
    for exercise in exercises(source):
        assert exercise.text.strip() in text
        if exercise.answer:
            body = exercise.answer.source.split("### BEGIN SOLUTION\n")[1].split("### END")[0]
            for line in filter(None, map(str.strip, body.splitlines())):
                assert line not in marks[exercise.label].source.splitlines()
            check = marks[f"{exercise.label}-check"]
            assert check.source == exercise.check.source
            assert check.metadata.nbgrader.locked and check.metadata.nbgrader.points
        else:
            assert marks[exercise.label].source == "*Your answer here.*"
    assert experiments(source) == experiments(handed_out)


def experiments(notebook) -> list[str]:
    """The code that is not an exercise's."""
    code = [c for c in notebook.cells if c.cell_type == "code" and "nbgrader" not in c.metadata]
    return [c.source for c in code if not has_tag(c, "solution") and not has_tag(c, "check")]


def test_the_edition_has_what_its_notebooks_read(tmp_path):
    student.write_student_edition(tmp_path / "student", tmp_path / "course")
    folder = tmp_path / "student"
    written, sources = ({p.name for p in f.glob("*.ipynb")} for f in (folder, student.BOOK))
    assert written == sources
    assert list((folder / "results").iterdir()) and (folder / "README.md").exists()
    assert not list(folder.rglob("*.yaml"))
    assignments = {p.name for p in (tmp_path / "course/source").iterdir()}
    asking = {p.stem for p in student.BOOK.glob("*.ipynb") if exercises(nbformat.read(p, 4))}
    assert assignments == asking >= set(NOTEBOOKS)


def hand_in(course: Path, name: str, answer: str | None = None, check: str | None = None) -> None:
    """What a student submits: the notebook handed out, with an answer, or another check."""
    notebook = nbformat.read(course / f"release/{CHAPTER}/{CHAPTER}.ipynb", as_version=4)
    for cell in notebook.cells:
        mark = cell.metadata.get("nbgrader", {}).get("grade_id")
        if mark == LABEL and answer is not None:
            cell.source = answer
        if mark == f"{LABEL}-check" and check is not None:
            cell.source = check
    folder = course / "submitted" / name / CHAPTER
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{CHAPTER}.ipynb")


def test_nbgrader_marks_a_class(tmp_path, monkeypatch):
    """Right, wrong, empty, cheating: the grades, and the words that the wrong one reads."""
    # nbgrader calls `alembic` as an activated environment would have it
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    source = tmp_path / "course/source" / CHAPTER
    source.mkdir(parents=True)
    nbformat.write(student.for_students(NOTEBOOKS[CHAPTER]), source / f"{CHAPTER}.ipynb")
    config = PyFileConfigLoader("nbgrader_config.py", str(Path(student.__file__).parent))
    settings = Config(config.load_config())
    settings.CourseDirectory.root = str(tmp_path / "course")
    settings.Exchange.root = str(tmp_path / "exchange")
    course = NbGraderAPI(config=settings)

    def do(call, *names):
        result = call(CHAPTER, *names)
        assert result["success"], result.get("error", "") + result.get("log", "")

    do(course.generate_assignment)
    wrong = WRONG_ANSWERS[LABEL][0]
    folder = tmp_path / "course"
    hand_in(folder, "right", CODE[LABEL].answer.source)
    hand_in(folder, "wrong", source_of(LABEL, wrong))
    hand_in(folder, "empty")
    hand_in(folder, "cheat", check="print('all is right')")
    points = CODE[LABEL].grade
    for name, score in {"right": points, "wrong": 0, "empty": 0, "cheat": 0}.items():
        do(course.autograde, name)
        with course.gradebook as gradebook:
            submitted = gradebook.find_submission_notebook(CHAPTER, CHAPTER, name)
            grades = {g.name: g.auto_score for g in submitted.grades}
        assert grades[f"{LABEL}-check"] == score, name
    do(course.generate_feedback, "wrong")
    feedback = folder / f"feedback/wrong/{CHAPTER}/{CHAPTER}.html"
    assert wrong["says"] in feedback.read_text("utf-8")
    shutil.rmtree(folder)
