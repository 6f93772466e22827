"""The exercises of every chapter: their checks pass the solution and fail every wrong answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import exercises as tool
import nbformat
import pytest
import torch
import yaml

import minq
from minq.qat import prepare

ROOT = Path(__file__).resolve().parents[1]
PAGES = tool.pages()
WRONG = Path(__file__).parent / "wrong_answers"

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in PAGES}
EXERCISES = {name: tool.exercises(notebook) for name, notebook in NOTEBOOKS.items()}
CODE = {e.label: e for found in EXERCISES.values() for e in found if e.answer}

IN_PAGE = {label: e for label, e in CODE.items() if e.in_page}
ON_TORCH = {
    "ex-ch05-6": "inserts quantizers into a network",
    "ex-ch10-5": "calls minq.ptq",
    "ex-ch11-6": "switches the quantizers of a network",
    "ex-ch15-5": "trains a network",
    "ex-lab6-1": "is about autograd",
    "ex-lab6-2": "is about autograd",
}


def wrong_answers() -> dict[str, list[dict]]:
    """label -> what learners get wrong; see CONTRIBUTING.md, "An exercise"."""
    found: dict[str, list[dict]] = {}
    for path in sorted(WRONG.glob("*.yaml")):
        for label, answers in yaml.safe_load(path.read_text("utf-8")).items():
            assert label.startswith(f"ex-{path.stem}-"), f"{label} stands in {path.name}"
            found[label] = answers
    return found


WRONG_ANSWERS = wrong_answers()


def source_of(label: str, answer: dict) -> str:
    """A wrong answer's cell: the reference solution with a piece replaced, or another cell."""
    if "answer" in answer:
        return answer["answer"]
    reference = CODE[label].answer.source
    count = reference.count(answer["replace"])
    assert count == 1, f"{label}: {answer['replace']!r} stands {count} times in the solution"
    return reference.replace(answer["replace"], answer["by"])


