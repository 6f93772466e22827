"""The exercises of a chapter: what is asked, the reference solution, the check.

An exercise is an `{exercise}` directive whose text begins with its kind and grade, *Engineer ★★.*
The code of an exercise stands in two cells behind it, and needs nothing from other cells:

    tag "solution"    the reference solution, between ### BEGIN SOLUTION and ### END SOLUTION
    tag "check"       asserts, which say what is wrong in the learner's terms

The book runs both, folded. A student's copy has a stub where the solution was (student.py), and
tests/test_exercises.py lets every check meet the solution, the stub and wrong answers.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

BOOK = Path(__file__).resolve().parents[1]
PAGE = re.compile(r"(ch|lab|part)\d+_")
ROMAN = ("0", "I", "II", "III", "IV")
KINDS = ("Reader", "Engineer", "Proof")
EXERCISE = re.compile(
    r"^(?P<fence>`{3,})\{exercise\}.*\n:label: (?P<label>\S+)\n(?::nonumber:\n)?"
    r"(?P<text>[\s\S]*?)^(?P=fence)\s*$",
    re.MULTILINE,
)
SOLUTION = re.compile(
    r"^(?P<fence>`{3,})\{solution\} *(?P<label>\S+)\n(?P<text>[\s\S]*?)^(?P=fence)[^\S\n]*\n?",
    re.MULTILINE,
)
HEAD = re.compile(rf"\*({'|'.join(KINDS)}) (★{{1,3}})\.\*")
NO_ANSWER = """\
# Your code here, in place of the next line.
raise NotImplementedError("this exercise has no answer yet")"""
IN_PAGE = {*sys.stdlib_module_names, "numpy", "minq", "minqbook.lab"}
"""What a page's Python has; of minq what needs no PyTorch, which the tests make sure of."""
REFERENCE_MARKS = re.compile(r"^ *### (BEGIN|END) SOLUTION(\n|$)", re.MULTILINE)
MARKED = re.compile(r"^( *)### BEGIN SOLUTION\n[\s\S]*?^ *### END SOLUTION$", re.MULTILINE)


@dataclass
class Exercise:
    """One exercise; ``answer`` and ``check`` are cells, or None where no code is asked for."""

    label: str
    text: str
    answer: nbformat.NotebookNode | None = None
    check: nbformat.NotebookNode | None = None

    @property
    def kind(self) -> str:
        return self._head()[1]

    @property
    def grade(self) -> int:
        return len(self._head()[2])

    @property
    def in_page(self) -> bool:
        """Whether it can be answered and checked in the page, where there is no PyTorch."""
        cells = [cell.source for cell in (self.answer, self.check) if cell]
        return bool(cells) and all(imported(source) <= IN_PAGE for source in cells)

    def _head(self) -> re.Match:
        if not (head := HEAD.match(self.text.strip())):
            raise ValueError(
                f"{self.label} must begin with its kind and grade, as in *Engineer ★★.*, "
                f"not {self.text.strip()[:40]!r}"
            )
        return head


def imported(source: str) -> set[str]:
    """The packages that Python code imports.

    >>> sorted(imported("import numpy as np\\nfrom minq.mac import MacArray"))
    ['minq', 'numpy']
    >>> imported("from minqbook import lab") == imported("from minqbook.lab.mine import quantize")
    True
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    of_lab = {name for name in found if f"{name}.".startswith("minqbook.lab.")}
    return {name.split(".")[0] for name in found - of_lab} | ({"minqbook.lab"} if of_lab else set())


def pages(book: Path = BOOK) -> list[Path]:
    """The notebooks that ask: chapters, steps of the lab, problems; in reading order."""
    toc = yaml.safe_load((book / "_toc.yml").read_text("utf-8"))
    names = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [book / f"{name}.ipynb" for name in names if PAGE.match(name)]


def number(label: str) -> str:
    """What the book calls an exercise.

    >>> number("ex-ch03-2"), number("ex-lab1-2"), number("ex-part2-4")
    ('3.2', 'Lab 1.2', 'II.4')
    """
    _, page, k = label.split("-")
    if page.startswith("part"):
        return f"{ROMAN[int(page[4:])]}.{k}"
    return f"{int(page[2:])}.{k}" if page.startswith("ch") else f"Lab {page[3:]}.{k}"


def has_tag(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def exercises(notebook: nbformat.NotebookNode) -> list[Exercise]:
    """All exercises of a chapter, in order, each with its code cells."""
    found: list[Exercise] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += [Exercise(m["label"], m["text"]) for m in EXERCISE.finditer(cell.source)]
            continue
        for tag, field in (("solution", "answer"), ("check", "check")):
            if has_tag(cell, tag):
                if not found or getattr(found[-1], field):
                    raise ValueError(f"a cell tagged {tag!r} belongs to no exercise: {cell.id}")
                setattr(found[-1], field, cell)
    return found


def solutions(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """The labels of the exercises that have a solution in words."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from (m["label"] for m in SOLUTION.finditer(cell.source))


def stub(source: str) -> str:
    """A solution cell without its solution.

    >>> print(stub("f = (\n    ### BEGIN SOLUTION\n    2\n    ### END SOLUTION\n)"))
    f = (
        # Your code here, in place of the next line.
        raise NotImplementedError("this exercise has no answer yet")
    )
    """
    result, count = MARKED.subn(lambda match: textwrap.indent(NO_ANSWER, match[1]), source)
    if not count:
        raise ValueError(f"no ### BEGIN SOLUTION ... ### END SOLUTION in the cell\n{source}")
    return result
