"""Write the book's answers to the lab as one module, from the notebooks that hold them.

    python book/_tools/lab.py        book/minqbook/lab/solutions.py

Run it after a change of an answer; tests/test_lab.py holds the two equal.
"""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from exercises import REFERENCE_MARKS, exercises

BOOK = Path(__file__).resolve().parents[1]
FILE = BOOK / "minqbook" / "lab" / "solutions.py"
MINE = "minqbook.lab.mine"
HEAD = '''\
"""The book's answers to the lab: made by book/_tools/lab.py from the notebooks, see there."""

'''


def solutions() -> str:
    """The text of the module: each import once, and the functions in the order of the steps."""
    imports: set[str] = set()
    parts, names = [], []
    for path in sorted(BOOK.glob("lab*.ipynb")):
        for exercise in exercises(nbformat.read(path, as_version=4)):
            assert exercise.answer
            source = REFERENCE_MARKS.sub("", exercise.answer.source)
            for node in ast.parse(source).body:
                text = ast.get_source_segment(source, node)
                if isinstance(node, ast.FunctionDef):
                    parts.append(text)
                    names.append(node.name)
                elif getattr(node, "module", "") != MINE:  # those functions stand here themselves
                    imports.add(text)
    kinds = ("import math", "from dataclasses", "import numpy", "from minqbook")  # ruff's order
    found = ["\n".join(sorted(i for i in imports if i.startswith(kind))) for kind in kinds]
    head = "{}\n{}\n\n{}\n\n{}".format(*found)
    listed = "__all__ = [\n" + "".join(f'    "{name}",\n' for name in names) + "]"
    return HEAD + "\n\n\n".join([f"{head}\n\n{listed}", *parts]) + "\n"


if __name__ == "__main__":
    FILE.write_text(solutions(), "utf-8")
