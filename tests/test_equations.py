"""The equation index is complete and true: the tests it names execute the lines it names."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("equations", ROOT / "book/_ext/equations.py")
equations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(equations)

ALL = range(1, 44)
CODE, FORMULAS, TABLE = equations.code(), equations.formulas(), equations.table()


def test_every_equation_has_a_formula_in_a_chapter_and_an_entry():
    assert sorted(FORMULAS) == sorted(TABLE) == list(ALL)
    assert sorted(CODE) == [number for number in ALL if "why" not in TABLE[number]]
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
    for number, lines in CODE.items():
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


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Run all named tests once; gives the lines that each of them executed."""
    data = tmp_path_factory.mktemp("equations") / "coverage"
    tests = sorted({test for entry in TABLE.values() for test in entry["tests"]})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    command += ["--cov=minq", "--cov-context=test", "--cov-report="]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(data)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    coverage = CoverageData(str(data))
    coverage.read()
    lines = {}
    for file in coverage.measured_files():
        name = Path(file).resolve().relative_to(ROOT).as_posix()
        for line, contexts in coverage.contexts_by_lineno(file).items():
            for context in contexts:
                test = context.split("|")[0]
                for key in (test, test.split("[")[0]):
                    lines.setdefault(key, set()).add((name, line))
    return lines


def test_the_named_tests_pass_and_execute_every_line_of_their_equation(executed):
    wrong = []  # one test, not 43: two test processes would each run all that is named
    for number in ALL:
        code, tests = CODE.get(number, []), TABLE[number]["tests"]
        seen = set().union(*(executed.get(test, set()) for test in tests))
        used = {(found.path, k) for found in code for k in range(found.first, found.last + 1)}
        for found in code:
            if not any((found.path, k) in seen for k in range(found.first, found.last + 1)):
                wrong.append(f"({number}): no test it names executes {found.path}:{found.line}")
        for test in tests:
            if not executed.get(test):
                wrong.append(f"({number}): {test} executes nothing of minq")
            elif code and not executed[test] & used:
                wrong.append(f"({number}): {test} has nothing to do with it")
    assert not wrong, "\n".join(wrong)
