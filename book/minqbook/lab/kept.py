"""Where the student's functions are kept: the file ``myquant.py`` beside the notebooks.

A check that passes calls ``keep``, which writes the cell of a function into that file. Later steps
take the functions out of it, see ``minqbook.lab.mine``.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable
from pathlib import Path

NAME = "myquant.py"
HEAD = '"""My quantizer, step by step: every cell that passed its check in the lab."""\n'
REFERENCE = "### BEGIN SOLUTION"


def keep(function: Callable, folder: str | Path = ".") -> str:
    """Write the cell that a function was defined in to ``myquant.py``.

    A cell that is there already, from an earlier try, is replaced where it stands. The book's own
    solutions are not kept, nor what is run in a page, which has no files.

    Args:
        function: any function of the cell.
        folder: where the file is.

    Returns:
        What has been done, in words; empty where nothing was.

    >>> keep(keep)  # no cell of a notebook
    ''
    """
    place = function.__code__.co_filename
    lines, name = linecache.getlines(place), function.__name__
    source, first = "".join(lines), function.__code__.co_firstlineno - 1
    if not lines[first : first + 1] or not lines[first].startswith(f"def {name}("):
        return ""  # another cell has taken the name of its file since
    if Path(place).suffix == ".py" or REFERENCE in source:
        return ""
    if sys.platform == "emscripten":
        return ""
    path = Path(folder) / NAME
    text = path.read_text("utf-8") if path.exists() else HEAD
    part = f"\n\n# --- {name} ---\n\n{source.strip()}\n\n# --- end of {name} ---\n"
    old = re.compile(rf"\n\n# --- {name} ---\n.*?# --- end of {name} ---\n", re.DOTALL)
    text, count = old.subn(lambda match: part, text)
    path.write_text(text if count else text + part, "utf-8")
    return f" Kept in {NAME}."
