"""The equation index is complete; that its tests execute its lines is seen while they run."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from equation_lines import (
    ROOT,
    code,
    complaints,
    equations,
    formulas,
    named,
    places,
    table,
    watched,
)

from minq.affine import fake_quantize

ALL = range(1, 44)


def test_every_equation_has_a_formula_in_a_chapter_and_an_entry():
    assert sorted(formulas()) == sorted(table()) == list(ALL)
    assert sorted(code()) == [number for number in ALL if "why" not in table()[number]]
    pages = re.findall(r"\{equation-index\} (\d+) (\d+)", (ROOT / "book/equations.md").read_text())
    assert [n for a, b in pages for n in range(int(a), int(b) + 1)] == list(ALL)


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# eq. (7)", [7]),
        ("# eq. (2), (6), (8a)", [2, 6, 8]),
        ("# eq. (37) to (39): inside (1)", [37, 38, 39]),
        ("# eq. (14)-(16)", [14, 15, 16]),
        ("# (7) is an equation", []),
    ],
)
def test_comments_are_read(comment, expected):
    match = equations.LIST.match(comment)
    assert equations.numbers(match[1] if match else "") == expected


def test_lines_and_functions_are_where_the_index_says():
    for number, lines in code().items():
        for found in lines:
            text = (ROOT / found.path).read_text("utf-8").splitlines()[found.line - 1]
            assert "# eq. (" in text and f"({number}" in text or " to (" in text, found
            parts = found.name.split(".")
            depth = len(Path(found.path).parts)  # minq/affine.py is minq.affine
            thing = importlib.import_module(".".join(parts[:depth]))
            for part in parts[depth:]:
                thing = getattr(thing, part)
            source, first = inspect.getsourcelines(inspect.unwrap(thing))
            assert first <= found.line < first + len(source), found


def test_the_named_tests_exist():
    """Whether they execute the lines of their equations is judged where they run."""
    for test in named():
        path, function = test.split("[")[0].split("::")
        assert f"def {function}(" in (ROOT / path).read_text("utf-8"), test


def test_watched_code_is_seen():
    tests = table()[7]["tests"]
    (rounding,) = (line for line in code()[7] if line.name == "minq.grid.Grid.fake_quantize")
    with watched(set(tests)) as seen:
        fake_quantize([0.3], 0.5)
    assert (rounding.path, rounding.first) in places(seen)
    with watched(set(tests)) as seen:
        sorted("nothing of minq")
    assert not seen


def test_what_is_not_true_is_told():
    true = {test: {("minq/affine.py", 0)} for test in named()}
    for number, lines in code().items():
        for test in table()[number]["tests"]:
            true[test] |= {(line.path, line.last) for line in lines}
    assert complaints(true) == []
    test = table()[13]["tests"][0]
    assert f"(13): {test} executes nothing of minq" in complaints(true | {test: ()})
    elsewhere = true | {test: {("minq/affine.py", 0)}}
    assert f"(13): {test} has nothing to do with it" in complaints(elsewhere)
    for lines in code().values():
        for line in lines:
            without = {test: seen - {(line.path, line.last)} for test, seen in true.items()}
            told = f"no test it names executes {line.path}:{line.line}"
            assert any(told in words for words in complaints(without))