def run(*cells: str) -> None:
    """Cells in a kernel of their own, as it were: nothing else has run before."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)


@pytest.mark.parametrize("page", EXERCISES)
def test_labels_count_from_one(page):
    found = [e.label for e in EXERCISES[page]]
    assert found == [f"ex-{page.partition('_')[0]}-{k + 1}" for k in range(len(found))]
    assert all(bool(e.answer) == bool(e.check) for e in EXERCISES[page]), "no check"


@pytest.mark.parametrize("chapter", [page for page in EXERCISES if page.startswith("ch")])
def test_from_easy_to_open(chapter):
    found = EXERCISES[chapter]
    assert 3 <= len(found) <= 12
    grades = [e.grade for e in found]
    assert grades == sorted(grades) and grades[0] == 1 and grades[-1] == 3, grades
    assert {e.kind for e in found} == set(tool.KINDS)
    assert any(e.answer for e in found), "no exercise in code"


def test_texts_count_them_right():
    """Wherever a text says how many there are."""
    text = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "book/teaching.md")}
    every = [e for found in EXERCISES.values() for e in found]
    checks = sum(bool(e.check) for e in every)
    intro = (ROOT / "book" / "intro.ipynb").read_text("utf-8")
    assert f"{len(every)} exercises, of which {checks} check your answer" in intro
    assert f"Of {len(every)} exercises {checks} check your answer" in text["README.md"]
    chapters = {page: found for page, found in EXERCISES.items() if page.startswith("ch")}
    inside = [e for found in chapters.values() for e in found]
    said = f"The {len(chapters)} chapters have {len(inside)} exercises, six to eight each"
    assert said in text["book/teaching.md"]
    assert {len(found) for found in chapters.values()} == {6, 7, 8}
    assert f"Of these, {sum(bool(e.check) for e in inside)} check" in text["book/teaching.md"]
    assert f"The book has {len(chapters)} chapters in four parts" in intro
    # The lab's table: a step, when it is due, its points, its hours; the sentence below adds up.
    rows = re.findall(
        r"^\| \{doc\}`.*? <(lab\w+)>` \| \d+ \| (\d+) \| (\d)(½?) \|",
        text["book/teaching.md"],
        re.M,
    )
    assert [page for page, *_ in rows] == [page for page in EXERCISES if page.startswith("lab")]
    assert len(rows) == 7, "texts say seven steps"
    assert all(int(n) == sum(e.grade for e in EXERCISES[page]) for page, n, *_ in rows)
    hours = sum(int(whole) + (half == "½") / 2 for *_, whole, half in rows)
    points = sum(int(n) for _, n, *_ in rows)
    assert f"That is {points} points and about {hours:.0f} hours" in text["book/teaching.md"]


@pytest.mark.parametrize("step", [page for page in EXERCISES if page.startswith("lab")])
def test_a_step_of_the_lab_is_checked_throughout(step):
    found = EXERCISES[step]
    assert 2 <= len(found) <= 3 and all(e.answer for e in found)
    assert [e.grade for e in found] == sorted(e.grade for e in found)


@pytest.mark.parametrize("chapter", EXERCISES)
def test_every_exercise_has_a_solution(chapter):
    in_words = set(tool.solutions(NOTEBOOKS[chapter]))
    missing = [e.label for e in EXERCISES[chapter] if not e.answer and e.label not in in_words]
    assert not missing


@pytest.mark.parametrize("label", CODE)
def test_check_passes_the_solution(label, capsys):
    run(CODE[label].answer.source, CODE[label].check.source)
    assert capsys.readouterr().out.strip(), "the check says nothing when all is right"


@pytest.mark.parametrize("label", CODE)
def test_check_fails_an_empty_answer(label):
    exercise = CODE[label]
    with pytest.raises(NotImplementedError, match="no answer yet"):
        run(tool.stub(exercise.answer.source), exercise.check.source)


@pytest.mark.parametrize("label", CODE)
def test_check_is_tried_on_three_wrong_answers(label):
    assert len(WRONG_ANSWERS.get(label, [])) >= 3
    assert len({a["wrong"] for a in WRONG_ANSWERS[label]}) == len(WRONG_ANSWERS[label])


@pytest.mark.parametrize(
    "label, answer",
    [pytest.param(k, a, id=f"{k}: {a['wrong']}") for k, v in WRONG_ANSWERS.items() for a in v],
)
def test_check_fails_a_wrong_answer(label, answer):
    with pytest.raises(AssertionError) as failure:
        run(source_of(label, answer), CODE[label].check.source)
    message = str(failure.value)
    assert re.search(answer["says"], message), f"the check says {message!r}"


def test_all_but_those_that_need_a_network_run_in_the_page():
    assert CODE.keys() - IN_PAGE.keys() == ON_TORCH.keys()


@pytest.fixture(scope="module")
def without_torch():
    """What each exercise says in a Python without torch: {(label, answer): [kind, message]}."""
    runs = {}
    for label, exercise in IN_PAGE.items():
        answers = {"solution": exercise.answer.source, "none": tool.stub(exercise.answer.source)}
        answers |= {a["wrong"]: source_of(label, a) for a in WRONG_ANSWERS[label]}
        runs |= {(label, k): [source, exercise.check.source] for k, source in answers.items()}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("without_torch.py"))]
    given = json.dumps(list(runs.values()))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return dict(zip(runs, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("label", IN_PAGE)
def test_says_the_same_without_torch(label, without_torch, capsys):
    exercise = IN_PAGE[label]
    run(exercise.answer.source, exercise.check.source)
    assert without_torch[label, "solution"] == ["passed", capsys.readouterr().out]
    no_answer = ["NotImplementedError", "this exercise has no answer yet"]
    assert without_torch[label, "none"] == no_answer
    for answer in WRONG_ANSWERS[label]:
        kind, message = without_torch[label, answer["wrong"]]
        assert kind == "AssertionError" and re.search(answer["says"], message), message


def test_the_estimator_of_chapter_14_is_one_that_networks_take():
    names: dict = {}
    exec(CODE["ex-ch14-5"].answer.source, names)
    estimator = names["mean_size"](4)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    q = minq.Quantizer(4, signed=True, symmetric=True, axis=0, estimator=estimator)
    q(weight)
    torch.testing.assert_close(q.scale.detach(), 2 * weight.abs().mean(1) / 7**0.5)
    settings = {"weights": 4, "equalize": False, "progress": False, "weight_range": estimator}
    prepare(torch.nn.Sequential(torch.nn.Linear(3, 5)), torch.randn(8, 3), **settings)
